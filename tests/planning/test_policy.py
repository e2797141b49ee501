"""Which layer is quantized to what, and why."""

import pytest
import torch
from torch import nn
from torch.nn import utils
from torchvision.models import swin_transformer, video

import mmgdrq
from mmgdrq.errors import ConfigError
from tests.helpers.plans import classifier, conv, odd_model, rows, tree


def test_32_bits_is_float():
    found = rows(classifier(), rules=[dict(pattern='head', weight=dict(bits=32), activation=dict(bits=32))])
    assert not found['head.fc'].quantized
    assert '32 bits asked' in found['head.fc'].reason
    found = rows(classifier(), rules=[dict(pattern='head', weight=dict(bits=32))])
    assert found['head.fc'].quantized
    assert found['head.fc'].activation.bits == 8


def test_unsupported_layers_get_a_reason():
    found = rows(odd_model())
    reasons = {name: row.reason for name, row in found.items() if not row.quantized}
    assert reasons.pop('backbone.odd') == 'Unusual has no quantized counterpart'
    assert reasons.pop('backbone.pair') == 'Bilinear has no quantized counterpart'
    assert 'add_bias_kv' in reasons.pop('encoder.attention')
    assert 'without calling the layer' in reasons.pop('encoder.attention.out_proj')
    assert 'computed from other parameters' in reasons.pop('encoder.orthogonal')
    assert not reasons
    quantized = {'backbone.conv1', 'backbone.renamed', 'encoder.middle', 'head.fc'}
    assert {name for name, row in found.items() if row.quantized} == quantized
    assert 'encoder.embed' not in found
    assert 'encoder.norm' not in found


