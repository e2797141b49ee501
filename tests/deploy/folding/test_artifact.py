"""A deployed model on disk: what is read is what was written, or one clear error."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mmgdrq
from mmgdrq.deploy import is_deployed, load_folded, save_folded
from mmgdrq.deploy.folding import artifact
from mmgdrq.errors import CheckpointError
from mmgdrq.quant.specs import GRIDS
from mmgdrq_runtime.manifest import file_sha256, json_sha256

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FILES = {'manifest.json', 'weights.safetensors', 'config.py'}


class Net(nn.Module):
    """Conv with BN, conv without, one layer under two names, and a linear layer."""

    def __init__(self, width=6, affine=True):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width, affine=affine))
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.levels = nn.ModuleList([self.shared, self.shared])
        self.act = nn.PReLU()
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        for level in self.levels:
            x = level(x)
        return self.head(x.mean((2, 3)))


def quantized(bits=3, group_size=4, grid=None, range='mean', **net):
    weight = dict(bits=bits, group_size=group_size, grid=grid, range=range)
    return mmgdrq.quantize(Net(**net), weight, dict(bits=4))


def trained(**args):
    net = quantized(**args).train()
    for scale in (1, 2, 0.5):
        net(X * scale)
    return net.eval()


def state_of(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.fixture
def deployed(tmp_path):
    folded = mmgdrq.fold(trained(), X)
    return folded, save_folded(folded, tmp_path / 'out', 'model = 1\n')


def assert_refused(path, match, net=None):
    """Loading gives one CheckpointError and leaves the model as it was."""
    net = net or quantized()
    kinds, before = [type(module) for module in net.modules()], state_of(net)
    with pytest.raises(CheckpointError, match=match):
        load_folded(net, path)
    assert [type(module) for module in net.modules()] == kinds
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not hasattr(net, 'gdrq_folded')


def rewrite(path, change):
    """Change the tensors and make the checksum fit again."""
    file = path / 'weights.safetensors'
    tensors = load_file(str(file))
    change(tensors)
    save_file(tensors, str(file))
    rewrite_manifest(path, lambda manifest: manifest.update(sha256=file_sha256(file)))


def rewrite_manifest(path, change):
    file = path / 'manifest.json'
    manifest = json.loads(file.read_text())
    change(manifest)
    if 'layers_sha256' in manifest and 'layers' in manifest:
        manifest['layers_sha256'] = json_sha256(manifest['layers'])
    file.write_text(json.dumps(manifest))


def test_an_edited_manifest_is_refused(deployed):
    """Limits that are valid by themselves, but not those of the stored model."""
    _, path = deployed
    file = path / 'manifest.json'
    manifest = json.loads(file.read_text())
    manifest['layers']['head']['input'] = [0, 127]
    file.write_text(json.dumps(manifest))
    assert_refused(path, 'altered')


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('grid', GRIDS)
def test_round_trip_is_bit_equal(tmp_path, bits, grid):
    folded = mmgdrq.fold(trained(bits=bits, grid=grid), X)
    loaded = load_folded(quantized(bits=bits, grid=grid), save_folded(folded, tmp_path / 'out'))
    assert torch.equal(loaded(X), folded(X))
    assert not loaded.training
    assert loaded.state_dict().keys() == folded.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in folded.state_dict().items())


@pytest.mark.parametrize('rule', ['search', 'learned', 'minmax'])
def test_round_trip_of_other_ranges(tmp_path, rule):
    folded = mmgdrq.fold(trained(range=rule), X)
    loaded = load_folded(quantized(range=rule), save_folded(folded, tmp_path / 'out'))
    assert torch.equal(loaded(X), folded(X))


def test_a_directory_of_an_older_version_with_learned_input_ranges(tmp_path):
    """Version 0.1 wrote them without a dimension; layers that are only stored keep theirs as it was."""

    def build():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 2, 1))
        return mmgdrq.quantize(net, activation=dict(bits=4, range='learned')).train()

    net = build()
    net(X)
    folded = mmgdrq.fold(net.eval(), X)
    path = save_folded(folded, tmp_path / 'out')
    key = '2.activation_quantizer.threshold'
    rewrite(path, lambda tensors: tensors.update({key: tensors[key].reshape(())}))
    assert torch.equal(load_folded(build(), path)(X), folded(X))


def test_round_trip_of_a_norm_without_affine_parameters(tmp_path):
    folded = mmgdrq.fold(trained(affine=False), X)
    loaded = load_folded(quantized(affine=False), save_folded(folded, tmp_path / 'out'))
    assert torch.equal(loaded(X), folded(X))


def test_round_trip_of_a_float_tensor(tmp_path):
    rules = [
        dict(pattern='shared', activation=dict(bits=32)),
        dict(pattern='head', weight=dict(bits=32)),
        dict(pattern='stem', skip=True),
    ]
    net = mmgdrq.quantize(Net(), rules=rules).train()
    net(X)
    folded = mmgdrq.fold(net.eval(), X)
    loaded = load_folded(mmgdrq.quantize(Net(), rules=rules), save_folded(folded, tmp_path / 'out'))
    assert torch.equal(loaded(X), folded(X))


def test_a_loaded_model_can_be_written_again(deployed, tmp_path):
    folded, path = deployed
    loaded = load_folded(quantized(), path)
    again = load_folded(quantized(), save_folded(loaded, tmp_path / 'again'))
    assert torch.equal(again(X), folded(X))


def test_aliases_are_stored_once_and_stay_one_object(deployed):
    _, path = deployed
    stored = load_file(str(path / 'weights.safetensors'))
    assert sum(key.endswith('.weight') and ('shared' in key or 'levels' in key) for key in stored) == 1
    loaded = load_folded(quantized(), path)
    assert loaded.shared is loaded.levels[0] is loaded.levels[1]


def test_weights_take_their_real_bits(tmp_path):
    net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(4, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1))).train()
    net(torch.rand(1, 4, 8, 8))
    path = save_folded(mmgdrq.fold(net), tmp_path / 'out')
    stored = load_file(str(path / 'weights.safetensors'))
    assert stored['1.weight'].dtype == torch.uint8
    assert stored['1.weight'].numel() == 64 * 64 * 9 * 2 // 8
    assert stored['0.weight'].numel() == 64 * 4 * 9


def test_the_directory(deployed):
    _, path = deployed
    assert {file.name for file in path.iterdir()} == FILES
    assert (path / 'config.py').read_text() == 'model = 1\n'
    assert is_deployed(path)
    assert not is_deployed(path.parent)
    assert list(path.parent.iterdir()) == [path]


def test_an_earlier_model_is_replaced_without_leftovers(deployed):
    _, path = deployed
    (path / 'note.txt').write_text('of the old one')
    other = mmgdrq.fold(trained(bits=5), X)
    save_folded(other, path, 'model = 2\n')
    assert {file.name for file in path.iterdir()} == FILES
    assert (path / 'config.py').read_text() == 'model = 2\n'
    assert list(path.parent.iterdir()) == [path]
    assert torch.equal(load_folded(quantized(bits=5), path)(X), other(X))


@pytest.mark.parametrize('kind', ['directory', 'file'])
def test_anything_else_is_not_replaced(tmp_path, kind):
    out = tmp_path / 'out'
    if kind == 'file':
        out.write_text('precious')
    else:
        out.mkdir()
        (out / 'precious.txt').write_text('precious')
    with pytest.raises(CheckpointError, match='is not a deployed model, so it is not replaced'):
        save_folded(mmgdrq.fold(trained(), X), out)
    assert (out if kind == 'file' else out / 'precious.txt').read_text() == 'precious'
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize('where', ['save', 'replace_directory'])
def test_a_failure_while_writing_keeps_the_old_model(deployed, monkeypatch, where):
    folded, path = deployed

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(artifact, where, fail)
    with pytest.raises(OSError, match='disk full'):
        save_folded(mmgdrq.fold(trained(bits=5), X), path, 'model = 2\n')
    assert list(path.parent.iterdir()) == [path]
    assert torch.equal(load_folded(quantized(), path)(X), folded(X))


@pytest.mark.parametrize('name', ['manifest.json', 'weights.safetensors'])
def test_a_missing_file(deployed, name):
    _, path = deployed
    os.remove(path / name)
    assert_refused(path, name)


@pytest.mark.parametrize('keep', [0.0, 0.5, 0.999])
@pytest.mark.parametrize('name', ['manifest.json', 'weights.safetensors'])
def test_a_truncated_file(deployed, name, keep):
    _, path = deployed
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(len(data) * keep)])
    assert_refused(path, name)


@pytest.mark.parametrize('place', [0.01, 0.5, 0.999])
def test_an_altered_byte(deployed, place):
    _, path = deployed
    data = bytearray((path / 'weights.safetensors').read_bytes())
    data[int(len(data) * place)] ^= 1
    (path / 'weights.safetensors').write_bytes(data)
    assert_refused(path, 'truncated or altered')


@pytest.mark.parametrize('version', [1, 2, 4, 99, 0, True, '3', None])
def test_another_version(deployed, version):
    _, path = deployed
    rewrite_manifest(path, lambda manifest: manifest.update(version=version))
    assert_refused(path, f'has version {version}, this mmgdrq reads version 3')


@pytest.mark.parametrize('text', ['[]', '{}', '{"format": "onnx"}', '1', 'null', '', '\x00'])
def test_a_manifest_of_something_else(deployed, text):
    _, path = deployed
    (path / 'manifest.json').write_text(text)
    assert_refused(path, r'manifest\.json')


@pytest.mark.parametrize('key', ['layers', 'sha256'])
def test_a_manifest_without_a_part(deployed, key):
    _, path = deployed
    rewrite_manifest(path, lambda manifest: manifest.pop(key))
    assert_refused(path, 'out')


@pytest.mark.parametrize(
    'key', ['kind', 'weight_bits', 'weight_lowest', 'weight_stride', 'input', 'norm', 'shape', 'scaled']
)
def test_a_layer_without_a_part(deployed, key):
    _, path = deployed
    rewrite_manifest(path, lambda manifest: manifest['layers']['head'].pop(key))
    assert_refused(path, 'out')


@pytest.mark.parametrize('change', [dict(kind='lstm'), dict(norm='nowhere'), dict(input=[0]), dict(shape='big')])
def test_a_layer_with_a_wrong_part(deployed, change):
    _, path = deployed
    rewrite_manifest(path, lambda manifest: manifest['layers']['head'].update(change))
    assert_refused(path, 'out')


def test_damage_behind_a_right_checksum(deployed):
    _, path = deployed
    rewrite(path, lambda tensors: tensors.update({'shared.weight': tensors['shared.weight'][:-1]}))
    assert_refused(path, 'the weight of shared is damaged')
    rewrite(path, lambda tensors: tensors.pop('shared.weight'))
    assert_refused(path, 'the weight of shared is missing')


def test_tensors_that_are_missing_left_over_or_of_another_shape(deployed, tmp_path):
    folded, _ = deployed
    changes = [
        lambda tensors: tensors.pop('stem.1.running_mean'),
        lambda tensors: tensors.update(surplus=torch.ones(1)),
        lambda tensors: tensors.update({'act.weight': torch.ones(2)}),
    ]
    for change, name in zip(changes, ('stem.1.running_mean', 'surplus', 'act.weight')):
        path = save_folded(folded, tmp_path / name)
        rewrite(path, change)
        assert_refused(path, name)


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(bits=4), 'bits'),
        (dict(width=8), 'shape'),
    ],
)
def test_the_model_of_another_config(deployed, args, match):
    _, path = deployed
    assert_refused(path, match, quantized(**args))


def test_a_model_with_other_quantized_layers(deployed):
    _, path = deployed
    net = mmgdrq.quantize(Net(), dict(bits=3), rules=[dict(pattern='shared', skip=True)])
    assert_refused(path, 'it was made from another config: shared', net)
    assert_refused(path, 'another config', Net())


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / 'file').write_text('x')
    assert_refused(tmp_path / 'file', 'manifest')
    assert_refused(tmp_path / 'nowhere', 'does not exist')
