"""Attention: its projections are quantized, also where a parent reads their weights."""

import copy

import pytest
import torch
from mmpretrain.models.utils.attention import BEiTAttention, CrossMultiheadAttention, WindowMSAV2
from mmseg.models.backbones.mae import MAEAttention
from mmseg.models.decode_heads.san_head import RecWithAttnbias
from safetensors.torch import load_file
from torch import nn

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded
from mmgdrq.layers import quantized_layers
from tests.helpers.nets import at_asked_bits

ATTENTIONS = [
    dict(),
    dict(batch_first=True),
    dict(bias=False),
    dict(kdim=12, vdim=10),
]


def attention_inputs(options, batched=True):
    torch.manual_seed(3)
    shapes = [(5, 2, 8), (7, 2, options.get('kdim', 8)), (7, 2, options.get('vdim', 8))]
    made = [torch.randn(shape) for shape in shapes]
    if options.get('batch_first'):
        made = [x.transpose(0, 1) for x in made]
    return made if batched else [torch.randn(5, 8), torch.randn(7, 8), torch.randn(7, 8)]


@pytest.mark.parametrize('options', ATTENTIONS)
@pytest.mark.parametrize('mask', [None, 'padding', 'boolean', 'float', 'heads'])
@pytest.mark.parametrize('weights', [True, False])
def test_attention_without_quantization_is_torchs(options, mask, weights):
    torch.manual_seed(0)
    float_layer = nn.MultiheadAttention(8, 2, **options).eval()
    net = nn.Sequential(nn.Identity(), copy.deepcopy(float_layer))
    mmgdrq.quantize(net, **at_asked_bits())
    mmgdrq.set_stage(net, 'float')
    masks = {
        None: {},
        'padding': dict(key_padding_mask=torch.tensor([[False] * 7, [False] * 4 + [True] * 3])),
        'boolean': dict(attn_mask=torch.ones(5, 7).triu(2).bool()),
        'float': dict(attn_mask=torch.randn(5, 7)),
        'heads': dict(attn_mask=torch.randn(4, 5, 7)),
    }[mask]
    inputs = attention_inputs(options)
    expected, expected_weights = float_layer(*inputs, need_weights=weights, **masks)
    found, found_weights = net[1].eval()(*inputs, need_weights=weights, **masks)
    torch.testing.assert_close(found, expected)
    assert (found_weights is None) == (expected_weights is None)
    if weights:
        torch.testing.assert_close(found_weights, expected_weights)


def test_unbatched_attention():
    torch.manual_seed(0)
    float_layer = nn.MultiheadAttention(8, 2).eval()
    net = nn.Sequential(nn.Identity(), copy.deepcopy(float_layer))
    mmgdrq.quantize(net, **at_asked_bits())
    mmgdrq.set_stage(net, 'float')
    inputs = attention_inputs({}, batched=False)
    for found, expected in zip(net[1].eval()(*inputs), float_layer(*inputs)):
        torch.testing.assert_close(found, expected)


def test_attention_quantizes_four_projections():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.MultiheadAttention(8, 2))
    net.forward = lambda x: net[1](x, x, x)[0]
    keys = set(net.state_dict())
    assert [row.name for row in mmgdrq.plan(net)] == ['1', '1.out_proj']
    mmgdrq.quantize(net, **at_asked_bits())
    assert keys <= set(net.state_dict())
    net.train()(torch.randn(5, 2, 8)).square().sum().backward()
    layers = list(quantized_layers(net))
    assert len(layers) == 4
    assert all(layer.activation_quantizer.threshold > 0 for layer in layers)
    assert net[1].in_proj_weight.grad.reshape(3, -1).abs().sum(1).gt(0).all()
    for projection, rows in zip(
        layers[:3] if layers[0] is net[1].q_proj else layers[1:], net[1].in_proj_weight.chunk(3)
    ):
        assert torch.equal(projection.weight, rows)
    before = net[1].in_proj_weight.detach().clone()
    with torch.no_grad():
        net[1].in_proj_weight[::3, 0] = 50.0
    mmgdrq.ScaleClip(net)()
    assert net[1].in_proj_weight.max() < 50
    assert before.shape == net[1].in_proj_weight.shape
    copied = copy.deepcopy(net[1])
    assert copied.q_proj.owner[0] is copied


def test_a_quantized_out_proj_is_called_by_a_float_attention():
    net = nn.Sequential(nn.Identity(), nn.MultiheadAttention(8, 2))
    net.forward = lambda x: net[1](x, x, x)[0]
    rules = [dict(pattern='1', skip=True)]
    with pytest.raises(mmgdrq.errors.ConfigError, match='nothing would be quantized'):
        mmgdrq.quantize(net, rules=rules)
    net.add_module('2', nn.MultiheadAttention(8, 2))
    net.forward = lambda x: net[2](net[1](x, x, x)[0], x, x)[0]
    names = {'skip': ['1.out_proj'], 'keep': ['1', '2', '2.out_proj']}
    mmgdrq.quantize(net, rules=[dict(pattern='1.out_proj', skip=True), dict(pattern='2', weight=dict(bits=2))])
    assert {row.name for row in mmgdrq.state(net).plan.quantized} == set(names['keep'])
    net.train()(torch.randn(5, 2, 8))
    assert net[2].out_proj.activation_quantizer.threshold > 0


READERS = {
    'beit': (lambda: BEiTAttention(8, 2, (2, 2), bias='qv_bias', use_rel_pos_bias=True), (2, 5, 8), 'qkv'),
    'beit without bias': (lambda: BEiTAttention(8, 2, (2, 2), bias=True, use_rel_pos_bias=True), (2, 5, 8), 'qkv'),
    'mae': (lambda: MAEAttention(8, 2, (2, 2), bias='qv_bias'), (2, 5, 8), 'qkv'),
    'swin v2': (lambda: WindowMSAV2(8, (2, 2), 2), (2, 4, 8), 'qkv'),
}


