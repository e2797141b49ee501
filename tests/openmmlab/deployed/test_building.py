"""A config gives the same model without its runner and hook."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner

import mmgdrq
from mmgdrq import Conv2d, GDRQHook
from mmgdrq.errors import CheckpointError
from mmgdrq.openmmlab.deployed.building import build_model, model_config, quantize_as_trained
from tests.helpers.toy import toy_config
from tests.reliability.deploying import ToyClassifier

QUANT = dict(weight=dict(bits=4), activation=dict(bits=8))
REGISTERED = dict(type='ToyRegistered')
BUILT = dict(type='mmgdrq.Quantized', base_type='ToyClassifier', quant=QUANT)


@MODELS.register_module(force=True)
class ToyRegistered(ToyClassifier):
    """One layer is quantized by the model itself, as with ``conv_cfg``."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0] = Conv2d(16, 16, 3, bias=False, weight=dict(bits=2), activation=dict(bits=4))


def assert_same(cfg) -> None:
    """The model is that of a runner whose hooks have run."""
    runner = Runner.from_cfg(cfg)
    runner.call_hook('before_run')
    model = build_model(model_config(cfg))
    quantize_as_trained(model, cfg, 'config.py')
    x = torch.rand(2, 3, 8, 8)
    if hasattr(runner.model, 'gdrq_stage'):
        assert str(mmgdrq.state(model).plan) == str(mmgdrq.state(runner.model).plan)
    runner.model.train()(x)
    model.load_state_dict(runner.model.state_dict(), strict=True)
    assert torch.equal(model.eval()(x), runner.model.eval()(x))


CASES = {
    'the hook': (dict(type='ToyClassifier'), QUANT),
    'registered layers beside the hook': (REGISTERED, QUANT),
    'registered layers alone': (REGISTERED, None),
    'the builder': (BUILT, None),
    'the builder beside the hook': (BUILT, {}),
    'the hook with its simulation': (dict(type='ToyClassifier'), dict(QUANT, deploy='onnxruntime')),
    'the builder beside the simulation of the hook': (BUILT, dict(deploy='onnxruntime')),
}


@pytest.mark.parametrize('case', CASES)
def test_it_is_the_model_of_the_runner(tmp_path, case):
    model, hook = CASES[case]
    if hook and 'deploy' in hook:
        pytest.importorskip('onnx', reason='onnx is not installed')
    assert_same(toy_config(tmp_path, 1, hook, model=model))


def test_the_hook_as_a_class():
    """As in configs of pure Python."""
    model = ToyClassifier()
    quantize_as_trained(model, dict(custom_hooks=[dict(type=GDRQHook, **QUANT)]), 'config.py')
    assert [row.weight.bits for row in mmgdrq.state(model).plan] == [8, 4, 8]


def test_a_config_that_quantizes_nothing(tmp_path):
    cfg = toy_config(tmp_path, 1, None)
    with pytest.raises(CheckpointError, match=r'config\.py: it has neither GDRQHook nor'):
        quantize_as_trained(build_model(model_config(cfg)), cfg, 'config.py')
