"""What a quantization config may say, and how a wrong one is reported."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq.errors import ConfigError
from mmgdrq.quant import ActivationSpec, WeightSpec, make_spec, override_spec
from mmgdrq.quant.specs import GRIDS
from tests.helpers import reference

WRONG_WEIGHT = [
    ('bits', 1, '2 to 8'),
    ('bits', 9, '2 to 8'),
    ('bits', 0, '2 to 8'),
    ('bits', 16, '2 to 8'),
    ('bits', True, 'integer'),
    ('bits', 2.0, 'integer'),
    ('bits', '2', 'integer'),
    ('bits', None, 'integer'),
    ('group_size', 0, '1 or more'),
    ('group_size', -2, '1 or more'),
    ('group_size', True, 'integer'),
    ('group_size', 1.5, 'integer'),
    ('range', 'means', "'mean'"),
    ('range', 'active_mean', "'search'"),
    ('range', True, "'search'"),
    ('k', 0, 'positive'),
    ('k', -1.0, 'positive'),
    ('k', float('nan'), 'positive'),
    ('k', float('inf'), 'positive'),
    ('k', True, 'number'),
    ('k', '2', 'number'),
    ('grid', 'midriser', "'midrise'"),
    ('grid', True, "'narrow_range'"),
    ('p', 3, '1, 2'),
    ('p', True, '1, 2'),
]

WRONG_ACTIVATION = [
    ('bits', 1, '2 to 8'),
    ('bits', 9, '2 to 8'),
    ('bits', False, 'integer'),
    ('range', 'max', "'minmax'"),
    ('k', 0.0, 'positive'),
    ('momentum', 0, '(0, 1]'),
    ('momentum', -0.1, '(0, 1]'),
    ('momentum', 1.1, '(0, 1]'),
    ('momentum', float('nan'), '(0, 1]'),
    ('momentum', True, 'number'),
    ('momentum', 'slow', 'number'),
    ('signed', 'yes', "'auto'"),
    ('signed', 1, "'auto'"),
    ('signed', None, "'auto'"),
    ('p', 0, '1, 2'),
]


@pytest.mark.parametrize(
    ('cls', 'where', 'key', 'value', 'expected'),
    [(WeightSpec, 'weight', *case) for case in WRONG_WEIGHT]
    + [(ActivationSpec, 'activation', *case) for case in WRONG_ACTIVATION],
)
def test_wrong_value_names_key_and_expectation(cls, where, key, value, expected):
    with pytest.raises(ConfigError) as caught:
        cls(**{key: value})
    assert str(caught.value).startswith(f'{where}: {key}=')
    assert expected in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        make_spec(cls, {key: value}, 'rules[3].thing')
    assert str(caught.value).startswith(f'rules[3].thing: {key}=')
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ('cls', 'wrong', 'right'),
    [
        (WeightSpec, 'bitz', 'bits'),
        (WeightSpec, 'groupsize', 'group_size'),
        (WeightSpec, 'grids', 'grid'),
        (ActivationSpec, 'momentun', 'momentum'),
        (ActivationSpec, 'sign', 'signed'),
    ],
)
def test_misspelled_key_names_the_nearest(cls, wrong, right):
    with pytest.raises(ConfigError) as caught:
        make_spec(cls, {wrong: 1}, 'here')
    assert str(caught.value).startswith(f"here: unknown key '{wrong}'. Did you mean '{right}'?")
    for field in dataclasses.fields(cls):
        assert field.name in str(caught.value)


@pytest.mark.parametrize('config', [4, 'bits=4', [4], [('bits', 4)], ActivationSpec()])
def test_config_of_a_wrong_type(config):
    with pytest.raises(ConfigError, match='weight: expected a dict'):
        make_spec(WeightSpec, config, 'weight')


def test_edges_of_the_valid_values():
    for bits in (*range(2, 9), 32):
        assert WeightSpec(bits=bits).bits == ActivationSpec(bits=bits).bits == bits
        assert WeightSpec(bits=bits).enabled == ActivationSpec(bits=bits).enabled == (bits != 32)
    assert WeightSpec(group_size=-1).group_size == -1
    assert ActivationSpec(momentum=1).momentum == 1
    assert ActivationSpec(signed=True).signed is True
    assert WeightSpec(k=3).multiplier == 3.0


def test_spec_is_frozen_and_equal_by_value():
    spec = WeightSpec(bits=3)
    assert spec == WeightSpec(bits=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.bits = 4


def test_override_keeps_the_other_values():
    spec = WeightSpec(bits=3, group_size=4, range='search', k=2.2)
    assert override_spec(spec, None, 'weight') is spec
    assert override_spec(spec, dict(bits=5), 'weight') == WeightSpec(bits=5, group_size=4, range='search', k=2.2)
    assert override_spec(spec, WeightSpec(), 'weight') == WeightSpec()
    assert make_spec(WeightSpec, None, 'weight') == WeightSpec()


@given(st.integers(2, 8), st.sampled_from(GRIDS), st.booleans())
def test_grids_are_those_of_the_method(bits, grid, signed):
    spec = WeightSpec(bits=bits, grid=grid)
    assert (*spec.code_limits, spec.levels, spec.offset) == reference.weight_grid(bits, spec.effective_grid)
    assert spec.effective_grid == ('twos_complement' if (bits, grid) == (8, 'midrise') else grid)
    spec = ActivationSpec(bits=bits)
    assert (*spec.code_limits(signed), spec.levels(signed), 0.0) == reference.activation_grid(bits, signed)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('bits', range(2, 9))
def test_integers_hold_every_level_and_fit_int8(bits, grid):
    spec = WeightSpec(bits=bits, grid=grid)
    lowest, stride = spec.integers
    low, high = spec.code_limits
    integers = [(code + spec.offset) * stride for code in range(low, high + 1)]
    assert all(value == int(value) and -128 <= value <= 127 for value in integers)
    assert all(0 <= (value - lowest) / stride < 2**bits for value in integers)


def test_two_bits_are_symmetric_unless_asked_otherwise():
    spec = WeightSpec(bits=2)
    assert [code + spec.offset for code in range(spec.code_limits[0], spec.code_limits[1] + 1)] == [
        -1.5,
        -0.5,
        0.5,
        1.5,
    ]
    assert WeightSpec(bits=2, grid='narrow_range').code_limits == (-1, 1)
    assert WeightSpec(bits=2, grid='twos_complement').code_limits == (-2, 1)
    for bits in range(3, 9):
        assert WeightSpec(bits=bits).code_limits == WeightSpec(bits=bits, grid='twos_complement').code_limits


def test_default_multipliers():
    full = WeightSpec(bits=2, grid='twos_complement')
    assert full.multiplier == full.clip_multiplier == 2.0, 'the fixed point of k = 2 is the uniform distribution'
    for bits in range(2, 9):
        assert WeightSpec(bits=bits).clip_multiplier >= 2.0, 'Scale-Clip below k = 2 shrinks the weights'
    assert WeightSpec(bits=2, k=1.2).clip_multiplier == 1.2
    for cls_args in ((WeightSpec, ()), (ActivationSpec, (False,)), (ActivationSpec, (True,))):
        cls, args = cls_args
        specs = [cls(bits=bits) for bits in range(2, 9)]
        values = [spec.multiplier(*args) if args else spec.multiplier for spec in specs]
        assert values == sorted(values), 'more bits leave room for a wider range'
    for bits in range(2, 9):
        zeros_included = ActivationSpec(bits=bits, range='mean').multiplier(False)
        assert zeros_included > ActivationSpec(bits=bits).multiplier(False)
    assert ActivationSpec(k=7).multiplier(False) == ActivationSpec(k=7).multiplier(True) == 7.0
