"""What a quantized model is after it was copied, saved, averaged, moved, compiled, wrapped or taken apart."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from torch import fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded
from mmgdrq.errors import ConfigError, FoldError, QuantizationError
from mmgdrq.layers.quantizers.quantizer import Quantizer
from tests.helpers.nets import assert_same, inputs, small_net, trained


def pickled(model):
    """The model after ``torch.save`` of the module itself."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def reloaded(model):
    """A new model with the state dict of another one."""
    new = mmgdrq.quantize(small_net(), dict(bits=3), dict(bits=4), stage=mmgdrq.get_stage(model))
    new.load_state_dict(copy.deepcopy(model.state_dict()))
    return new.train(model.training)


COPIES = {
    'deepcopy': copy.deepcopy,
    'pickle': pickled,
    'state_dict': reloaded,
    'averaged': lambda model: AveragedModel(model).module,
    'averaged with buffers': lambda model: AveragedModel(model, use_buffers=True).module,
    'averaged by mmengine': lambda model: ExponentialMovingAverage(model, update_buffers=True).module.requires_grad_(),
    'to': lambda model: copy.deepcopy(model).to('cpu', torch.float64).to(torch.float32),
}


def same_state(model) -> None:
    """The root and all its quantizers hold one object."""
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    assert len(quantizers) == 8
    assert all(quantizer.state is mmgdrq.state(model) for quantizer in quantizers)


