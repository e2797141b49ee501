"""Files and settings of a stranger: nothing of them runs, and each gets one clear error."""

import contextlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import MODELS, TRANSFORMS
from torch import nn

import mmgdrq
from mmgdrq.errors import CheckpointError, ConfigError
from mmgdrq.openmmlab.commands import run
from mmgdrq.quant import ActivationSpec, WeightSpec, make_spec
from mmgdrq.training.schedule import Schedule
from mmgdrq_runtime.manifest import file_sha256
from tests.helpers.threads import results_of_threads
from tests.helpers.toy import toy_config, toy_runner
from tests.openmmlab.test_checkpoint_types import HostilePickle, hostile

ROOT = Path(__file__).resolve().parents[2]
IMAGE = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
CODE = "x = __import__('os').system('touch {}')\n"


def run_tool(monkeypatch, name: str, *arguments) -> int:
    """Run a tool in this process; its status."""
    command = importlib.import_module(f'mmgdrq.openmmlab.commands.{name}')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')  # what the tool sets with an older torch ends with the test
    del os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD']
    try:
        run.run_tool(lambda: command.main([*map(str, arguments)]))
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def config(tmp_path) -> Path:
    """A config file of the toy model."""
    path = tmp_path / 'config.py'
    toy_config(tmp_path / 'run', 1, dict(), custom_imports=dict(imports=['tests.helpers.toy'])).dump(path)
    return path


TOOLS = {
    'train, load_from': ('train', '{config}', '--cfg-options', 'load_from={file}'),
    'train, resume': ('train', '{config}', '--resume', '{file}'),
    'train, resume the latest': ('train', '{config}', '--resume'),
    'test': ('test', '{config}', '{file}'),
    'deploy': ('deploy', '{config}', '{file}', '--out', '{out}'),
    'analyze': ('analyze', '{config}', '{file}', '--out', '{out}'),
}


@pytest.mark.parametrize('kind', ['os.system', 'getattr chain'])
@pytest.mark.parametrize('tool', TOOLS)
def test_no_tool_runs_what_a_checkpoint_holds(tmp_path, monkeypatch, capsys, config, tool, kind):
    marker, file = tmp_path / 'marker', tmp_path / 'run/epoch_1.pth'
    file.parent.mkdir()
    content = dict(state_dict=dict(w=torch.ones(1)), meta=dict(bad=hostile(kind, str(marker))))
    torch.save(content, file, pickle_module=HostilePickle)
    name, *arguments = (part.format(config=config, file=file, out=tmp_path / 'out') for part in TOOLS[tool])
    assert run_tool(monkeypatch, name, *arguments) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith('error: checkpoint: it is not loaded')
    assert not marker.exists()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['os.system', 'getattr chain'])
@pytest.mark.skipif(torch.__version__ < '2.6', reason='an older torch unpickles as it is; a warning says so')
def test_inferencers_run_nothing_either(tmp_path, kind):
    from mmengine.runner import load_checkpoint

    marker, file = tmp_path / 'marker', tmp_path / 'bad.pth'
    torch.save(dict(state_dict=hostile(kind, str(marker))), file, pickle_module=HostilePickle)
    with pytest.raises(Exception, match=r'Weights only load failed|may not read'):
        load_checkpoint(nn.Linear(1, 1), str(file))
    assert not marker.exists()


@pytest.mark.parametrize('hooks', [[dict(type='mmgdrq.GDRQHook')], [dict(type='mmgdrq.CheckpointFitHook')]])
def test_resuming_does_not_run_the_config_of_a_checkpoint(tmp_path, hooks):
    """mmengine runs ``meta['config']`` as Python, to look for the number of GPUs."""
    toy_runner(tmp_path, 1, None, custom_hooks=hooks).train()
    marker, file = tmp_path / 'marker', tmp_path / 'epoch_1.pth'
    content = torch.load(file)
    content['meta']['config'] = CODE.format(marker)
    torch.save(content, file)
    toy_runner(tmp_path / 'b', 2, None, custom_hooks=hooks, load_from=str(file), resume=True).train()
    assert not marker.exists()


