"""The weight layers of the zoos beside nn.Conv2d and nn.Linear: what is quantized, along which axis, and by whom."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvModule, ConvWS2d
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmcv.cnn.utils.fuse_conv_bn import fuse_conv_bn
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, SAConv2d
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.models.dense_heads.tood_head import TaskDecomposition
from mmdet.models.layers.normed_predictor import NormedConv2d, NormedLinear
from mmpretrain.models.heads.margin_head import NormProduct
from mmpretrain.models.utils.attention import BEiTAttention
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded
from mmgdrq.errors import ConfigError, QuantizationError
from mmgdrq.layers import is_quantized, quantized_layers
from mmgdrq.layers.transposed import filters_first
from tests.helpers import reference
from tests.helpers.nets import at_asked_bits
from tests.helpers.threads import THREADS, results_of_threads

OFF = dict(weight=dict(bits=32), activation=dict(bits=32))


LAYERS = {
    'conv1d': (lambda: nn.Conv1d(8, 6, 3, groups=2), (2, 8, 9)),
    'conv3d': (lambda: nn.Conv3d(8, 6, 2), (2, 8, 4, 4, 4)),
    'deconv1d': (lambda: nn.ConvTranspose1d(8, 6, 3, stride=2), (2, 8, 5)),
    'deconv2d': (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), (2, 8, 5, 5)),
    'deconv2d grouped': (lambda: nn.ConvTranspose2d(8, 6, 2, groups=2), (2, 8, 5, 5)),
    'deconv3d': (lambda: nn.ConvTranspose3d(8, 6, 2), (2, 8, 3, 3, 3)),
    'adaptive': (lambda: Conv2dAdaptivePadding(8, 6, 3, stride=2), (2, 8, 7, 7)),
    'ws': (lambda: ConvWS2d(8, 6, 3), (2, 8, 7, 7)),
    'aws': (lambda: ConvAWS2d(8, 6, 3), (2, 8, 7, 7)),
    'sac': (lambda: SAConv2d(8, 6, 3, padding=1), (2, 8, 7, 7)),
    'sac deformable': (lambda: SAConv2d(8, 6, 3, padding=1, use_deform=True), (2, 8, 7, 7)),
    'dcn': (lambda: DeformConv2dPack(8, 6, 3, padding=1), (2, 8, 7, 7)),
    'dcnv2': (lambda: ModulatedDeformConv2dPack(8, 6, 3, padding=1), (2, 8, 7, 7)),
    'normed linear': (lambda: NormedLinear(8, 6), (4, 8)),
    'normed conv': (lambda: NormedConv2d(8, 6, 1), (2, 8, 5, 5)),
    'norm product': (lambda: NormProduct(8, 6), (4, 8)),
    'spectral': (lambda: parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)), (2, 8, 7, 7)),
    'old spectral': (lambda: spectral_norm(nn.Conv2d(8, 6, 3)), (2, 8, 7, 7)),
}


def build(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    torch.manual_seed(1)
    return nn.Sequential(nn.Identity(), layer), torch.rand(shape)


@pytest.mark.parametrize('name', LAYERS)
def test_with_32_bits_it_is_the_float_layer(name):
    net, x = build(name)
    expected = net.eval()(x)
    # one part must be quantized for the layer to become a quantized one at all
    mmgdrq.quantize(net, **at_asked_bits(weight=dict(bits=8), activation=dict(bits=32)))
    mmgdrq.set_stage(net, 'float')
    assert is_quantized(net[1])
    torch.testing.assert_close(net.eval()(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_parameters_keys_and_init_names_stay(name):
    net, _ = build(name)
    parameters, keys, layer = list(net.parameters()), set(net.state_dict()), net[1]
    names = {type(layer).__name__, *(base.__name__ for base in type(layer).__bases__ if base.__name__[0] != '_')}
    mmgdrq.quantize(net, **at_asked_bits())
    assert net[1] is layer
    assert all(a is b for a, b in zip(net.parameters(), parameters))
    added = set(net.state_dict()) - keys
    assert keys <= set(net.state_dict())
    assert all('quantizer' in key or key in ('gdrq_stage', 'gdrq_frozen') for key in added)
    assert names - {'Module', 'object'} <= {type(layer).__name__, *(base.__name__ for base in type(layer).__bases__)}


@pytest.mark.parametrize('name', LAYERS)
def test_quantizers_work_and_the_weight_learns(name):
    net, x = build(name)
    mmgdrq.quantize(net, **at_asked_bits())
    expected = copy.deepcopy(build(name)[0]).train()(x)
    output = net.train()(x)
    assert not torch.allclose(output, expected), 'nothing is quantized'
    output.square().sum().backward()
    layer = net[1]
    assert layer.stored_weight().grad.abs().sum() > 0
    filters = layer.weight_quantizer(layer.filters()).detach()
    assert all(len(f.unique()) <= 4 for f in filters), 'every filter has the levels -3s, -s, s, 3s'
    assert all(len(f.abs().unique()) <= 2 for f in filters)
    if name.startswith('sac'):
        assert isinstance(layer.activation_quantizer, nn.Identity)
        assert 'input in float' in mmgdrq.state(net).plan[0].reason
    else:
        assert layer.activation_quantizer.threshold > 0
    assert isinstance(layer.stored_weight(), nn.Parameter), 'the parameter is back in its place'


@pytest.mark.parametrize('rule', ['search', 'learned'])
@pytest.mark.parametrize('name', ['deconv2d grouped', 'ws', 'dcn', 'sac'])
def test_ranges_with_a_state(name, rule):
    net, x = build(name)
    mmgdrq.quantize(net, **at_asked_bits(weight=dict(bits=3, range=rule, group_size=2)))
    for _ in range(2):
        net.train()(x).sum().backward()
    assert net[1].weight_quantizer.alpha.shape == (3,)
    assert (net[1].weight_quantizer.alpha > 0).all()


@pytest.mark.parametrize('name', ['adaptive', 'dcn', 'normed linear', 'deconv2d', 'ws'])
@pytest.mark.parametrize('clone', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_compute_the_same(name, clone):
    net, x = build(name)
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(x)
    net.eval()
    made = clone(net)
    assert type(made[1]) is type(net[1])
    assert torch.equal(made(x), net(x))


@pytest.mark.parametrize('groups', [1, 2])
def test_a_transposed_convolution_has_a_range_for_every_output_filter(groups):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 2, groups=groups)
    # every output filter has a size of its own
    scale = 10.0 ** torch.arange(6)
    per_group = scale.reshape(groups, 6 // groups)
    with torch.no_grad():
        for group in range(groups):
            rows = slice(group * 4 // groups, (group + 1) * 4 // groups)
            layer.weight[rows] = torch.sign(layer.weight[rows]) * per_group[group][None, :, None, None]
    filters = filters_first(layer.weight.detach(), groups)
    assert filters.shape == (6, 4 // groups, 2, 2)
    assert torch.equal(filters.abs().amax((1, 2, 3)), scale)
    assert torch.equal(filters_first(filters, groups), layer.weight), 'its own inverse'
    net = mmgdrq.quantize(
        nn.Sequential(nn.Identity(), layer), **at_asked_bits(weight=dict(bits=2, range='minmax', grid='narrow_range'))
    )
    quantized = net[1].weight_quantizer(net[1].filters())
    assert torch.equal(quantized, filters), 'a weight with one magnitude a filter is on the grid already'


def test_scale_clip_of_a_transposed_convolution_goes_by_output_filter():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    with torch.no_grad():
        layer.weight.view(-1)[::5] *= 20
    before = filters_first(layer.weight.detach(), 2).numpy().copy()
    net = mmgdrq.quantize(nn.Sequential(nn.Identity(), layer), **at_asked_bits(weight=dict(bits=2, k=2.0)))
    mmgdrq.ScaleClip(net)()
    expected = reference.scale_clip(before, 2.0, 1)
    np.testing.assert_allclose(filters_first(layer.weight.detach(), 2).numpy(), expected, rtol=1e-6)


def test_scale_clip_reaches_the_stored_weight():
    for name in ('spectral', 'old spectral', 'ws', 'normed linear'):
        net, x = build(name)
        mmgdrq.quantize(net, **at_asked_bits(weight=dict(bits=2, k=1.0)))
        before = net[1].stored_weight().detach().clone()
        mmgdrq.ScaleClip(net)()
        assert not torch.equal(net[1].stored_weight(), before), name
        assert torch.isfinite(net(x)).all()


@pytest.mark.parametrize(
    ('name', 'normalize'),
    [
        ('deconv2d', parametrizations.spectral_norm),
        ('deconv2d', spectral_norm),
        ('adaptive', spectral_norm),
        ('normed conv', spectral_norm),
    ],
)
def test_spectral_norm_of_a_layer_with_a_forward_pass_of_its_own(name, normalize):
    net, x = build(name)
    normalize(net[1])
    float_output = copy.deepcopy(net).train()(x)
    mmgdrq.quantize(net, **at_asked_bits(weight=dict(bits=8), activation=dict(bits=8)))
    mmgdrq.ScaleClip(net)()
    y = net.train()(x)
    near = 0.05 * float(float_output.detach().abs().max())
    torch.testing.assert_close(y, float_output, rtol=0, atol=near)
    y.square().sum().backward()
    assert float(net[1].stored_weight().grad.abs().sum()) > 0


@pytest.mark.parametrize('name', ['deconv2d', 'adaptive', 'sac', 'dcnv2', 'beit'])
def test_threads_may_share_a_model(name):
    if name == 'beit':
        torch.manual_seed(0)
        attention = BEiTAttention(8, 2, (2, 2), bias='qv_bias', use_rel_pos_bias=True)
        net, x = nn.Sequential(nn.Identity(), attention), torch.rand(2, 5, 8)
    else:
        net, x = build(name)
    rules = [] if name == 'beit' else at_asked_bits()['rules']
    mmgdrq.quantize(net, rules=rules).train()(x)
    net.eval()
    with torch.no_grad():
        expected = net(x)
    kinds = {key: type(value) for key, value in net.named_parameters()}

    @torch.no_grad()
    def work(_: int) -> list[float]:
        return [float((net(x) - expected).abs().max()) for _ in range(30)]

    assert results_of_threads(work) == [[0.0] * 30] * THREADS
    assert {key: type(value) for key, value in net.named_parameters()} == kinds


def test_standardization_comes_first():
    net, _ = build('ws')
    with torch.no_grad():
        net[1].weight.add_(3.0)  # a mean that standardization removes
    weight = net[1].weight.detach().double().numpy()
    axes = (1, 2, 3)
    std = weight.std(axes, ddof=1, keepdims=True)
    mmgdrq.quantize(net, **at_asked_bits(weight=dict(bits=8, range='minmax')))
    standardized = (weight - weight.mean(axes, keepdims=True)) / (std + 1e-5)
    np.testing.assert_allclose(net[1].filters().detach().numpy(), standardized, rtol=1e-4, atol=1e-5)


def test_trident_quantizes_every_branch():
    net = nn.Sequential(nn.Identity(), TridentConv(4, 6, 3, trident_dilations=(1, 2, 3)))
    nn.init.normal_(net[1].weight)
    mmgdrq.quantize(net, **at_asked_bits())
    outputs = net.train()([torch.rand(1, 4, 9, 9) for _ in range(3)])
    assert len(outputs) == 3
    assert net[1].activation_quantizer.threshold > 0


def test_task_decomposition_reads_a_quantized_weight():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), TaskDecomposition(8, 2))
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(torch.rand(2, 16, 5, 5))
    assert net[1].reduction_conv.conv.activation_quantizer.threshold > 0


def test_merging_bn_into_a_quantized_layer_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), ConvModule(4, 4, 3, norm_cfg=dict(type='BN')), nn.Conv2d(4, 2, 1))
    mmgdrq.quantize(net)
    with pytest.raises(QuantizationError, match=r'1\.conv: its weight would be replaced.*fuse_conv_bn.*mmgdrq\.fold'):
        fuse_conv_bn(net)


def test_efficient_conv_bn_eval_is_refused():
    net = nn.Sequential(ConvModule(3, 4, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True), nn.Conv2d(4, 2, 1))
    with pytest.raises(mmgdrq.errors.ConfigError, match=r'0 has efficient_conv_bn_eval turned on'):
        mmgdrq.quantize(net)


def test_rules_know_a_shared_layer_by_all_its_names():
    shared = nn.Conv2d(8, 8, 3)
    net = nn.ModuleDict(dict(a=nn.Conv2d(3, 8, 3), b=shared, c=shared, d=nn.Conv2d(8, 2, 1)))
    rows = {row.name: row for row in mmgdrq.plan(net, rules=[dict(pattern='c', weight=dict(bits=5))])}
    assert list(rows) == ['a', 'b', 'd']
    assert rows['b'].weight.bits == 5


def test_frozen_layers_have_eight_bits():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    net[1].requires_grad_(False)
    bits = [(row.weight.bits, row.reason) for row in mmgdrq.plan(net)]
    assert bits[1] == (8, 'frozen: quantized, not trained')
    assert bits[2] == (2, '')
    net.requires_grad_(False)
    assert mmgdrq.plan(net)[1].weight.bits == 2, 'nothing is trained: no layer is an exception'


FOLDABLE = [name for name in LAYERS if not name.startswith('sac')]


def folded_layer(name):
    net, x = build(name)
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(x)
    return net.eval(), mmgdrq.fold(net, example=x), x


@pytest.mark.parametrize('name', FOLDABLE)
def test_folded_layers_compute_the_same(name):
    net, folded, x = folded_layer(name)
    with torch.no_grad():
        expected, found = net(x), folded(x)
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert folded.gdrq_folded['1'].weight_bits == 2


@pytest.mark.parametrize('name', FOLDABLE)
def test_folded_layers_are_stored_as_codes(name, tmp_path):
    net, folded, x = folded_layer(name)
    path = save_folded(folded, tmp_path / 'out')
    stored = load_file(path / 'weights.safetensors')
    packed = [tensor for tensor in stored.values() if tensor.dtype == torch.uint8]
    codes = [layer.filters().numel() for layer in quantized_layers(net)]
    assert sorted(len(tensor) for tensor in packed) == sorted((count + 3) // 4 for count in codes)
    if 'spectral' not in name:  # which keep the vectors of their norm, and the weight under another name
        assert '1.weight' not in stored or stored['1.weight'].dtype == torch.uint8
    fresh, _ = build(name)
    mmgdrq.quantize(fresh, **at_asked_bits())
    with torch.no_grad():
        assert torch.equal(load_folded(fresh, path)(x), folded(x))


def test_a_float_weight_that_others_read_is_kept(tmp_path):
    net, x = build('deconv2d')
    net.append(nn.Module())
    net[2].register_parameter('tied', net[1].weight)
    net[2].forward = lambda x: x * net[2].tied.mean()
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(x)
    folded = mmgdrq.fold(net.eval())
    stored = load_file(save_folded(folded, tmp_path / 'out') / 'weights.safetensors')
    assert torch.equal(stored['2.tied'], net[2].tied)


@pytest.mark.parametrize('name', ['sac', 'sac deformable'])
def test_a_layer_with_two_weights_is_not_folded(name):
    net, x = build(name)
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(x)
    with pytest.raises(mmgdrq.errors.FoldError, match=r'fold: 1 \(SAConv2d\) computes with several weights'):
        mmgdrq.fold(net)


def test_a_teacher_has_the_bits_of_its_student():
    """mmdet's semi-supervised detectors train the student, and evaluate a teacher that follows it."""

    def detector():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))

    net = nn.ModuleDict(dict(student=detector(), teacher=detector()))
    net['teacher'].requires_grad_(False)
    net['student'][1].requires_grad_(False)
    bits = {row.name: row.weight.bits for row in mmgdrq.plan(net)}
    assert [bits[f'teacher.{i}'] for i in range(3)] == [bits[f'student.{i}'] for i in range(3)] == [8, 8, 2]
    other = nn.ModuleDict(dict(student=detector(), teacher=nn.Sequential(*detector(), nn.Conv2d(2, 2, 1))))
    other['teacher'].requires_grad_(False)
    assert {row.weight.bits for row in mmgdrq.plan(other) if row.name.startswith('teacher')} == {8}, 'another network'


