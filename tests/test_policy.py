"""Which layer is quantized to what, and why."""

import pytest
from torch import nn
from torch.nn.utils import parametrizations

import mmgdrq
from mmgdrq.edges import is_prediction, prediction_layers
from mmgdrq.errors import ConfigError


def conv(inputs, outputs, size=3):
    return nn.Conv2d(inputs, outputs, size)


def tree(**children):
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def conv_module(inputs, outputs):
    return tree(conv=conv(inputs, outputs), bn=nn.BatchNorm2d(outputs))


def classifier():
    return tree(
        backbone=tree(conv1=conv(3, 8), bn1=nn.BatchNorm2d(8), layer1=nn.Sequential(conv(8, 8), conv(8, 8))),
        head=tree(fc=nn.Linear(8, 10)),
    )


def retina():
    return tree(
        backbone=tree(conv1=conv(3, 8), layer1=nn.Sequential(conv(8, 8))),
        neck=tree(lateral_convs=nn.ModuleList([conv_module(8, 8)]), fpn_convs=nn.ModuleList([conv_module(8, 8)])),
        bbox_head=tree(
            cls_convs=nn.ModuleList([conv_module(8, 8), conv_module(8, 8)]),
            reg_convs=nn.ModuleList([conv_module(8, 8)]),
            retina_cls=conv(8, 9),
            retina_reg=conv(8, 4),
        ),
    )


def faster_rcnn():
    return tree(
        backbone=tree(conv1=conv(3, 8), layer1=nn.Sequential(conv(8, 8))),
        rpn_head=tree(rpn_conv=conv(8, 8), rpn_cls=conv(8, 1, 1), rpn_reg=conv(8, 4, 1)),
        roi_head=tree(
            bbox_head=tree(shared_fcs=nn.ModuleList([nn.Linear(8, 8)]), fc_cls=nn.Linear(8, 3), fc_reg=nn.Linear(8, 8)),
            mask_head=tree(convs=nn.ModuleList([conv_module(8, 8)]), conv_logits=conv(8, 2, 1)),
        ),
    )


def segmentor():
    return tree(
        backbone=tree(stem=nn.Sequential(conv(3, 8), conv(8, 8)), layer1=nn.Sequential(conv(8, 8))),
        decode_head=tree(bottleneck=conv_module(8, 8), conv_seg=conv(8, 5, 1)),
        auxiliary_head=tree(convs=nn.Sequential(conv_module(8, 8)), conv_seg=conv(8, 5, 1)),
    )


def rows(model, **quant):
    return {row.name: row for row in mmgdrq.plan(model, **quant)}


def at_eight(model):
    return {name for name, row in rows(model, weight=dict(bits=2)).items() if row.weight and row.weight.bits == 8}


@pytest.mark.parametrize(
    ('build', 'edges'),
    [
        (classifier, {'backbone.conv1', 'head.fc'}),
        (retina, {'backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg'}),
        (
            faster_rcnn,
            {
                'backbone.conv1',
                'rpn_head.rpn_cls',
                'rpn_head.rpn_reg',
                'roi_head.bbox_head.fc_cls',
                'roi_head.bbox_head.fc_reg',
                'roi_head.mask_head.conv_logits',
            },
        ),
        (segmentor, {'backbone.stem.0', 'decode_head.conv_seg', 'auxiliary_head.conv_seg'}),
    ],
)
def test_default_policy(build, edges):
    model = build()
    assert at_eight(model) == edges
    for name, row in rows(model, weight=dict(bits=2), activation=dict(bits=4)).items():
        assert (row.weight.bits, row.activation.bits) == ((8, 8) if name in edges else (2, 4))
        assert row.reason == {True: 'reads the image', False: 'prediction layer'}[name.startswith('backbone')] * (
            name in edges
        )


def test_a_plain_net_has_its_first_and_last_layer_at_eight_bits():
    net = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert at_eight(net) == {'0', '2'}


def test_edges_keep_what_is_above_eight_bits():
    model = rows(classifier(), weight=dict(bits=32), activation=dict(bits=4))
    assert model['backbone.conv1'].weight.bits == 32
    assert model['backbone.conv1'].activation.bits == 8