def test_that_config_would_run_otherwise(tmp_path):
    toy_runner(tmp_path, 1).train()
    marker, file = tmp_path / 'marker', tmp_path / 'epoch_1.pth'
    content = torch.load(file)
    content['meta']['config'] = CODE.format(marker)
    torch.save(content, file)
    toy_runner(tmp_path / 'b', 2, load_from=str(file), resume=True).train()
    assert marker.exists()


# ------------------------------------------------------------------ deployed directories


@pytest.fixture
def deployed(tmp_path):
    net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    net(torch.rand(2, 3, 5, 5))
    from mmgdrq.deploy import save_folded

    return net, save_folded(mmgdrq.fold(net), tmp_path / 'model')


@pytest.mark.parametrize(
    'change',
    [
        {'weight_bits': 10**9},
        {'shape': [10**9, 10**9, 3, 3]},
        {'shape': [-4, 3, 3, 3]},
        {'norm': '../../secret'},
        {'norm': '__class__'},
        {'kind': '__import__'},
        {'input': [0, 10**30]},
        {'input': ['a', {}]},
        {'weight_lowest': 2.5},
    ],
    ids=str,
)
def test_a_hostile_manifest_with_a_right_checksum(deployed, change):
    from mmgdrq.deploy import load_folded
    from mmgdrq_runtime.manifest import json_sha256

    net, path = deployed
    manifest = json.loads((path / 'manifest.json').read_text())
    manifest['layers']['0'].update(change)
    manifest['layers_sha256'] = json_sha256(manifest['layers'])
    (path / 'manifest.json').write_text(json.dumps(manifest))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_folded(net, path)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_links_and_the_config_of_a_deployed_directory_are_not_followed(deployed):
    """Nothing but the two data files is read: the config is Python, and only the user's own one runs."""
    from mmgdrq.deploy import load_folded

    net, path = deployed
    marker = path / 'marker'
    (path / 'config.py').write_text(CODE.format(marker))
    os.symlink('/etc/passwd', path / 'link.py')
    load_folded(net, path)
    assert not marker.exists()


def put_config(path, text: str) -> None:
    """Another config, with the checksum that a stranger would give it."""
    (path / 'config.py').write_text(text)
    manifest = json.loads((path / 'manifest.json').read_text())
    manifest['config_sha256'] = file_sha256(path / 'config.py')
    (path / 'manifest.json').write_text(json.dumps(manifest))


COMMAND = "dict(type='os.system', command='touch {}')"
STRANGE = {
    'model': 'model = {bad}\n',
    'part of the model': "model = dict(type='ToyModel', data_preprocessor={bad})\n",
    'base of the model': "model = dict(type='mmgdrq.Quantized', base_type='os.system', command='touch {marker}')\n",
    'transform': "model = dict(type='ToyModel')\ntest_dataloader = dict(dataset=dict(pipeline=[{bad}]))\n",
    'scope': "default_scope = 'stranger'\nmodel = dict(type='ToyModel')\n",
    'scope of a part': "model = dict(type='ToyModel', data_preprocessor=dict(type='ToyModel', _scope_='stranger'))\n",
    'name in a scope': "model = dict(type='stranger.Model')\n",
    'what mmcv evaluates': """
model = dict(type='ToyModel', nms=dict(type='__import__("os").system("touch {marker}")'))
""",
    'module': "model = dict(type='stranger')\n",
    'code': "model = __import__('os').system('touch {marker}')\n",
}


@pytest.mark.parametrize('kind', STRANGE)
def test_no_name_in_the_config_of_a_deployed_directory_is_imported(deployed, tmp_path, monkeypatch, kind):
    """mmengine takes a type that it does not know for a place to import from."""
    _, path = deployed
    marker = tmp_path / 'marker'
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'stranger').mkdir()
    for file in ('__init__', 'registry'):
        (tmp_path / f'stranger/{file}.py').write_text(f'open({str(marker)!r}, "w")')
    put_config(path, STRANGE[kind].format(bad=COMMAND.format(marker), marker=marker))
    with pytest.raises(CheckpointError, match=r'config\.py'):
        mmgdrq.load_deployed(path, engine='torch')
    assert not marker.exists()