@pytest.mark.parametrize('name', ['conv1d', 'deconv2d', 'adaptive', 'normed linear', 'norm product'])
def test_layers_are_compiled_without_graph_breaks(name):
    torch._dynamo.reset()
    net, x = build(name)
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(x)
    layer = net.eval()[1]
    expected = layer(x)
    compiled = torch.compile(layer, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    assert isinstance(layer.weight, nn.Parameter)


def patched(layer: nn.Module) -> nn.Module:
    """A layer as accelerate's hooks make it: its forward pass is replaced on the object."""
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 1
    return layer


@pytest.mark.parametrize('make', [lambda: nn.Conv2d(4, 4, 3, padding=1), lambda: nn.Linear(6, 6)])
def test_a_forward_pass_that_was_replaced_on_the_object_stays(make):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), patched(make()), nn.Conv2d(4, 2, 1))
    x = torch.rand(1, 3, 6, 6)
    wanted = net[1](x.mean(1, keepdim=True).expand(-1, 4, -1, -1))
    row = mmgdrq.plan(net)[1]
    assert not row.quantized
    assert 'forward pass was replaced on the object' in row.reason
    with pytest.raises(ConfigError, match='cannot be quantized'):
        mmgdrq.plan(net, rules=[dict(pattern='1', weight=dict(bits=4))])
    mmgdrq.quantize(net)
    assert torch.equal(net[1](x.mean(1, keepdim=True).expand(-1, 4, -1, -1)), wanted)


