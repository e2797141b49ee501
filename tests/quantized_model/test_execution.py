"""How a model computes changes neither its losses nor its gradients; what it keeps is small."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from mmengine.analysis import get_model_complexity_info
from mmengine.registry import MODELS
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mmgdrq
from mmgdrq.errors import ConfigError, QuantizationError
from mmgdrq.layers import LeanReLU
from mmgdrq.quantized_model.execution import set_execution
from tests.helpers.nets import relu_net
from tests.helpers.toy import log_of, toy_runner

SWITCHES = [dict(codes=False), dict(cache=False), dict(lean_relu=False), dict(kernels=False)]
PLAIN = dict(codes=False, cache=False, kernels=False, lean_relu=False)
LEARNED = dict(range='learned')
LAYERS = {
    'conv': (lambda: mmgdrq.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 7)),
    'grouped': (lambda: mmgdrq.Conv2d(4, 8, 3, dilation=2, groups=4, bias=False), (2, 4, 9, 9)),
    'unpadded names': (lambda: mmgdrq.Conv2d(4, 6, 3, padding='same'), (2, 4, 6, 6)),
    'reflected': (lambda: mmgdrq.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'), (2, 4, 6, 6)),
    'one image': (lambda: mmgdrq.Conv2d(4, 6, 1), (4, 5, 5)),
    'linear': (lambda: mmgdrq.Linear(10, 6), (5, 10)),
    'tokens': (lambda: mmgdrq.Linear(10, 6, bias=False), (2, 5, 10)),
    '8 bits': (lambda: mmgdrq.Conv2d(4, 6, 3, weight=dict(bits=8), activation=dict(bits=8)), (2, 4, 6, 6)),
    'float weight': (lambda: mmgdrq.Conv2d(4, 6, 3, weight=dict(bits=32)), (2, 4, 6, 6)),
    'float input': (lambda: mmgdrq.Conv2d(4, 6, 3, activation=dict(bits=32)), (2, 4, 6, 6)),
    'learned weight': (lambda: mmgdrq.Conv2d(4, 6, 3, weight=dict(range='learned')), (2, 4, 6, 6)),
    'learned input': (lambda: mmgdrq.Linear(10, 6, activation=dict(range='learned')), (5, 10)),
    'search': (lambda: mmgdrq.Conv2d(4, 6, 3, weight=dict(range='search', group_size=4)), (2, 4, 6, 6)),
}


def losses_of(switches, steps=100, stage='quantize', **config):
    config = dict(dict(weight=dict(bits=2), activation=dict(bits=4)), **config)
    model = mmgdrq.quantize(relu_net(), **config, stage=stage).train()
    set_execution(model, **switches)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    mmgdrq.ScaleClip(model).attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        loss = F.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.fixture(scope='module')
def plain_losses():
    return losses_of(PLAIN)


def test_losses_of_20_steps_with_learned_ranges():
    config = dict(weight=LEARNED, activation=LEARNED)
    # sums in another order move a range by its last bit, now and then a code, and from then on all ranges
    torch.testing.assert_close(losses_of({}, 20, **config), losses_of(PLAIN, 20, **config), rtol=0.01, atol=0.01)


@pytest.mark.parametrize('switches', [{}, *SWITCHES], ids=str)
def test_losses_of_100_steps(plain_losses, switches):
    losses = losses_of(switches)
    assert float(losses[-1]) != float(losses[0])
    # sums in another order move a range by its last bit, and now and then a code
    torch.testing.assert_close(losses, plain_losses, rtol=0.02, atol=0.02)
    torch.testing.assert_close(losses[:20], plain_losses[:20], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('config', [{}, dict(weight=LEARNED, activation=LEARNED), dict(stage='reshape')], ids=str)
@pytest.mark.parametrize('switches', [dict(codes=False), dict(cache=False), dict(lean_relu=False)], ids=str)
def test_saving_less_changes_no_bit(switches, config):
    assert torch.equal(losses_of(switches, 20, **config), losses_of({}, 20, **config))


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('wanted', ['both', 'weight', 'input'])
@pytest.mark.parametrize(
    ('name', 'stage'),
    [(name, 'quantize') for name in LAYERS] + [(n, 'quantize_weight') for n in ('conv', 'linear')],
)
def test_gradients_are_those_of_the_plain_formulation(name, stage, wanted, autocast):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().train()
    if name not in ('linear', 'tokens', 'learned input') and len(shape) == 4:
        layer = layer.to(memory_format=torch.channels_last)
    layer(torch.randn(shape))
    quantizer = layer.weight_quantizer if name == 'float input' else layer.activation_quantizer
    quantizer.state.stage, quantizer.state.frozen = stage, True
    layer.weight.requires_grad_(wanted != 'input')
    results = []
    for one_byte in (False, True):
        layer.one_byte = one_byte
        layer.zero_grad()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).requires_grad_(wanted != 'weight')
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            y = layer(x) + layer(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype))
        grads = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
        results.append(dict(grads, y=y.detach(), x=x.grad))
    plain, lean = results
    assert plain.keys() == lean.keys()
    for key, value in plain.items():
        if value is None:
            assert lean[key] is None
            continue
        assert lean[key].dtype == value.dtype
        torch.testing.assert_close(lean[key], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))
    assert ('weight' in plain) is (wanted != 'input')


def kept(model, x):
    """Bytes that the forward pass keeps besides the parameters, and the output."""
    parameters = {p.data_ptr() for p in model.parameters()}
    found = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    return sum(found.values()), y


@pytest.mark.parametrize('bits', [2, 4, 7])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_a_layer_keeps_one_byte_an_element(kind, bits):
    if kind == 'conv':
        layer, x = mmgdrq.Conv2d(16, 8, 3, activation=dict(bits=bits)), torch.rand(4, 16, 20, 20)
    else:
        layer, x = mmgdrq.Linear(512, 8, activation=dict(bits=bits)), torch.rand(64, 512)
    x.requires_grad_()
    layer.train()(x)
    size, _ = kept(layer, x)
    assert size <= x.numel() + 4 * 8 + 4
    layer.one_byte = False
    plain, _ = kept(layer, x)
    assert plain >= 5 * x.numel()


@pytest.mark.parametrize('stage', ['quantize', 'quantize_weight'])
def test_a_learned_or_clipped_input_is_kept_once(stage):
    x = torch.rand(4, 16, 20, 20, requires_grad=True)
    layer = mmgdrq.Conv2d(16, 8, 3, weight=LEARNED, activation=LEARNED).train()
    layer(x)
    layer.activation_quantizer.state.stage = stage
    assert kept(nn.Conv2d(16, 8, 3), x)[0] == 4 * x.numel()
    size, _ = kept(layer, x)
    assert 4 * x.numel() <= size <= 4 * x.numel() + 200, 'the input, which a float layer keeps too, steps and ranges'
    layer.one_byte = False
    assert kept(layer, x)[0] >= 8 * x.numel()


def test_a_lean_block_keeps_less_than_a_float_block():
    block = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(True), nn.Conv2d(16, 16, 3))
    x = torch.rand(4, 8, 30, 30, requires_grad=True)
    float_bytes, _ = kept(copy.deepcopy(block), x)
    model = mmgdrq.quantize(block, rules=[dict(pattern='*', weight=dict(bits=2), activation=dict(bits=4))])
    model(x)
    assert kept(model, x)[0] < 0.75 * float_bytes


def test_hooks_on_a_quantizer_see_tensors():
    layer = mmgdrq.Conv2d(4, 6, 3).train()
    x = torch.rand(1, 4, 6, 6)
    expected = layer(x)
    layer.activation_quantizer.state.frozen = True
    expected = layer(x)
    seen = []
    layer.activation_quantizer.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(layer(x), expected)
    assert isinstance(seen[0], torch.Tensor)


@pytest.mark.skipif(torch.__version__ < '2.11', reason='the compiler of an older torch does not follow our layers')
@pytest.mark.parametrize('rule', ['mean', 'learned', 'minmax'])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_compiles_without_graph_breaks(kind, rule):
    torch._dynamo.reset()
    config = dict(weight=dict(range=rule), activation=dict(range=rule))
    layer = mmgdrq.Conv2d(4, 6, 3, **config) if kind == 'conv' else mmgdrq.Linear(6, 5, **config)
    x = torch.rand(2, 4, 6, 6, requires_grad=True)
    layer.train()(x)
    compiled = copy.deepcopy(layer)
    results = []
    for module, run in ((layer, layer), (compiled, torch.compile(compiled, backend='aot_eager', fullgraph=True))):
        x.grad = None
        y = run(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert float(results[1][1].abs().max()) > 0


class Net(nn.Module):
    """A model with a forward pass of its own, which torch.compile follows as one graph."""

    def __init__(self):
        super().__init__()
        self.layers = relu_net()

    def forward(self, x):
        return self.layers(x)


class Recorded(TorchDispatchMode):
    """Names of the registered operators that are called in this thread."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == 'mmgdrq':
            self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.__version__ < '2.11', reason='the compiler of an older torch does not follow our layers')