@pytest.mark.parametrize(
    ('name', 'prediction'),
    [
        ('bbox_head.fc_cls', True),
        ('head.fc_cls', True),
        ('bbox_head.conv_centerness', True),
        ('bbox_head.heatmap_head.1', False),
        ('backbone.fc_cls', False),
        ('bbox_head.cls_convs.1.conv', False),
        ('bbox_head.reg_convs.0', False),
        ('bbox_head.multi_level_conv_cls.0', True),
        ('decode_head.conv_seg', True),
        ('decode_head.convs.0.conv', False),
        ('bbox_head.bbox_pred', True),
        ('bbox_head.reppoints_cls_conv', False),
        ('bbox_head.reppoints_cls_out', True),
        ('head.layers.pre_logits', False),
        ('head.layers.head', True),
        ('bbox_head.cls_convs.0.conv.conv_offset', False),
        ('decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets', False),
        ('head.conv_cls_head', True),
        ('head.head_dist.linear', True),
        ('head.fc', False),
    ],
)
def test_names_of_predictions(name, prediction):
    assert is_prediction(name) is prediction


def test_prediction_layers_of_branches():
    """DETR has one a decoder layer, CenterNet and mask transformers the last of a short sequence, SSD one a level."""

    def mlp():
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    detr = tree(
        backbone=tree(conv1=conv(3, 8), layer1=conv(8, 8)),
        bbox_head=tree(
            cls_branches=nn.ModuleList([nn.Linear(8, 9), nn.Linear(8, 9)]), reg_branches=nn.ModuleList([mlp(), mlp()])
        ),
    )
    assert at_eight(detr) == {
        'backbone.conv1',
        'bbox_head.cls_branches.0',
        'bbox_head.cls_branches.1',
        'bbox_head.reg_branches.0.2',
        'bbox_head.reg_branches.1.2',
    }
    former = tree(backbone=tree(conv1=conv(3, 8)), decode_head=tree(cls_embed=nn.Linear(8, 9), mask_embed=mlp()))
    assert at_eight(former) == {'backbone.conv1', 'decode_head.cls_embed', 'decode_head.mask_embed.2'}
    levels = [nn.Sequential(conv(8, 8), conv(8, 9)) for _ in range(2)]
    ssd = tree(
        backbone=tree(conv1=conv(3, 8)),
        bbox_head=tree(cls_convs=nn.ModuleList(levels), reg_convs=nn.ModuleList([nn.Sequential(conv(8, 4))])),
    )
    expected = {'bbox_head.cls_convs.0.1', 'bbox_head.cls_convs.1.1', 'bbox_head.reg_convs.0.0'}
    assert at_eight(ssd) == {'backbone.conv1', *expected}


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        ('bbox_head.aux_cls_branches.0 bbox_head.aux_reg_branches.0.0 bbox_head.aux_reg_branches.0.2', {0, 2}),
        ('neck.1.dyhead_blocks.0.spatial_conv_offset bbox_head.atss_cls bbox_head.cls_convs.0.conv', {1}),
        ('panoptic_head.pixel_decoder.output_convs.0.conv panoptic_head.pixel_decoder.mask_feature', {1}),
        ('decode_head.kernel_update_head.0.fc_mask decode_head.kernel_update_head.0.mask_fcs.0', {0}),
        ('bbox_head.rtm_kernel.0 bbox_head.mask_head.stacked_convs.0.conv bbox_head.mask_head.projection', {0, 2}),
        ('bbox_head.tl_off.0.0.conv bbox_head.tl_off.0.1.conv bbox_head.tl_dcn_offset.0.conv', {1}),
        ('backbone.layers.0.fc neck.head', {1}),
        ('backbone.layers.0.fc neck.fc', {1}),
    ],
)
def test_prediction_layers_by_their_names(names, expected):
    names = names.split()
    assert set(prediction_layers(dict.fromkeys(names))) == {names[i] for i in expected}