@pytest.mark.parametrize('name', READERS)
def test_a_parent_that_reads_weights_reads_quantized_ones(name):
    make, shape, child = READERS[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), make())
    x = torch.randn(shape)
    float_output = copy.deepcopy(net).eval()(x)
    mmgdrq.quantize(net, **at_asked_bits())
    layer = net[1].get_submodule(child)
    net.train()(x).square().sum().backward()
    assert layer.activation_quantizer.threshold > 0, 'it was not bypassed'
    assert layer.weight.grad.abs().sum() > 0
    output = net.eval()(x)
    assert not torch.allclose(output, float_output)
    with torch.no_grad():  # the forward pass sees no more of the weight than its codes
        quantized = layer.weight_quantizer(layer.weight)
        layer.weight.add_(1e-4 * (quantized - layer.weight))
        moved = layer.weight_quantizer(layer.weight)
    assert torch.allclose(quantized, moved, rtol=1e-3)
    mmgdrq.set_stage(net, 'float')
    with torch.no_grad():
        layer.weight.sub_(1e-4 * (quantized - layer.weight) / (1 - 1e-4))
    torch.testing.assert_close(net.eval()(x), float_output, rtol=1e-3, atol=1e-4)


def test_what_a_changed_forward_pass_reads_stays_in_float():
    class Changed(BEiTAttention):
        def forward(self, tokens):
            return super().forward(2 * tokens)

    net = nn.Sequential(nn.Linear(8, 8), Changed(8, 2, (2, 2), bias=True, use_rel_pos_bias=True), nn.Linear(8, 8))
    plan = {row.name: row for row in mmgdrq.plan(net)}
    assert plan['1.qkv'].reason == 'Changed reads this weight without calling the layer'
    assert plan['1.proj'].quantized


def test_cross_attention_with_weights_read_by_the_parent():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), CrossMultiheadAttention(8, 2, qkv_bias=True))
    net.forward = lambda x: net[1](x, k=x, v=x)
    mmgdrq.quantize(net, **at_asked_bits())
    net.train()(torch.randn(2, 5, 8))
    assert all(getattr(net[1], name).activation_quantizer.threshold > 0 for name in ('q', 'k', 'v', 'proj'))


def test_the_projections_of_an_attention_are_stored_as_codes(tmp_path):
    def build_attention():
        torch.manual_seed(0)
        net = nn.ModuleDict(dict(attention=nn.MultiheadAttention(8, 2, batch_first=True)))
        net.forward = lambda x: net['attention'](x, x, x)[0]
        rules = [dict(pattern='*', weight=dict(bits=2), activation=dict(bits=4))]
        return mmgdrq.quantize(net, rules=rules)

    net, x = build_attention(), torch.randn(2, 5, 8)
    net.train()(x)
    net.eval()
    folded = mmgdrq.fold(net)
    folded.forward = lambda x: folded['attention'](x, x, x)[0]
    assert torch.allclose(folded(x), net(x), atol=1e-5)
    path = save_folded(folded, tmp_path / 'out')
    stored = load_file(path / 'weights.safetensors')
    assert sum(tensor.dtype == torch.uint8 for tensor in stored.values()) == 4
    assert not any(name.endswith('in_proj_weight') for name in stored)
    fresh = load_folded(build_attention(), path)
    fresh.forward = lambda x: fresh['attention'](x, x, x)[0]
    assert torch.equal(fresh(x), folded(x))


@pytest.mark.parametrize('cross_attn', [True, False])
def test_attention_that_san_computes_from_its_weights_stays_in_float(cross_attn):
    head = RecWithAttnbias(
        sos_token_num=2,
        num_layers=2,
        cross_attn=cross_attn,
        embed_dims=8,
        num_heads=2,
        out_dims=4,
        frozen_exclude=['all'],
    )
    plan = {row.name: row for row in mmgdrq.plan(nn.ModuleDict(dict(stem=nn.Linear(8, 8), head=head)))}
    for layer in (f'head.layers.{i}.attentions.0.attn' for i in range(2)):
        for name in (layer, f'{layer}.out_proj'):
            assert plan[name].quantized is not cross_attn
            assert ('RecWithAttnbias reads this weight' in plan[name].reason) is cross_attn
    assert plan['head.layers.0.ffns.0.layers.1'].quantized


@pytest.mark.parametrize('widths', [{}, dict(kdim=6, vdim=5)])
def test_float_weights_start_the_ranges_of_an_attention_anew(widths):
    def attention():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, **widths), nn.Linear(8, 2))
        net.forward = lambda x: net[2](net[1](net[0](x), x[..., : net[1].kdim], x[..., : net[1].vdim])[0])
        return net

    rule = dict(bits=4, range='learned')
    net, fresh = (mmgdrq.quantize(attention(), weight=rule, activation=rule).train() for _ in range(2))
    net(torch.randn(3, 2, 8))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict({'1.in_proj_bias': torch.zeros(24)}, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), 'no weight, no new start'
    state = {key: 30 * value for key, value in attention().state_dict().items()}
    for model in (net, fresh):
        model.load_state_dict(state)
    x = torch.randn(3, 2, 8)
    assert torch.equal(net(x), fresh(x))
    trained = {key: value.clone() for key, value in net.state_dict().items()}
    again = mmgdrq.quantize(attention(), weight=rule, activation=rule)
    again.load_state_dict(trained)
    assert torch.equal(again.eval()(x), net.eval()(x)), 'ranges of a state are kept'