def train(model, seeds=(7, 8)) -> list:
    """Losses of some steps."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(inputs(seed)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def evaluated(model, seed=20):
    with torch.no_grad():
        return model.eval()(inputs(seed))


@pytest.mark.parametrize('stage', ['float', 'reshape', 'quantize_weight', 'quantize'])
@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('made', COPIES.values(), ids=COPIES)
def test_a_copy_computes_and_trains_as_the_model(made, stage, frozen):
    model = trained(small_net())
    mmgdrq.set_stage(model, stage)
    mmgdrq.freeze(model, frozen and made is not reloaded)
    copied = made(model)
    same_state(model)
    same_state(copied)
    assert mmgdrq.state(copied) is not mmgdrq.state(model)
    assert torch.equal(evaluated(copied), evaluated(model))
    assert mmgdrq.get_stage(copied) == stage
    assert str(mmgdrq.state(copied).plan) == str(mmgdrq.state(model).plan)
    assert train(copied) == train(model)
    assert_same(copied.state_dict(), model.state_dict())
    assert torch.equal(evaluated(copied), evaluated(model))


@pytest.mark.parametrize('made', COPIES.values(), ids=COPIES)
def test_a_copy_goes_its_own_way(made):
    model = trained(small_net())
    copied = made(model)
    before = copy.deepcopy(model.state_dict())
    mmgdrq.set_stage(copied, 'reshape')
    mmgdrq.freeze(copied)
    train(copied)
    assert mmgdrq.get_stage(model) == 'quantize'
    assert not mmgdrq.state(model).frozen
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize('made', COPIES.values(), ids=COPIES)
def test_a_copy_that_trains_outside_of_its_forward_pass_is_refused(made):
    model = trained(small_net())
    copied = made(model).train()
    for net in (model, copied):
        with pytest.raises(QuantizationError, match='outside of the forward pass'):
            net.forward(inputs())
    evaluated(copied)
    with pytest.raises(QuantizationError, match='outside of the forward pass'):
        copied.train().forward(inputs())


@pytest.mark.parametrize('use_buffers', [False, True])
@pytest.mark.parametrize('stage', ['reshape', 'quantize_weight', 'quantize'])
def test_an_averaged_model_has_one_truth_about_its_stage(stage, use_buffers):
    model = mmgdrq.quantize(small_net(), dict(bits=3), dict(bits=4), stage='float').train()
    averaged = AveragedModel(model, use_buffers=use_buffers)
    mmgdrq.set_stage(model, stage)
    train(model)
    mmgdrq.freeze(model)
    averaged.update_parameters(model)
    assert torch.equal(evaluated(averaged), evaluated(model))
    assert mmgdrq.get_stage(averaged.module) == stage
    assert mmgdrq.state(averaged.module).frozen
    loaded = reloaded(averaged.module)
    assert torch.equal(evaluated(loaded), evaluated(model))


@pytest.mark.skipif(torch.__version__ < '2.11', reason='the compiler of an older torch does not follow our layers')
def test_a_compiled_model_follows_its_stage():
    torch._dynamo.reset()
    model = trained(small_net())
    compiled = torch.compile(model, backend='eager')
    other = copy.deepcopy(model)
    for stage in ('reshape', 'quantize'):
        mmgdrq.set_stage(model, stage)
        mmgdrq.set_stage(other, stage)
        torch.testing.assert_close(torch.tensor(train(compiled)), torch.tensor(train(other)), rtol=1e-4, atol=0)
        torch.testing.assert_close(evaluated(compiled), evaluated(other), rtol=1e-4, atol=1e-5)
    same_state(model)


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/ranks', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('broadcast', [False, True])
def test_a_distributed_model_trains_as_the_model(group, broadcast):
    model = trained(small_net())
    other = copy.deepcopy(model)
    wrapped = DistributedDataParallel(model, broadcast_buffers=broadcast)
    assert train(wrapped) == train(other)
    mmgdrq.set_stage(wrapped.module, 'reshape')
    mmgdrq.set_stage(other, 'reshape')
    assert train(wrapped) == train(other)
    assert torch.equal(evaluated(wrapped), evaluated(other))


def traced(model):
    """An ``fx.GraphModule`` of a float model."""
    return fx.symbolic_trace(model)


def quantized_graph():
    """With the same model that is no graph."""
    graph = mmgdrq.quantize(traced(small_net()), dict(bits=3), dict(bits=4)).train()
    plain = mmgdrq.quantize(small_net(), dict(bits=3), dict(bits=4)).train()
    assert train(graph) == train(plain)
    same_state(graph)
    return graph, plain


WITH_HOOKS = hasattr(fx.GraphModule, '_register_deepcopy_hook')


@pytest.mark.skipif(not WITH_HOOKS, reason='copies of a GraphModule of an older torch cannot be mended')
def test_a_copied_graph_module_is_a_quantized_model():
    graph, plain = quantized_graph()
    copied = copy.deepcopy(copy.deepcopy(graph))
    same_state(copied)
    assert mmgdrq.state(copied) is not mmgdrq.state(graph)
    mmgdrq.set_stage(copied, 'reshape')
    assert mmgdrq.get_stage(graph) == 'quantize'
    copied.load_state_dict(graph.state_dict())
    assert mmgdrq.get_stage(copied) == 'reshape'
    mmgdrq.set_stage(copied, 'quantize')
    assert train(copied) == train(plain)
    assert torch.equal(evaluated(copied), evaluated(plain))


def test_a_copied_graph_module_without_its_state_says_so():
    graph, plain = quantized_graph()
    if WITH_HOOKS:
        graph._deepcopy_hooks.clear()
    graph.state_dict()  # settles what the last iteration has seen
    copied = copy.deepcopy(graph)
    assert torch.equal(evaluated(copied), evaluated(plain))
    with pytest.raises(QuantizationError, match=r'torch\.fx\.GraphModule'):
        copied.train()(inputs())
    mmgdrq.fold(copied, inputs())
    mmgdrq.set_stage(graph, 'reshape')
    with pytest.raises(FoldError, match="is in stage 'reshape', without rounding"):
        mmgdrq.fold(copy.deepcopy(graph), inputs())
    for lost in (lambda: mmgdrq.set_stage(copied, 'reshape'), lambda: copied.load_state_dict(plain.state_dict())):
        with pytest.raises(ConfigError, match=r'torch\.fx\.GraphModule'):
            lost()


@pytest.mark.parametrize('net', [small_net, lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 2, 1))])
def test_tracing_a_quantized_model_names_the_way(net):
    model = mmgdrq.quantize(net())
    model(inputs())
    with pytest.raises(QuantizationError, match=r'Trace the float model, then quantize the torch\.fx\.GraphModule'):
        fx.symbolic_trace(model)


def test_a_feature_extractor_is_folded_saved_and_loaded(tmp_path):
    """Copies of torchvision's kind of GraphModule lose all that is not in the graph."""

    def extractor():
        torch.manual_seed(0)
        return mmgdrq.quantize(create_feature_extractor(resnet18(), ['layer1', 'fc'])).train()

    x, model = torch.rand(2, 3, 32, 32), extractor()
    model(x)
    folded = mmgdrq.fold(model, x)
    loaded = load_folded(extractor(), save_folded(folded, tmp_path / 'out'))
    for key, value in model.eval()(x).items():
        torch.testing.assert_close(folded(x)[key], value, rtol=1e-4, atol=1e-4)
        assert torch.equal(loaded(x)[key], folded(x)[key])
    copied = copy.deepcopy(model)
    assert torch.equal(copied.eval()(x)['fc'], model(x)['fc'])
    with pytest.raises(QuantizationError, match=r'torch\.fx\.GraphModule'):
        copied.train()(x)
    with pytest.raises(ConfigError, match=r'torch\.fx\.GraphModule'):
        load_folded(copied, tmp_path / 'out')


