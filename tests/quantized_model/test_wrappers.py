"""Wrappers of torch and of others around a quantized model."""

import copy
import warnings

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmpretrain.models.peft import LoRAModel
from torch import nn

import mmgdrq
from mmgdrq.errors import QuantizationError
from tests.helpers.nets import inputs, small_net, trained
from tests.helpers.toy import error_of, toy_runner


def test_a_replica_of_data_parallel_does_not_train():
    model = trained(small_net())
    expected = model.eval()(inputs())
    replica = model._replicate_for_data_parallel()  # what nn.DataParallel does for each GPU
    for name, child in model._modules.items():
        replica._modules[name] = child
    assert torch.equal(replica.eval()(inputs()), expected)
    with pytest.raises(QuantizationError, match='DistributedDataParallel'):
        replica.train()(inputs())
    model.train()(inputs())


class Filtered(nn.Sequential):
    """Saves its last layer alone."""

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if key.startswith('7.')}


def test_a_state_dict_without_the_ranges_is_refused_before_training():
    model = mmgdrq.quantize(Filtered(*small_net())).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(QuantizationError, match=r'state_dict\(\) of Filtered leaves out 15 ranges .* such as 0\.'):
        model(inputs())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    mmgdrq.set_stage(model, 'float')
    model.eval()(inputs())


@MODELS.register_module(force=True)
class ToyBackbone(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.proj(inputs[:, :, :2, :2].flatten(1)).relu())
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return logits


@MODELS.register_module(force=True)
class ToyLoRA(LoRAModel, BaseModel):
    """mmpretrain's, in a runner."""

    def __init__(self, module, **kwargs) -> None:
        super().__init__(module=module, alpha=1, rank=2, drop_rate=0.0, targets=[dict(type='proj')])
        self.data_preprocessor = self.module.data_preprocessor

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


LORA = dict(type='ToyLoRA', module=dict(type='ToyBackbone'))
BUILT = dict(
    type='ToyLoRA', module=dict(type='mmgdrq.Quantized', base_type='ToyBackbone', quant=dict(weight=dict(bits=4)))
)


@pytest.mark.parametrize(('model', 'hook'), [(LORA, dict()), (BUILT, None)], ids=['hook', 'builder'])
def test_a_lora_model_is_refused_before_training(tmp_path, model, hook):
    hooks = dict(custom_hooks=[dict(type='mmgdrq.ScaleClipHook')]) if hook is None else {}
    runner = toy_runner(
        tmp_path, 1, hook, model=copy.deepcopy(model), val_cfg=None, val_dataloader=None, val_evaluator=None, **hooks
    )
    assert 'leaves out' in str(error_of(runner))
    assert not list(tmp_path.glob('*.pth'))


def steps(model) -> None:
    for seed in range(25):
        model(inputs(seed))


def test_ranges_are_looked_at_in_a_training_loop_of_ones_own():
    """One pass on made-up images decides that the images are not negative."""
    torch.manual_seed(0)
    model = mmgdrq.quantize(small_net()).train()
    model(torch.rand(2, 3, 6, 6))
    with pytest.warns(UserWarning, match='mmgdrq') as caught:
        steps(model)
    texts = [str(warning.message) for warning in caught if 'mmgdrq' in str(warning.message)]
    assert len(texts) == 1
    assert "the input of '0' is negative in" in texts[0]
    assert 'signed=True' in texts[0]
    assert not model[0].activation_quantizer._forward_pre_hooks


def test_nothing_is_said_of_inputs_that_fit_and_once_of_a_layer_that_is_not_called():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.idle, self.last = small_net(), nn.Linear(3, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.net(x))

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        steps(mmgdrq.quantize(small_net()).train())
    model = mmgdrq.quantize(Partly()).train()
    with pytest.warns(UserWarning, match="the input of 'idle' has no range") as caught:
        steps(model)
    assert len(caught) == 1


def test_a_model_starts_anew_by_calibration_or_from_float_weights():
    torch.manual_seed(0)
    float_weights = small_net().state_dict()
    images = [inputs(seed) for seed in range(4)]
    for start in (
        lambda model: mmgdrq.calibrate(model, images, progress=False),
        lambda model: model.load_state_dict(float_weights),
    ):
        model = mmgdrq.quantize(small_net()).train()
        model(torch.rand(2, 3, 6, 6))
        start(model)
        model.train()(images[0])
        assert bool(model[0].activation_quantizer.signed)