def test_the_operator_of_a_convolution_that_was_replaced_on_the_object():
    layer = nn.Conv2d(4, 4, 3)
    layer._conv_forward = lambda *args: nn.Conv2d._conv_forward(layer, *args)
    assert not mmgdrq.plan(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 2, 1)))[1].quantized


class Distances(nn.Module):
    """YOLOv8's distances to the sides of a box: the mean of 0 to 15 under a distribution, by a fixed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 1)
        self.conv = nn.Conv2d(16, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)

    def forward(self, x):
        x = self.box(self.stem(x)).flatten(2)
        return self.conv(x.view(len(x), 4, 16, -1).transpose(1, 2).softmax(1))


def test_a_fixed_projection_stays_exact():
    net = Distances()
    row = mmgdrq.plan(net)[-1]
    assert (row.name, row.quantized) == ('conv', False)
    assert row.reason.startswith('a constant operator')
    mmgdrq.quantize(net, dict(bits=8), dict(bits=8)).train()
    net(torch.rand(2, 3, 9, 9))
    x = torch.rand(2, 16, 4, 5).softmax(1)
    wanted = (x.double() * torch.arange(16.0).view(1, 16, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(net.conv(x).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize('change', ['trained', 'other values'])
def test_other_frozen_convolutions_are_layers(change):
    net = Distances()
    if change == 'trained':
        net.conv.requires_grad_(True)
    else:
        net.conv.weight.data[0, 0] = 0.5
    assert mmgdrq.plan(net)[-1].quantized