def test_a_graph_module_is_folded_saved_and_loaded(tmp_path):
    graph, plain = quantized_graph()
    folded, expected = mmgdrq.fold(graph, inputs()), mmgdrq.fold(plain, inputs())
    assert torch.equal(evaluated(folded), evaluated(expected))
    save_folded(folded, tmp_path / 'out')
    loaded = load_folded(mmgdrq.quantize(traced(small_net()), dict(bits=3), dict(bits=4)), tmp_path / 'out')
    assert torch.equal(evaluated(loaded), evaluated(expected))


def test_a_graph_module_of_layers_that_still_belong_to_a_model_does_not_train():
    model = mmgdrq.quantize(traced(small_net()), dict(bits=3), dict(bits=4)).train()
    model(inputs())
    graph = fx.GraphModule(model, model.graph)
    assert torch.equal(evaluated(model), evaluated(graph))
    with pytest.raises(QuantizationError, match='outside of the forward pass'):
        graph.train()(inputs())


def test_the_children_of_a_model_in_a_sequence():
    model = trained(small_net())
    children = nn.Sequential(*model.children())
    assert len(children) == len(list(small_net().children())), 'the state is no child'
    assert torch.equal(evaluated(children), evaluated(model))
    mmgdrq.set_stage(model, 'reshape')
    assert torch.equal(evaluated(children), evaluated(model))
    with pytest.raises(QuantizationError, match='outside of the forward pass'):
        children.train()(inputs())
    tail = nn.Sequential(*list(model.children())[:-1])
    assert evaluated(tail).shape == (2, 5)


def test_a_part_that_was_copied_into_the_model_belongs_to_it():
    model = trained(small_net())
    other = copy.deepcopy(model)
    model[3] = copy.deepcopy(model[3])
    mmgdrq.set_stage(model, 'reshape')
    mmgdrq.set_stage(other, 'reshape')
    assert train(model) == train(other)
    same_state(model)
    assert torch.equal(evaluated(model), evaluated(other))


@pytest.mark.parametrize('follow', [False, True])
def test_a_model_that_was_on_the_meta_device(follow):
    quant = dict(weight=dict(bits=3, range='search'), activation=dict(bits=4))
    model = trained(small_net(), **quant)
    mmgdrq.freeze(model)
    empty = mmgdrq.quantize(small_net(), **quant, follow_checkpoint=follow, stage='quantize')
    empty.to('meta').to_empty(device='cpu')
    with torch.no_grad():
        for tensor in (*empty.parameters(), *(b for n, b in empty.named_buffers() if n.startswith('gdrq_'))):
            tensor.fill_(0)  # whatever lay in memory
    with pytest.raises(QuantizationError, match='its activation range was never set'):
        empty.eval()(inputs())
    empty.to('meta').to_empty(device='cpu')
    empty.load_state_dict(model.state_dict())
    assert torch.equal(evaluated(empty), evaluated(model))
    assert mmgdrq.state(empty).frozen is follow
    assert_same(empty.state_dict(), {**model.state_dict(), 'gdrq_frozen': torch.tensor(float(follow))})