class Tokens(nn.Module):
    """Multiplies by a matrix of its own, beside the parameters of a transformer that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.text_projection = nn.Parameter(torch.zeros(8, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.logit_scale = nn.Parameter(torch.zeros(2, 1, 1))


def test_weights_by_other_names_are_layers_in_float():
    net = tree(stem=nn.Linear(8, 8), rnn=nn.LSTM(8, 8, proj_size=4), cell=nn.GRUCell(4, 8), tokens=Tokens())
    net.head = nn.Linear(8, 2)
    plan = mmgdrq.plan(net)
    found = {row.name: row for row in plan}
    assert list(found) == ['stem', 'rnn', 'cell', 'tokens', 'head']
    for name, parameters in (('rnn', 32 * 8 + 32 * 4 + 4 * 8), ('cell', 24 * 4 + 24 * 8), ('tokens', 8 * 4)):
        row = found[name]
        assert (row.kind, row.parameters, row.quantized) == ('other', parameters, False)
        assert row.reason == f'{row.module} has no quantized counterpart'
    assert plan.summary().startswith('2 of 5 weight layers quantized, 9.8% of 816 weights')


def test_the_norm_of_a_weight_is_no_layer():
    for norm in (utils.spectral_norm, utils.parametrizations.spectral_norm, utils.parametrizations.weight_norm):
        plan = mmgdrq.plan(nn.Sequential(nn.Linear(8, 8), norm(nn.Linear(8, 4))))
        assert [(row.name, row.parameters) for row in plan] == [('0', 64), ('1', 32)]


@pytest.mark.parametrize(
    ('model', 'quant'),
    [
        (nn.Sequential(nn.ReLU()), {}),
        (nn.LSTM(3, 4), {}),
        (nn.Sequential(nn.Bilinear(3, 4, 2)), {}),
        (nn.Sequential(nn.Linear(3, 4)), dict(rules=[dict(pattern='*', skip=True)])),
        (nn.Sequential(nn.Linear(3, 4)), dict(weight=dict(bits=32), activation=dict(bits=32))),
    ],
)
def test_nothing_to_quantize_is_an_error(model, quant):
    with pytest.raises(ConfigError, match='nothing would be quantized'):
        mmgdrq.quantize(model, **quant)


def test_a_plan_changes_nothing():
    model = classifier()
    before = repr(model), list(model.state_dict())
    mmgdrq.plan(model, weight=dict(bits=3))
    assert (repr(model), list(model.state_dict())) == before


def test_a_shared_layer_is_one_row():
    shared = conv(8, 8)
    model = tree(backbone=tree(conv1=conv(3, 8)), head=tree(a=shared, b=shared, fc_cls=nn.Linear(8, 2)))
    assert list(rows(model)) == ['backbone.conv1', 'head.a', 'head.fc_cls']


def test_the_table():
    text = str(mmgdrq.plan(classifier(), weight=dict(bits=2, group_size=4), rules=[dict(pattern='head', skip=True)]))
    assert text.splitlines() == [
        'layer              type    weight  activation  group  params  bytes  why',
        '-----------------  ------  ------  ----------  -----  ------  -----  -----------------------------',
        'backbone.conv1     Conv2d  8       8           4      216     216    reads the image (by channels)',
        'backbone.layer1.0  Conv2d  2       4           4      576     144',
        'backbone.layer1.1  Conv2d  2       4           4      576     144',
        'head.fc            Linear  -       -           -      80      320    skipped by rules[0]',
        '3 of 4 weight layers quantized, 94.5% of 1,448 weights, 4.55 bits per weight on average',
    ]


class Encoder(nn.TransformerEncoderLayer):
    """A subclass, which has the fast path as well."""


@pytest.mark.parametrize('cls', [nn.TransformerEncoderLayer, Encoder])
def test_layers_that_a_fast_path_bypasses_stay_in_float(cls):
    net = nn.Sequential(nn.Linear(8, 8), cls(8, 2, 16), nn.Linear(8, 8))
    plan = {row.name: row for row in mmgdrq.plan(net)}
    for name in ('1.self_attn', '1.self_attn.out_proj', '1.linear1', '1.linear2'):
        assert not plan[name].quantized
        assert f'{cls.__name__} reads this weight without calling the layer' in plan[name].reason
    assert plan['0'].quantized
    assert plan['2'].quantized
    with pytest.raises(ConfigError, match='cannot be quantized'):
        mmgdrq.plan(net, rules=[dict(pattern='1.linear1', weight=dict(bits=8))])


@pytest.mark.parametrize(
    ('cls', 'window'),
    [
        (swin_transformer.ShiftedWindowAttention, [2, 2]),
        (swin_transformer.ShiftedWindowAttentionV2, [2, 2]),
        (video.swin_transformer.ShiftedWindowAttention3d, [2, 2, 2]),
    ],
)
def test_the_window_attention_of_torchvision_stays_in_float(cls, window):
    net = nn.Sequential(nn.Linear(8, 8), cls(8, window, [0] * len(window), 2), nn.Linear(8, 8))
    plan = {row.name: row for row in mmgdrq.plan(net)}
    for name in ('1.qkv', '1.proj'):
        assert plan[name].reason == f'{cls.__name__} reads this weight without calling the layer'


def test_layers_that_were_built_quantized_count_and_may_be_first_and_last():
    def own(inputs, outputs, **quant):
        return mmgdrq.Conv2d(inputs, outputs, 3, **quant)

    model = tree(
        backbone=tree(conv1=own(3, 8, weight=dict(bits=5)), layer1=own(8, 8, activation=dict(bits=32))),
        neck=conv(8, 8),
        bbox_head=tree(tower=conv(8, 8), conv_cls=conv(8, 4)),
    )
    plan = mmgdrq.state(mmgdrq.quantize(model)).plan
    bits = {row.name: (row.weight.bits, row.activation.bits) for row in plan}
    assert bits == {
        'backbone.conv1': (5, 4),
        'backbone.layer1': (2, 32),
        'neck': (2, 4),
        'bbox_head.tower': (2, 4),
        'bbox_head.conv_cls': (8, 8),
    }
    assert plan.summary().startswith('5 of 5 weight layers quantized, 100.0% of')
    assert [row.built for row in plan] == [True, True, False, False, False]
    assert model.backbone.conv1.weight_quantizer.spec.bits == 5


def test_weights_in_float_are_not_counted():
    rules = [dict(pattern='head', weight=dict(bits=32)), dict(pattern='backbone.layer1.1', skip=True)]
    plan = mmgdrq.plan(classifier(), rules=rules)
    weights = {row.name: row.parameters for row in plan}
    quantized = weights['backbone.conv1'] + weights['backbone.layer1.0']
    assert f'{quantized / sum(weights.values()):.1%} of {sum(weights.values()):,} weights' in plan.summary()
    large = tree(backbone=tree(conv1=conv(3, 8), layer1=conv(200, 200)), head=tree(fc=nn.Linear(8, 2)))
    plan = mmgdrq.plan(large, rules=[dict(pattern='head', skip=True)])
    assert '99.9% of' in plan.summary(), 'not rounded to all of them'


def test_nothing_to_quantize_says_why():
    with pytest.raises(
        ConfigError,
        match=r'32 bits asked; prediction layer \(by name\); 32 bits asked; reads the image \(by channels\)\)',
    ):
        mmgdrq.quantize(classifier(), dict(bits=32), dict(bits=32))


def test_filters_are_output_channels():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2), nn.Linear(6, 7))
    assert [row.filters for row in mmgdrq.plan(net)] == [4, 6, 7]
