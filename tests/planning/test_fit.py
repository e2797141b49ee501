"""A plan is applied exactly as it is, to a model that it is of."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq import Plan
from mmgdrq.errors import ConfigError
from mmgdrq.layers import built_specs, is_quantized
from mmgdrq.quant import ActivationSpec, WeightSpec
from tests.helpers.plans import classifier, odd_model, retina, tree


def test_an_edited_plan_is_applied_exactly(tmp_path):
    plan = (
        mmgdrq.plan(retina(), dict(bits=3)).set('neck', weight_bits=5, weight_group_size=4).set('backbone', skip=True)
    )
    plan.save(tmp_path / 'plan.json')
    model = mmgdrq.quantize(retina(), plan=Plan.load(tmp_path / 'plan.json'))
    modules = dict(model.named_modules())
    for row in plan:
        layer = modules[row.name]
        assert is_quantized(layer) == row.quantized
        if row.quantized:
            assert built_specs(layer) == (row.weight, row.activation)
    assert mmgdrq.state(model).plan == plan
    plan.set('neck', skip=True)
    assert mmgdrq.state(model).plan != plan, 'the plan of the model is its own'


def test_the_plan_that_was_made_is_that_without_one():
    torch.manual_seed(0)
    quant = dict(weight=dict(bits=3), rules=[dict(pattern='head', skip=True)])
    one = classifier()
    two = mmgdrq.quantize(classifier(), plan=mmgdrq.plan(classifier(), **quant))
    assert repr(mmgdrq.quantize(one, **quant)) == repr(two)
    assert mmgdrq.state(one).plan == mmgdrq.state(two).plan


def changed(index: int, **values) -> Plan:
    from dataclasses import replace

    plan = mmgdrq.plan(odd_model())
    plan[index] = replace(plan[index], **values)
    return plan


def shorter() -> Plan:
    return Plan(row for row in mmgdrq.plan(odd_model()) if row.name != 'encoder.middle')


PAIR = [row.name for row in mmgdrq.plan(odd_model())].index('backbone.pair')
QUANTIZED = dict(weight=WeightSpec(), activation=ActivationSpec())


@pytest.mark.parametrize(
    ('plan', 'match'),
    [
        (changed(0, name='backbone.conv2'), r"no weight layer 'backbone.conv2'. The nearest is 'backbone.conv1'"),
        (changed(1, name='backbone.conv1'), "no weight layer 'backbone.conv1'"),
        (shorter(), "says nothing about 'encoder.middle'"),
        (changed(0, parameters=217), "'backbone.conv1' has parameters=217, in the model it has 216"),
        (changed(0, module='Conv3d'), "'backbone.conv1' has module='Conv3d', in the model it has 'Conv2d'"),
        (changed(0, built=True), "'backbone.conv1' has built=True"),
        (changed(PAIR, **QUANTIZED), "'backbone.pair' cannot be quantized: Bilinear has no quantized counterpart"),
        ([], 'expected a result of mmgdrq.plan or Plan.load, got list'),
        (Plan(), "says nothing about 'backbone.conv1'"),
    ],
)
def test_a_plan_of_another_model_names_the_layer(plan, match):
    model = odd_model()
    before = repr(model)
    with pytest.raises(ConfigError, match=match):
        mmgdrq.quantize(model, plan=plan)
    assert repr(model) == before


def test_layers_that_are_quantized_already_keep_their_specs():
    def build(bits: int):
        return tree(conv1=nn.Conv2d(3, 8, 3), conv2=mmgdrq.Conv2d(8, 8, 3, weight=dict(bits=bits)))

    plan = mmgdrq.plan(build(5))
    mmgdrq.quantize(build(5), plan=plan)
    with pytest.raises(ConfigError, match="'conv2' is a quantized layer already, with other specs"):
        mmgdrq.quantize(build(4), plan=plan)


@pytest.mark.parametrize('quant', [dict(weight=dict(bits=3)), dict(rules=[dict(pattern='head', skip=True)])])
def test_a_plan_beside_what_it_says(quant):
    with pytest.raises(ConfigError, match='plan: it says all about weight, activation and rules'):
        mmgdrq.quantize(classifier(), plan=mmgdrq.plan(classifier()), **quant)
    with pytest.raises(ConfigError, match='plan: it says all about weight, activation and rules'):
        mmgdrq.quantize(classifier(), plan=mmgdrq.plan(classifier()), config=quant)