def late_net():
    """The second branch of it is used from some step on."""
    net = nn.ModuleDict(dict(first=nn.Linear(4, 4), second=nn.Linear(4, 4)))

    class Late(nn.Module):
        late = True

        def __init__(self):
            super().__init__()
            self.parts = net

        def forward(self, x):
            return self.parts.first(x) + (self.parts.second(x) if self.late else 0)

    return Late()


@pytest.mark.parametrize('average', ['swa', 'ema'])
@pytest.mark.parametrize('rule', ['mean', 'learned'])
def test_averaged_buffers_are_averages_and_flags(rule, average):
    """Expected values by numpy: the mean of all ranges that there were, those without one left out."""
    torch.manual_seed(0)
    config = dict(weight=dict(bits=3, range=rule), activation=dict(bits=8, range=rule))
    model = mmgdrq.quantize(late_net(), rules=[dict(pattern='*', **config)]).train()
    model.late = False
    options = dict(avg_fn=lambda old, new, _: 0.75 * old + 0.25 * new) if average == 'ema' else {}
    averaged = AveragedModel(model, use_buffers=True, **options)
    seen, weights = [], []
    for step in range(6):
        model.late = step >= 3
        x = torch.randn(5, 4) if step >= 3 else torch.rand(5, 4)
        model(x * (step + 1))
        model.state_dict()  # settles what the iteration has seen, so that the buffers are all
        seen.append({name: float(getattr(model.parts, name).activation_quantizer.threshold) for name in model.parts})
        averaged.update_parameters(model)
        weights = [1 / (step + 1)] * (step + 1) if average == 'swa' else [*(0.75 * w for w in weights), 0.25]
        weights = [1.0] if step == 0 else weights
    for name, begin in (('first', 0), ('second', 3)):
        shares = np.array(weights[begin:])
        expected = np.average([values[name] for values in seen[begin:]], weights=shares)
        quantizer = getattr(averaged.module.parts, name).activation_quantizer
        averaged.eval()(torch.randn(2, 4))
        assert float(quantizer.threshold) == pytest.approx(expected, rel=1e-5)
        assert float(quantizer.initialized) == 1
        assert bool(quantizer.signed) is (name == 'second'), 'that of its first iteration'
        if rule == 'learned':
            alpha = getattr(model.parts, name).weight_quantizer.alpha
            found = getattr(averaged.module.parts, name).weight_quantizer.alpha
            torch.testing.assert_close(found, alpha, rtol=1e-5, atol=0)
    assert mmgdrq.get_stage(averaged.module) == 'quantize'
    averaged.module.late = True
    loaded = mmgdrq.quantize(late_net(), rules=[dict(pattern='*', **config)])
    loaded.load_state_dict(averaged.module.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(loaded.eval()(x), averaged.eval()(x))


def test_an_average_over_two_stages_is_refused():
    model = mmgdrq.quantize(small_net(), stage='reshape').train()
    averaged = AveragedModel(model, use_buffers=True)
    for stage in ('reshape', 'quantize', 'quantize'):
        mmgdrq.set_stage(model, stage)
        model(inputs())
        averaged.update_parameters(model)
    with pytest.raises(QuantizationError, match=r'average over the stages .* Call mmgdrq\.set_stage'):
        averaged.eval()(inputs())
    mmgdrq.set_stage(averaged.module, 'quantize')
    averaged.eval()(inputs())
    averaged.update_parameters(model)
    averaged.eval()(inputs())


def test_flags_of_an_older_checkpoint_are_booleans_and_integers():
    model = trained(small_net())
    state = copy.deepcopy(model.state_dict())
    del state['gdrq_frozen']
    state['gdrq_stage'] = state['gdrq_stage'].long()
    for key in state:
        if key.endswith(('.signed', '.initialized')):
            state[key] = state[key].bool()
    loaded = mmgdrq.quantize(small_net(), dict(bits=3), dict(bits=4))
    loaded.load_state_dict(state)
    assert torch.equal(evaluated(loaded), evaluated(model))