def test_a_momentum_encoder_is_frozen_and_predicts_nothing():
    def encoder():
        return nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 4))

    model = nn.ModuleDict(
        dict(backbone=nn.Sequential(conv(3, 8), conv(8, 8)), neck=nn.Linear(8, 4), encoder_k=encoder())
    )
    model['encoder_k'].requires_grad_(False)
    found = rows(model)
    assert found['neck'].reason == 'prediction layer'
    assert found['encoder_k.2'].reason.startswith('frozen')


def test_later_rules_win():
    rules = [
        dict(pattern='backbone', weight=dict(bits=3, group_size=4)),
        dict(pattern='backbone.layer1.0', weight=dict(bits=5)),
    ]
    found = rows(classifier(), rules=rules)
    assert found['backbone.layer1.1'].weight.bits == 3
    assert found['backbone.layer1.1'].reason == 'by rules[0]'
    assert (found['backbone.layer1.0'].weight.bits, found['backbone.layer1.0'].weight.group_size) == (5, 4)
    assert found['backbone.layer1.0'].reason == 'by rules[1]'
    assert found['backbone.conv1'].weight.bits == 3, 'a rule outweighs the default of 8 bits'
    assert found['backbone.conv1'].activation.bits == 8
    assert found['head.fc'].weight.bits == 8
    reversed_rules = rows(classifier(), rules=rules[::-1])
    assert reversed_rules['backbone.layer1.0'].weight.bits == 3


def test_a_later_rule_with_bits_quantizes_what_an_earlier_one_skips():
    rules = [
        dict(pattern='*', weight=dict(group_size=4)),
        dict(kind='conv', skip=True),
        dict(pattern='backbone.layer1.1', weight=dict(bits=3)),
        dict(pattern='*', activation=dict(momentum=0.3)),
    ]
    found = rows(classifier(), rules=rules)
    assert {name for name, row in found.items() if row.quantized} == {'backbone.layer1.1', 'head.fc'}
    again = found['backbone.layer1.1']
    assert (again.weight.bits, again.weight.group_size, again.activation.bits) == (3, 4, 4)
    assert again.reason == 'by rules[3]'
    assert again.activation.momentum == found['head.fc'].activation.momentum == 0.3
    assert found['backbone.layer1.0'].reason == 'skipped by rules[1]'
    found = rows(classifier(), rules=[*rules, dict(pattern='backbone', activation=dict(bits=6)), rules[1]])
    assert {name for name, row in found.items() if row.quantized} == {'head.fc'}
    assert found['backbone.layer1.1'].reason == 'skipped by rules[5]'
    found = rows(classifier(), rules=[dict(pattern='head', skip=True), dict(pattern='*.fc', activation=dict(bits=6))])
    assert (found['head.fc'].weight.bits, found['head.fc'].activation.bits) == (8, 6)


def test_a_multiplier_belongs_to_its_bits_grid_and_rule():
    def ks(**quant):
        return {name: (row.weight.multiplier, row.activation.multiplier(False)) for name, row in rows(**quant).items()}

    asked = dict(model=classifier(), weight=dict(bits=2, k=1.7), activation=dict(bits=4, k=1.9))
    edges, inner = (8.0, 2.7), (1.7, 1.9)
    assert ks(**asked) == {
        'backbone.conv1': edges,
        'backbone.layer1.0': inner,
        'backbone.layer1.1': inner,
        'head.fc': edges,
    }
    defaults = dict(model=classifier(), weight=dict(bits=2, k=2.0), activation=dict(bits=4, k=1.8))
    assert ks(**defaults) == ks(model=classifier(), weight=dict(bits=2), activation=dict(bits=4))
    changes = [
        dict(pattern='backbone.layer1.0', weight=dict(bits=3), activation=dict(bits=4)),
        dict(pattern='backbone.layer1.1', weight=dict(bits=3, k=1.1), activation=dict(momentum=0.2)),
        dict(pattern='head', weight=dict(k=7.0)),
    ]
    found = ks(**asked, rules=changes)
    assert found['backbone.layer1.0'] == (2.5, 1.9), 'the rule changes the bits of the weight alone'
    assert found['backbone.layer1.1'] == (1.1, 1.9)
    assert found['head.fc'] == (7.0, 2.7)
    changes = [
        dict(pattern='backbone.layer1.0', weight=dict(grid='narrow_range'), activation=dict(range='mean')),
        dict(pattern='backbone.layer1.1', weight=dict(range='search'), activation=dict(range='mean', k=1.9)),
    ]
    found = ks(**asked, rules=changes)
    assert found['backbone.layer1.0'] == (1.5, 12.0), 'the defaults of three levels and of the mean'
    assert found['backbone.layer1.1'] == (1.7, 1.9), 'Scale-Clip has the same k with every range of the weight'
    at_eight_already = ks(model=classifier(), weight=dict(bits=8, k=6.0), activation=dict(bits=8, k=2.0))
    assert set(at_eight_already.values()) == {(6.0, 2.0)}


