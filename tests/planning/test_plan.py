"""A plan can be printed, edited, saved and read, and costs what its bits say."""

import json
import pickle
from copy import deepcopy

import pytest
from torch import nn

import mmgdrq
from mmgdrq import Plan
from mmgdrq.errors import ConfigError
from mmgdrq.quant import ActivationSpec, WeightSpec
from tests.helpers.plans import classifier, conv, odd_model, retina, tree


def plan_of(model, **quant) -> Plan:
    return mmgdrq.plan(model, **quant)


def bits(plan) -> dict:
    return {row.name: row.weight and (row.weight.bits, row.activation.bits) for row in plan}


def test_set_changes_what_the_pattern_matches():
    plan = plan_of(retina())
    before = bits(plan)
    assert plan.set('neck.*', weight_bits=4) is plan
    changed = {name: now for name, now in bits(plan).items() if now != before[name]}
    assert changed == {'neck.lateral_convs.0.conv': (4, 4), 'neck.fpn_convs.0.conv': (4, 4)}
    assert {row.reason for row in plan if row.name in changed} == {'by plan.set'}


def test_set_says_all_that_a_rule_says():
    by_rules = dict(weight=dict(bits=5, group_size=4), activation=dict(range='minmax'))
    ruled = plan_of(
        classifier(), rules=[dict(pattern='backbone', kind='conv', **by_rules), dict(pattern='head', skip=True)]
    )
    plan = plan_of(classifier())
    plan.set('backbone', kind='conv', weight_bits=5, weight_group_size=4, activation_range='minmax').set(
        'head', skip=True
    )
    assert [(row.weight, row.activation) for row in plan] == [(row.weight, row.activation) for row in ruled]
    assert plan[-1].reason == 'skipped by plan.set'
    assert plan == plan_of(classifier()).set('backbone', **by_rules).set('head', skip=True)
    assert plan_of(classifier()).set('head', weight=WeightSpec(bits=6, p=1))[-1].weight == WeightSpec(bits=6, p=1)


def test_a_skipped_layer_comes_back_with_what_it_would_have():
    plan = plan_of(classifier(), weight=dict(bits=3, group_size=4), rules=[dict(pattern='head', skip=True)])
    plan.set('head', weight_bits=5)
    assert plan[-1].weight == WeightSpec(bits=5, group_size=4)
    assert plan[-1].activation == ActivationSpec(bits=8), 'that of a prediction layer'
    off = plan_of(classifier()).set('head', weight_bits=32, activation_bits=32)
    assert (off[-1].weight, off[-1].reason) == (None, '32 bits asked; by plan.set')
    assert off.set('head', weight_bits=4, activation_bits=4)[-1].quantized


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (dict(pattern='nekc', skip=True), r"plan.set: .*'nekc'.* matches no layer"),
        (dict(pattern='head', weight_bit=4), "plan.set: unknown key 'weight_bit'. Did you mean 'weight_bits'"),
        (dict(pattern='head', weights=dict(bits=4)), "unknown key 'weights'. Did you mean 'weight'"),
        (dict(pattern='head', weight_bits=9), 'plan.set.weight: bits=9'),
        (dict(pattern='head', weight=dict(bit=9)), "plan.set.weight: unknown key 'bit'"),
        (dict(pattern='head', weight=WeightSpec(), weight_bits=4), 'beside a whole spec'),
        (dict(pattern='head'), 'plan.set: expected either skip=True or'),
        (dict(skip=True), 'needs a pattern, a kind or both'),
        (dict(pattern='backbone.pair', weight_bits=4), "cannot be quantized, such as 'backbone.pair'"),
        (dict(pattern='backbone.conv1', weight_group_size=4), r"'backbone.conv1' is not quantized \(skipped by rules"),
    ],
)
def test_a_wrong_change_leaves_the_plan(change, match):
    plan = plan_of(odd_model(), rules=[dict(pattern='backbone.conv1', skip=True)])
    before = Plan(plan)
    with pytest.raises(ConfigError, match=match):
        plan.set(**change)
    assert plan == before