def test_threads_that_load_at_once_get_their_own_models_and_a_strange_config_is_refused(deployed, tmp_path):
    """Eight of them, one with a hostile config; nothing of mmengine is left changed."""
    from mmengine.registry import registry

    _, path = deployed
    resolver, marker, bad = registry.get_object_from_string, tmp_path / 'marker', tmp_path / 'bad'
    put_config(
        path,
        "model = dict(type='PlainNet')\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='PassedOn')]))\n"
        "custom_hooks = [dict(type='mmgdrq.GDRQHook')]\n",
    )
    shutil.copytree(path, bad)
    put_config(bad, f'model = {COMMAND.format(marker)}\n')
    with torch.no_grad():
        expected = mmgdrq.load_deployed(path, engine='torch').model(IMAGE)

    @torch.no_grad()
    def work(number: int) -> bool:
        model = mmgdrq.load_deployed(bad if number == 3 else path, engine='torch').model
        return torch.equal(model(IMAGE), expected)

    for _ in range(3):
        results = results_of_threads(work, 8)
        refused = results.pop(3)
        assert results == [True] * 7
        assert isinstance(refused, CheckpointError)
        assert "type 'os.system'" in str(refused)
        assert registry.get_object_from_string is resolver
    assert not marker.exists()


@MODELS.register_module(force=True)
class PlainNet(nn.Sequential):
    """The network of the deployed directory."""

    def __init__(self, data_preprocessor=None) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_mmengine_would_run_such_a_name(tmp_path):
    MODELS.build(dict(type='os.system', command=f'touch {tmp_path}/marker'))
    assert (tmp_path / 'marker').exists()


@TRANSFORMS.register_module(force=True)
class PassedOn:
    """A transform that changes nothing."""

    def __call__(self, results: dict) -> dict:
        return results


def test_registered_classes_may_be_named_by_their_place(deployed):
    """As configs with lazy imports do; the model then does not fit, but it was built."""
    _, path = deployed
    put_config(
        path,
        "model = dict(type='tests.helpers.toy.ToyModel')\ntest_dataloader = dict(dataset=dict(pipeline=[dict("
        "type='PassedOn')]))\ncustom_hooks = [dict(type='mmgdrq.GDRQHook', weight=dict(bits=2))]\n",
    )
    with pytest.raises(CheckpointError, match='made from another config'):
        mmgdrq.load_deployed(path, engine='torch')


# ------------------------------------------------------------------ settings

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**12, -(10**12), 2**63, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(['mean', 'search', 'learned', 'auto']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
WEIGHT_KEYS = ['bits', 'group_size', 'range', 'k', 'grid', 'p', 'other']
ACTIVATION_KEYS = ['bits', 'range', 'k', 'momentum', 'signed', 'p', 'other']


@given(st.dictionaries(st.sampled_from(WEIGHT_KEYS), VALUES, max_size=3) | VALUES)
def test_any_weight_setting_is_right_or_an_error(config):
    check_setting(lambda: use_weight(make_spec(WeightSpec, config, 'weight')))


@given(st.dictionaries(st.sampled_from(ACTIVATION_KEYS), VALUES, max_size=3) | VALUES)
def test_any_activation_setting_is_right_or_an_error(config):
    check_setting(lambda: use_activation(make_spec(ActivationSpec, config, 'activation')))


@given(
    st.dictionaries(st.sampled_from(['reshape', 'quantize', 'quantize_activation', 'freeze', 'by_epoch']), VALUES)
    | VALUES
)
def test_any_stages_are_right_or_an_error(config):
    check_setting(lambda: Schedule.from_config(config).stage_at(3))


@given(st.lists(st.dictionaries(st.sampled_from(['pattern', 'kind', 'skip', 'weight', 'activation']), VALUES)) | VALUES)
def test_any_rules_are_right_or_an_error(rules):
    check_setting(lambda: mmgdrq.plan(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), rules=rules))


def check_setting(use) -> None:
    with contextlib.suppress(ConfigError):
        use()


def use_weight(spec: WeightSpec) -> None:
    layer = mmgdrq.Conv2d(3, 4, 3, weight=spec)
    assert bool(torch.isfinite(layer.weight_quantizer(layer.weight)).all())


def use_activation(spec: ActivationSpec) -> None:
    layer = mmgdrq.Linear(3, 4, activation=spec).train()
    assert bool(torch.isfinite(layer.activation_quantizer(torch.randn(2, 3))).all())
