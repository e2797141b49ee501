"""ONNX graphs of folded models, run by real engines."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmgdrq
from mmgdrq.deploy import plug_engine, save_folded
from mmgdrq.deploy.deployment import export
from mmgdrq.errors import CheckpointError, ExportError
from mmgdrq.openmmlab.deployed.deployed_config import parse_config
from mmgdrq_runtime.engines import open_engine

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
ENGINES = ('onnxruntime', 'openvino')


def all_layers(bits: int) -> list[dict]:
    return [dict(pattern='*', weight=dict(bits=bits), activation=dict(bits=max(bits, 4)))]


class Net(nn.Module):
    """A classifier with the methods at which the graphs of a real one begin and end."""

    def __init__(self, groups: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 12, 3, stride=2, padding=1, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def extract_feat(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.head(self.extract_feat(x))


def folded_net(bits: int = 2, signed: bool = False, seed: int = 0, **net):
    torch.manual_seed(seed)
    model, x = Net(**net), torch.randn(2, 4, 12, 12)
    x = x if signed else x.abs()
    mmgdrq.quantize(model, rules=all_layers(bits))
    nn.init.uniform_(model.norm.weight, -1.5, 1.5)  # negative ones too
    nn.init.normal_(model.norm.bias)
    model.norm.weight.data[3] = 0
    for _ in range(3):
        model(x)
    return mmgdrq.fold(model.eval(), example=x), x


def run_graph(engine: str, folder, x):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    return torch.from_numpy(open_engine(engine, folder / 'dense.onnx')(x.numpy())[0])


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('bits', [2, 3, 4, 5, 8])
def test_the_engine_gives_the_folded_result(tmp_path, bits, signed, engine):
    folded, x = folded_net(bits, signed)
    export(folded, lambda model: model(x), tmp_path, 'openvino')
    expected = folded(x)
    assert torch.allclose(run_graph(engine, tmp_path, x), expected, atol=2e-4 * expected.abs().max().item())


@pytest.mark.parametrize('net', [dict(groups=4), dict(groups=2, bias=True), dict(bias=True)], ids=str)
@pytest.mark.parametrize('profile', ENGINES)
def test_kinds_of_convolutions_in_the_engine_of_the_profile(tmp_path, net, profile):
    folded, x = folded_net(**net)
    export(folded, lambda model: model(x), tmp_path, profile)
    expected = folded(x)
    error = (run_graph(profile, tmp_path, x) - expected).abs().max()
    # the integer bias of the profile 'onnxruntime' is rounded, and an input code of the head may flip by it
    one_code = (folded.head.weight.abs().amax(1) * folded.head.scale.abs()).max()
    assert error < 2e-4 * expected.abs().max() + (one_code if profile == 'onnxruntime' else 0)


@pytest.mark.parametrize('profile', ENGINES)
def test_the_graph_is_valid_and_free_in_batch_and_size(tmp_path, profile):
    folded, x = folded_net()
    (exported,) = export(folded, lambda model: model(x), tmp_path, profile)
    onnx.checker.check_model(str(tmp_path / 'dense.onnx'), full_check=True)
    assert exported.entry()['blocks'] == len(exported.blocks) == 2
    other = torch.rand(3, 4, 20, 16)
    assert run_graph(profile, tmp_path, other).shape == (3, 5)


def test_weights_take_two_bits_in_the_graph(tmp_path):
    sizes = [wide_graph_size(bits, tmp_path) for bits in (2, 8)]
    weights = 4 * 12 * 15 * 15
    assert sizes[1] - sizes[0] > weights * (1 - 2 / 8) - 4500  # two tables and some nodes more


def wide_graph_size(bits: int, folder) -> int:
    model, x = Net(), torch.rand(2, 4, 8, 8)
    model.conv = nn.Conv2d(4, 12, 15, padding=7, bias=False)
    mmgdrq.quantize(model, rules=all_layers(bits))
    model(x)
    export(mmgdrq.fold(model.eval(), example=x), lambda m: m(x), folder)
    return (folder / 'dense.onnx').stat().st_size


@pytest.fixture
def deployed(tmp_path):
    folded, x = folded_net()

    def graphs(folder):
        (folder / 'openvino').mkdir()
        parts = export(folded, lambda model: model(x), folder / 'openvino')
        return {'openvino': {exported.part.name: exported.entry() for exported in parts}}

    return folded, x, save_folded(folded, tmp_path / 'out', graphs=graphs)


def test_an_engine_takes_the_place_of_the_dense_part(deployed):
    pytest.importorskip('openvino', reason='openvino is not installed')
    folded, x, path = deployed
    expected = folded(x)
    plug_engine(folded, path, 'openvino')
    folded.conv.weight.data.zero_()  # torch's own weights play no part any more
    assert torch.allclose(folded(x), expected, atol=2e-4 * expected.abs().max().item())
    assert folded(x[:0]).shape == (0, 5)


def test_an_engine_without_graphs(deployed):
    folded, _, path = deployed
    with pytest.raises(CheckpointError, match=r'has no graphs for onnxruntime \(it has: openvino\)'):
        plug_engine(folded, path, 'onnxruntime')


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'remove'])
def test_a_damaged_graph_is_refused(deployed, damage):
    folded, _, path = deployed
    file = path / 'openvino' / 'dense.onnx'
    content = file.read_bytes()
    if damage == 'remove':
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(content[:middle] if damage == 'truncate' else flipped)
    with pytest.raises(CheckpointError, match=r'dense\.onnx: is missing, truncated or altered'):
        plug_engine(folded, path, 'openvino')


def test_a_manifest_cannot_name_files_elsewhere(deployed, tmp_path):
    folded, _, path = deployed
    manifest = json.loads((path / 'manifest.json').read_text())
    manifest['graphs']['openvino']['dense']['file'] = '../../elsewhere.onnx'
    (path / 'manifest.json').write_text(json.dumps(manifest))
    (tmp_path / 'elsewhere.onnx').write_bytes((path / 'openvino' / 'dense.onnx').read_bytes())
    with pytest.raises(CheckpointError, match='was altered'):
        plug_engine(folded, path, 'openvino')


def test_errors_of_engines(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"'tflite' is unknown\. Expected one of onnxruntime, openvino"):
        open_engine('tflite', tmp_path / 'x.onnx')
    monkeypatch.setitem(__import__('sys').modules, 'openvino', None)
    with pytest.raises(ExportError, match='pip install openvino'):
        open_engine('openvino', tmp_path / 'x.onnx')


@pytest.mark.parametrize('engine', ENGINES)
def test_an_engine_names_the_graph_that_it_refuses(tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    (tmp_path / 'x.onnx').write_bytes(b'not a graph')
    with pytest.raises(ExportError, match=rf'x\.onnx: {engine} does not accept'):
        open_engine(engine, tmp_path / 'x.onnx')


def test_a_model_without_a_known_seam(tmp_path):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.rand(1, 3, 8, 8)
    mmgdrq.quantize(model)
    model(x)
    with pytest.raises(ExportError, match='Sequential has neither rpn_head'):
        export(mmgdrq.fold(model.eval(), example=x), lambda m: m(x), tmp_path)


@pytest.mark.parametrize(
    'conv',
    [
        dict(kernel_size=3, padding='valid', stride=2),
        dict(kernel_size=3, padding='same'),
        dict(kernel_size=(3, 5), padding='same', dilation=(2, 1)),
        dict(kernel_size=2, padding='same', dilation=2),
    ],
    ids=str,
)
@pytest.mark.parametrize('profile', ENGINES)
def test_padding_by_name(tmp_path, conv, profile):
    torch.manual_seed(0)
    model, x = Net(), torch.rand(2, 4, 12, 12)
    model.conv = nn.Conv2d(4, 12, **conv)
    mmgdrq.quantize(model, rules=[dict(pattern='*', activation=dict(bits=8)), dict(pattern='head', skip=True)])
    model(x)
    folded = mmgdrq.fold(model.eval(), example=x)
    export(folded, lambda m: m(x), tmp_path, profile)
    expected = folded(x)
    assert torch.allclose(run_graph(profile, tmp_path, x), expected, atol=2e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    'conv', [dict(kernel_size=2, padding='same'), dict(kernel_size=3, padding=1, padding_mode='reflect')], ids=str
)
def test_padding_that_a_block_does_not_do(tmp_path, conv):
    model, x = Net(), torch.rand(2, 4, 8, 8)
    model.conv = nn.Conv2d(4, 12, **conv)
    mmgdrq.quantize(model)
    model(x)
    with pytest.raises(ExportError, match='conv has padding='):
        export(mmgdrq.fold(model.eval(), example=x), lambda m: m(x), tmp_path)


def test_a_config_is_read_and_not_run(tmp_path):
    mark = tmp_path / 'mark'
    for text in (
        f"open({str(mark)!r}, 'w')",
        f"a = open({str(mark)!r}, 'w')",
        'import os',
        'a = dict(b=__import__("os"))',
    ):
        with pytest.raises(CheckpointError, match='is not a plain config'):
            parse_config(text, 'config.py')
    assert not mark.exists()


def test_a_config_as_mmengine_dumps_it():
    values = dict(a=dict(b=[1, (2.5, None)], c='x'), d={'k-1': True}, e=-1)
    assert parse_config(Config(values).pretty_text, 'config.py') == values


def test_an_unknown_profile(tmp_path):
    folded, x = folded_net()
    with pytest.raises(ExportError, match="'tensorflow' is unknown"):
        export(folded, lambda m: m(x), tmp_path, 'tensorflow')


def test_a_copy_on_the_cpu_is_exported(tmp_path, monkeypatch):
    """There the engines are, and the samples that they are compared on."""
    folded, x = folded_net()
    moved = []
    monkeypatch.setattr(Net, 'cpu', lambda self: moved.append(self) or self)
    ran = []
    export(folded, lambda model: ran.append(model) or model(x), tmp_path)
    assert moved
    assert folded not in moved
    assert folded not in moved
    assert folded not in ran


def test_a_part_that_got_no_input(tmp_path):
    folded, _ = folded_net()
    with pytest.raises(ExportError, match='the sample images never reached dense'):
        export(folded, lambda m: None, tmp_path)


def test_numpy_arrays_go_in_and_out(tmp_path):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    folded, x = folded_net()
    export(folded, lambda model: model(x), tmp_path)
    (result,) = open_engine('onnxruntime', tmp_path / 'dense.onnx')(x.numpy())
    assert isinstance(result, np.ndarray)


@pytest.mark.parametrize('entry', [{}, 'x', dict(file='dense.onnx'), dict(file=1, tree='', sha256='')], ids=str)
def test_a_manifest_with_a_malformed_graph(deployed, monkeypatch, entry):
    folded, _, path = deployed
    graphs = {'openvino': {'dense': entry}}
    monkeypatch.setattr('mmgdrq.deploy.plugged_engine.read_manifest', lambda path: {'graphs': graphs})
    with pytest.raises(CheckpointError, match='its manifest lacks file or tree or sha256 of a graph for openvino'):
        plug_engine(folded, path, 'openvino')