def test_patterns_match_subtrees_and_globs_but_no_prefixes():
    def matched(pattern):
        found = rows(retina(), rules=[dict(pattern=pattern, skip=True)])
        return {name for name, row in found.items() if not row.quantized}

    assert matched('neck') == matched('neck.') == {'neck.lateral_convs.0.conv', 'neck.fpn_convs.0.conv'}
    assert matched('*.cls_convs.*') == {'bbox_head.cls_convs.0.conv', 'bbox_head.cls_convs.1.conv'}
    assert matched('bbox_head.retina_*') == {'bbox_head.retina_cls', 'bbox_head.retina_reg'}
    assert matched('backbone.layer1.0') == {'backbone.layer1.0'}
    with pytest.raises(ConfigError, match='matches no layer'):
        matched('backbone.lay')


def test_kinds():
    found = rows(faster_rcnn(), rules=[dict(kind='linear', weight=dict(bits=6))])
    assert {name for name, row in found.items() if row.weight.bits == 6} == {
        'roi_head.bbox_head.shared_fcs.0',
        'roi_head.bbox_head.fc_cls',
        'roi_head.bbox_head.fc_reg',
    }
    found = rows(faster_rcnn(), rules=[dict(pattern='roi_head', kind='conv', skip=True)])
    assert {name for name, row in found.items() if not row.quantized} == {
        'roi_head.mask_head.convs.0.conv',
        'roi_head.mask_head.conv_logits',
    }


@pytest.mark.parametrize(
    ('rules', 'match'),
    [
        ([dict(pattern='bakbone.conv1', skip=True)], r"rules\[0\].*matches no layer.*'backbone.conv1'"),
        ([dict(pattern='neck', skip=True), dict(pattern='head.x', skip=True)], r'rules\[0\].*matches no layer'),
        ([dict(patern='head', skip=True)], r"rules\[0\]: unknown key 'patern'. Did you mean 'pattern'"),
        ([dict(pattern='head', weights=dict(bits=4))], "unknown key 'weights'. Did you mean 'weight'"),
        ([dict(pattern='head', weight=dict(bit=4))], r"rules\[0\].weight: unknown key 'bit'. Did you mean 'bits'"),
        ([dict(pattern='head', weight=dict(bits=1))], r'rules\[0\].weight: bits=1'),
        ([dict(pattern='head', activation=4)], r'rules\[0\].activation: expected a dict'),
        ([dict(skip=True)], 'needs a pattern, a kind or both'),
        ([dict(pattern='head')], 'either skip=True or'),
        ([dict(pattern='head', skip=False)], 'either skip=True or'),
        ([dict(pattern='head', skip=True, weight=dict(bits=4))], 'either skip=True or'),
        ([dict(pattern='head', skip=1)], 'skip=1 is not True or False'),
        ([dict(pattern=3, skip=True)], 'pattern=3 is not a text'),
        ([dict(kind='dense', skip=True)], "kind='dense' is unknown"),
        (dict(pattern='head', skip=True), 'expected a list of dicts'),
        ('head', 'expected a list of dicts'),
        (['head'], r'rules\[0\]: expected a dict'),
        (
            [dict(pattern='head', skip=True), dict(pattern='head', weight=dict(group_size=4))],
            r"rules\[1\]: 'head.fc' was skipped by an earlier rule. Give bits",
        ),
        (
            [dict(pattern='head', skip=True), dict(pattern='head', weight=dict(bits=32))],
            r"rules\[1\]: 'head.fc' was skipped by an earlier rule. Give bits",
        ),
    ],
)
def test_wrong_rules(rules, match):
    with pytest.raises(ConfigError, match=match):
        mmgdrq.plan(classifier(), rules=rules)


