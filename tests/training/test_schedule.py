"""When the stages begin."""

import pytest

from mmgdrq.errors import ConfigError
from mmgdrq.training.schedule import Schedule


def stages(config, until=6):
    schedule = Schedule.from_config(config)
    return [schedule.stage_at(now) for now in range(until)]


def test_without_a_config_everything_is_quantized_from_the_beginning():
    assert stages(None) == ['quantize'] * 6
    assert Schedule().first == 'quantize'
    assert not Schedule().frozen_at(10**9)


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (dict(quantize=2), ['float'] * 2 + ['quantize'] * 4),
        (dict(reshape=0), ['reshape'] * 6),
        (dict(reshape=1, quantize=3), ['float', 'reshape', 'reshape', 'quantize', 'quantize', 'quantize']),
        (dict(reshape=0, quantize=0), ['quantize'] * 6),
        (
            dict(reshape=0, quantize=2, quantize_activation=4),
            ['reshape'] * 2 + ['quantize_weight'] * 2 + ['quantize'] * 2,
        ),
        (dict(quantize=0, quantize_activation=5), ['quantize_weight'] * 5 + ['quantize']),
        (dict(quantize=2, quantize_activation=2), ['float'] * 2 + ['quantize'] * 4),
    ],
)
def test_stages(config, expected):
    assert stages(config) == expected
    assert Schedule.from_config(config).first == expected[0]


def test_freeze():
    schedule = Schedule.from_config(dict(quantize=0, freeze=3))
    assert [schedule.frozen_at(now) for now in range(5)] == [False, False, False, True, True]
    assert Schedule.from_config(dict(quantize=0, freeze=0)).frozen_at(0), 'for a model that has ranges'
    assert Schedule.from_config(dict(reshape=1, quantize=4, freeze=2)).frozen_at(2)


def test_by_epoch():
    assert Schedule.from_config(dict(quantize=0)).by_epoch
    assert not Schedule.from_config(dict(quantize=100, by_epoch=False)).by_epoch


@pytest.mark.parametrize('key', ['reshape', 'quantize', 'quantize_activation', 'freeze'])
@pytest.mark.parametrize('value', [-1, 1.5, True, '3'])
def test_wrong_numbers(key, value):
    with pytest.raises(ConfigError, match=f'stages: {key}=.* is not a number of epochs'):
        Schedule.from_config({'quantize': 0, key: value})


@pytest.mark.parametrize(
    ('config', 'match'),
    [
        (dict(reshape=3, quantize=2), 'not in this order'),
        (dict(quantize=3, quantize_activation=2), 'not in this order'),
        (dict(reshape=0, quantize_activation=2), 'needs quantize'),
        (dict(freeze=3), 'neither reshape nor quantize'),
        (dict(quantize=2, freeze=1), r'freeze=1 comes before .* \(at 2\)'),
        (dict(reshape=3, quantize=5, freeze=2), r'freeze=2 comes before .* \(at 3\)'),
        (dict(), 'neither reshape nor quantize'),
        (dict(quantise=3), "unknown key 'quantise'. Did you mean 'quantize'"),
        (dict(quantize=0, reshap=0), "unknown key 'reshap'. Did you mean 'reshape'"),
    ],
)
def test_impossible_schedules(config, match):
    with pytest.raises(ConfigError, match=match):
        Schedule.from_config(config)


@pytest.mark.parametrize('config', [3, 'quantize=3', [('quantize', 3)]])
def test_config_of_a_wrong_type(config):
    with pytest.raises(ConfigError, match='stages: expected a dict'):
        Schedule.from_config(config)


@pytest.mark.parametrize('value', ['no', 0, None])
def test_by_epoch_is_a_flag(value):
    with pytest.raises(ConfigError, match=r'stages: by_epoch=.* is not True or False'):
        Schedule.from_config(dict(quantize=0, by_epoch=value))