@pytest.mark.parametrize('config', [{}, dict(weight=LEARNED, activation=LEARNED)], ids=['default', 'learned'])
def test_a_compiled_net_keeps_the_operators_in_one_graph_and_trains_alike(config):
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    torch.manual_seed(0)
    first = mmgdrq.quantize(Net(), **config).train()
    first(torch.randn(8, 3, 8, 8))
    results = []
    for model in (first, copy.deepcopy(first)):
        run = torch.compile(model, backend=aot_autograd(fw_compiler=keep)) if results else model
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        generator, losses = torch.Generator().manual_seed(1), []
        for _ in range(5):
            loss = run(torch.randn(8, 3, 8, 8, generator=generator)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        results.append(torch.stack(losses))
    torch.testing.assert_close(*results, rtol=1e-4, atol=0)
    forward, backward = (graph for graph in graphs if any('convolution' in name for name in graph))
    assert 'mmgdrq.fake_quantize.default' in forward
    assert ('mmgdrq.sum_and_count_rows.default' in forward) is (not config)
    assert ('mmgdrq.learned_gradients.default' in backward) is bool(config)


def test_switches_of_one_model_change_no_other_also_in_threads():
    """Kernels are called by the model that has them on, and by no other, whoever computes at the same time."""
    configs = [{}, dict(weight=LEARNED, activation=LEARNED)]
    models = []
    for kernels in (True, False):
        for config in configs:
            model = mmgdrq.quantize(relu_net(), **config).train()
            set_execution(model, kernels=kernels)
            models.append((kernels, model, torch.optim.SGD(model.parameters(), 0.01)))
            mmgdrq.ScaleClip(model).attach(models[-1][2])
    barrier, found = threading.Barrier(len(models)), {}

    def train(index):
        _, model, optimizer = models[index]
        barrier.wait()
        with Recorded() as recorded:
            for _ in range(5):
                model(torch.randn(4, 3, 8, 8)).square().sum().backward()
                optimizer.step()
            model.eval()(torch.randn(4, 3, 8, 8))
        found[index] = recorded.names

    threads = [threading.Thread(target=train, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (kernels, *_) in enumerate(models):
        assert bool(found[index]) is kernels, found[index]
    assert found[0] >= {'encode', 'encode_mean_rows', 'decode', 'mask', 'clip_rows'}
    assert found[1] >= {'fake_quantize', 'learned_gradients'}


def penalized(switches, factor=1.0, **config):
    """Gradients of a loss with a penalty on the gradient of the input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(True), nn.Conv2d(4, 1, 1))
    mmgdrq.quantize(model, **config, rules=[dict(pattern='0', activation=dict(bits=32))]).train()
    set_execution(model, **switches)
    x = torch.randn(4, 3, 8, 8)
    model(x)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    (model(x).sum() + factor * slope.square().sum()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize('config', [{}, dict(weight=LEARNED, activation=LEARNED)], ids=str)
@pytest.mark.parametrize('lean', [dict(), dict(lean_relu=False)], ids=str)
def test_a_gradient_penalty_needs_codes_off_and_says_so(config, lean):
    with pytest.raises(QuantizationError, match=r'execution=dict\(codes=False\)'):
        penalized(lean, **config)
    mine, plain = penalized(dict(lean, codes=False), **config), penalized(PLAIN, **config)
    for name, grad in plain.items():
        torch.testing.assert_close(mine[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))
    without = penalized(PLAIN, 0.0, **config)
    assert not torch.allclose(mine['0.weight'], without['0.weight'], rtol=0.1)


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_and_loss_scaling_ask_for_no_second_gradient(reentrant):
    class Parts(nn.Sequential):
        again = False

        def forward(self, x):
            first, rest = nn.Sequential(*list(self)[:3]), nn.Sequential(*list(self)[3:])
            return checkpoint(rest, first(x), use_reentrant=reentrant) if self.again else rest(first(x))

    trained = mmgdrq.quantize(Parts(*relu_net())).train()
    x = torch.randn(4, 3, 8, 8)
    trained(x)
    grads = []
    for again in (False, True):
        model = copy.deepcopy(trained)  # every pass moves the ranges
        scaler = torch.amp.GradScaler('cpu', init_scale=16.0)
        with torch.autocast('cpu', torch.bfloat16):
            model.again = again
            y = model(x)
        scaler.scale(y.float().square().sum()).backward()
        grads.append(model[0].weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('config', [{}, dict(weight=LEARNED, activation=LEARNED)], ids=str)
def test_a_trace_computes_what_the_model_computes(config, grad):
    model = mmgdrq.quantize(relu_net(), **config).train()
    model(torch.randn(4, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    model.eval()(x)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, torch.randn(2, 3, 8, 8), check_trace=not config)
        torch.testing.assert_close(traced(x), model(x))
        if grad:
            grads = [torch.autograd.grad(run(x).square().sum(), list(model[3].parameters())) for run in (traced, model)]
            for one, two in zip(*grads):
                torch.testing.assert_close(one, two)


def test_operations_are_counted_as_those_of_the_float_model():
    x = torch.randn(2, 3, 8, 8)
    expected = get_model_complexity_info(relu_net().eval(), inputs=x)['flops']
    model = mmgdrq.quantize(relu_net()).train()
    model(x)
    assert get_model_complexity_info(model.eval(), inputs=x)['flops'] == expected


def test_lean_relu_is_the_default_and_can_be_turned_off():
    model = mmgdrq.quantize(relu_net())
    relus = [module for module in model if isinstance(module, nn.ReLU)]
    assert {type(module) for module in relus} == {LeanReLU}
    assert not set_execution(model, lean_relu=False).lean_relu
    assert {type(module) for module in relus} == {nn.ReLU}
    assert set_execution(model).lean_relu
    assert {type(module) for module in relus} == {LeanReLU}


@pytest.mark.parametrize(
    ('switches', 'message'),
    [(dict(lean_rellu=True), 'lean_rellu.*lean_relu'), (dict(codes='no'), "codes='no' is not True or False")],
)
def test_bad_switches(switches, message):
    with pytest.raises(ConfigError, match=message):
        set_execution(relu_net(), **switches)


def test_the_config_switches(tmp_path):
    hook = dict(weight=dict(bits=4), execution=dict(codes=False, lean_relu=False))
    runner = toy_runner(tmp_path / 'hook', hook=hook)
    runner.train()
    assert not runner.model.conv2.one_byte
    assert 'Execution(codes=False' in log_of(tmp_path / 'hook')
    model = MODELS.build(dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=dict(execution=dict(cache=False))))
    assert not model.conv2.weight_quantizer.cache.enabled
    with pytest.raises(ConfigError, match='execution'):
        toy_runner(tmp_path / 'bad', hook=dict(execution=dict(speed=True))).train()


@pytest.mark.parametrize('shape', [(2, 6), (2, 3, 6), (2, 3, 4, 6)], ids=str)
def test_a_linear_layer_may_be_followed_by_an_operation_in_place(shape):
    torch.manual_seed(0)
    nets = []
    for inplace in (False, True):
        torch.manual_seed(1)
        nets.append(mmgdrq.quantize(nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 2))))
    x = torch.randn(shape)
    results = [net(x) for net in nets]
    for result in results:
        result.square().sum().backward()
    assert torch.equal(*results)
    assert torch.equal(nets[0][0].weight.grad, nets[1][0].weight.grad)


@pytest.mark.skipif(torch.__version__ < '2.11', reason='the compiler of an older torch does not follow our layers')
@pytest.mark.parametrize('config', [{}, dict(weight=LEARNED, activation=LEARNED)], ids=['default', 'learned'])
def test_an_exported_program_computes_what_the_model_computes(config):
    model, x = mmgdrq.quantize(relu_net(), **config).train(), torch.randn(4, 3, 8, 8)
    model(x)
    model.eval()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize('config', [{}, dict(weight=LEARNED, activation=LEARNED), dict(stage='reshape')], ids=str)
@pytest.mark.parametrize('folded', [False, True])
def test_a_saved_trace_holds_operations_of_torch_alone(config, folded, tmp_path):
    model, x = mmgdrq.quantize(relu_net(), **config).train(), torch.randn(2, 3, 8, 8)
    model(torch.randn(4, 3, 8, 8))
    model.eval()
    if folded and 'stage' in config:
        pytest.skip('there is nothing to fold before the stage quantize')
    model = mmgdrq.fold(model, x) if folded else model
    traced = torch.jit.trace(model, torch.randn(4, 3, 8, 8))
    assert 'PythonOp' not in str(traced.inlined_graph)
    assert 'mmgdrq::' not in str(traced.inlined_graph)
    torch.jit.save(traced, tmp_path / 'net.pt')
    assert torch.equal(torch.jit.load(tmp_path / 'net.pt')(x), model(x))


@pytest.mark.parametrize('folded', [False, True])
def test_openvino_converts_models(folded):
    openvino = pytest.importorskip('openvino')
    model, x = mmgdrq.quantize(relu_net()).train(), torch.randn(2, 3, 8, 8)
    model(torch.randn(4, 3, 8, 8))
    model.eval()
    model = mmgdrq.fold(model, x) if folded else model
    with torch.no_grad():
        exact = {'INFERENCE_PRECISION_HINT': 'f32'}
        converted = openvino.compile_model(openvino.convert_model(model, example_input=x), 'CPU', exact)
        expected = model(x)
    result = torch.from_numpy(converted(x.numpy())[0])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
