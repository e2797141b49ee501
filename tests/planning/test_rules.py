"""Rules of the user: which layers have other bits, or stay in float."""

import pytest

import mmgdrq
from mmgdrq.errors import ConfigError
from tests.helpers.plans import classifier, faster_rcnn, odd_model, retina, rows


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
    at_8_bits, inner = (8.0, 2.7), (1.7, 1.9)
    assert ks(**asked) == {
        'backbone.conv1': at_8_bits,
        'backbone.layer1.0': inner,
        'backbone.layer1.1': inner,
        'head.fc': at_8_bits,
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
    with pytest.raises(ConfigError, match=r'matches no layer.*tools/plan.py CONFIG'):
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
            r"rules\[1\]: 'head.fc' is not quantized \(skipped by rules\[0\]\). Give bits",
        ),
        (
            [dict(pattern='head', skip=True), dict(pattern='head', weight=dict(bits=32))],
            r"rules\[1\]: 'head.fc' is not quantized \(skipped by rules\[0\]\). Give bits",
        ),
    ],
)
def test_wrong_rules(rules, match):
    with pytest.raises(ConfigError, match=match):
        mmgdrq.plan(classifier(), rules=rules)


def test_a_rule_for_unsupported_layers_only():
    with pytest.raises(ConfigError, match=r"matches only layers that cannot be quantized, such as 'backbone.pair'"):
        mmgdrq.plan(odd_model(), rules=[dict(pattern='backbone.pair', weight=dict(bits=4))])
    mmgdrq.plan(odd_model(), rules=[dict(pattern='backbone.pair', skip=True)])