def test_32_bits_is_float():
    found = rows(classifier(), rules=[dict(pattern='head', weight=dict(bits=32), activation=dict(bits=32))])
    assert not found['head.fc'].quantized
    assert '32 bits asked' in found['head.fc'].reason
    found = rows(classifier(), rules=[dict(pattern='head', weight=dict(bits=32))])
    assert found['head.fc'].quantized
    assert found['head.fc'].activation.bits == 8


class Unusual(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, input):
        return super().forward(input.abs())


class Renamed(nn.Conv2d):
    """A convolution with another name and the forward pass of torch."""


def odd_model():
    return tree(
        backbone=tree(conv1=conv(3, 8), odd=Unusual(8, 8, 3), renamed=Renamed(8, 8, 3), pair=nn.Bilinear(8, 8, 2)),
        encoder=tree(
            attention=nn.MultiheadAttention(8, 2, add_bias_kv=True),
            orthogonal=parametrizations.orthogonal(nn.Linear(8, 8)),
            embed=nn.Embedding(9, 8),
            norm=nn.LayerNorm(8),
            middle=nn.Linear(8, 8),
        ),
        head=tree(fc=nn.Linear(8, 2)),
    )


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


def test_a_rule_for_unsupported_layers_only():
    with pytest.raises(ConfigError, match=r"matches only layers that cannot be quantized, such as 'backbone.pair'"):
        mmgdrq.plan(odd_model(), rules=[dict(pattern='backbone.pair', weight=dict(bits=4))])
    mmgdrq.plan(odd_model(), rules=[dict(pattern='backbone.pair', skip=True)])


@pytest.mark.parametrize(
    ('model', 'quant'),
    [
        (nn.Sequential(nn.ReLU()), {}),
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
        'layer              type    weight  input  group  params  why',
        '-----------------  ------  ------  -----  -----  ------  -------------------',
        'backbone.conv1     Conv2d  8       8      4      216     reads the image',
        'backbone.layer1.0  Conv2d  2       4      4      576',
        'backbone.layer1.1  Conv2d  2       4      4      576',
        'head.fc            Linear  -       -      -      80      skipped by rules[0]',
        '3 of 4 weight layers quantized, 94.5% of 1,448 weights, 4.55 bits a weight on average',
    ]


def test_only_the_first_layer_is_an_edge_where_the_input_is_no_image():
    model = tree(
        backbone=tree(conv1=conv(16, 16), layer1=nn.Sequential(conv(16, 16), conv(16, 16))),
        head=tree(fc_cls=nn.Linear(16, 10)),
    )
    assert at_eight(model) == {'backbone.conv1', 'head.fc_cls'}


def test_every_convolution_that_reads_the_image_is_an_edge():
    model = tree(
        backbone=tree(fine=nn.Sequential(conv(3, 8), conv(8, 8)), coarse=nn.Sequential(conv(3, 8), conv(8, 8))),
        head=tree(fc_cls=nn.Linear(16, 10)),
    )
    assert at_eight(model) == {'backbone.fine.0', 'backbone.coarse.0', 'head.fc_cls'}


def test_layers_that_a_fast_path_bypasses_stay_in_float():
    net = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 8))
    plan = {row.name: row for row in mmgdrq.plan(net)}
    for name in ('1.self_attn', '1.self_attn.out_proj', '1.linear1', '1.linear2'):
        assert not plan[name].quantized
        assert 'TransformerEncoderLayer reads this weight without calling the layer' in plan[name].reason
    assert plan['0'].quantized
    assert plan['2'].quantized
    with pytest.raises(ConfigError, match='cannot be quantized'):
        mmgdrq.plan(net, rules=[dict(pattern='1.linear1', weight=dict(bits=8))])