def shared_model():
    shared = conv(8, 8)
    return tree(backbone=tree(conv1=conv(3, 8)), head=tree(a=shared, b=shared, fc_cls=nn.Linear(8, 2)))


def test_all_names_of_a_shared_layer_count():
    plan = plan_of(shared_model()).set('head.b', weight_bits=7)
    assert bits(plan) == {'backbone.conv1': (8, 8), 'head.a': (7, 4), 'head.fc_cls': (8, 8)}


CASES = {
    'plain': (classifier, {}),
    'rules': (retina, dict(weight=dict(bits=3, k=1.7), rules=[dict(pattern='neck', skip=True)])),
    'odd': (odd_model, dict(activation=dict(bits=32))),
    'shared': (shared_model, dict(weight=dict(range='search'), activation=dict(momentum=0.123456789, signed=True))),
    'built': (lambda: tree(conv1=conv(3, 8), conv2=mmgdrq.Conv2d(8, 8, 3, weight=dict(bits=5))), {}),
}


@pytest.mark.parametrize('case', CASES)
def test_json_gives_an_equal_plan(case, tmp_path):
    build, quant = CASES[case]
    plan = plan_of(build(), **quant)
    path = tmp_path / 'plans/plan.json'
    plan.save(path)
    for read in (Plan.from_json(plan.to_json()), Plan.load(path), pickle.loads(pickle.dumps(plan)), deepcopy(plan)):
        assert read == plan
        assert type(read) is Plan
        assert str(read) == str(plan)
    layers = json.loads(path.read_text())['rows']
    assert [row['name'] for row in layers] == [row.name for row in plan]


def edited(**changes) -> str:
    data = json.loads(plan_of(classifier()).to_json())
    data['rows'][1].update(changes)
    return json.dumps(data)


def without(key: str) -> str:
    data = json.loads(plan_of(classifier()).to_json())
    del data['rows'][1][key]
    return json.dumps(data)


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('{', r'plan.json: it is not JSON'),
        ('[]', 'plan.json: it is no plan'),
        ('{"format": "mmgdrq.plan", "version": 2, "rows": []}', 'version 2; this mmgdrq reads 1'),
        ('{"format": "mmgdrq.plan", "version": 1, "rows": [3]}', r'plan.json.rows\[0\]: expected an object'),
        (edited(weight={'bit': 4}), r"plan.json.rows\[1\].weight: unknown key 'bit'. Did you mean 'bits'"),
        (edited(weight={'bits': 1}), r'plan.json.rows\[1\].weight: bits=1'),
        (edited(weight=None), r'plan.json.rows\[1\]: weight and activation are both null'),
        (edited(raeson=''), r"plan.json.rows\[1\]: unknown key 'raeson'. Did you mean 'reason'"),
        (without('name'), r"plan.json.rows\[1\]: 'name' is missing"),
    ],
)
def test_a_file_that_is_no_plan(text, match, tmp_path):
    path = tmp_path / 'plan.json'
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        Plan.load(path)


def test_bytes_at_the_bits_of_a_layer():
    plan = plan_of(classifier(), weight=dict(bits=3), rules=[dict(pattern='head', skip=True)])
    assert [row.bytes for row in plan] == [216, 576 * 3 // 8, 576 * 3 // 8, 80 * 4]
    plan = plan_of(nn.Sequential(nn.Linear(8, 8), nn.Linear(3, 3, bias=False), nn.Linear(3, 8)), weight=dict(bits=3))
    assert plan[1].bytes == 4, '27 bits'


def test_a_notebook_shows_a_table():
    text = plan_of(tree(a=conv(3, 8), b=Ampersand(8, 8, 1)))._repr_html_()
    assert text.count('<tr>') == 3
    assert '<td>a</td>' in text
    assert '2 of 2 weight layers quantized' in text


class Ampersand(nn.Conv2d):
    """A layer whose class is called by something that HTML would read."""


Ampersand.__name__ = 'A<&>'


def test_signs_of_html_are_escaped():
    assert 'A&lt;&amp;&gt;' in plan_of(tree(a=conv(3, 8), b=Ampersand(8, 8, 1)))._repr_html_()
