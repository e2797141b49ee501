"""What a float model is quantized to where nothing else is asked; docs/pretrained.md has the evidence."""

from collections.abc import Mapping

from ..layers.base import ActivationConfig, WeightConfig
from ..quant import ActivationSpec, WeightSpec, make_spec

BITS = 8


def weight_defaults(weight: WeightConfig = None) -> WeightSpec:
    """8 bits; the range is the largest magnitude at 8 bits, and a search at fewer.

    Args:
        weight: what is asked for.

    >>> weight_defaults().range, weight_defaults(dict(bits=4)).range
    ('minmax', 'search')
    """
    if isinstance(weight, WeightSpec):
        return weight
    asked = {'bits': BITS, **_mapping(weight)}
    return make_spec(WeightSpec, {'range': 'minmax' if asked['bits'] == BITS else 'search', **asked}, 'weight')


def activation_defaults(activation: ActivationConfig = None) -> ActivationSpec:
    """8 bits; the range of symmetric grids is searched, that of affine grids reaches from percentile to percentile.

    Args:
        activation: what is asked for.

    >>> activation_defaults().range, activation_defaults(dict(grid='affine')).range
    ('search', 'percentile')
    """
    if isinstance(activation, ActivationSpec):
        return activation
    asked = _mapping(activation)
    rule = 'percentile' if asked.get('grid') == 'affine' else 'search'
    return make_spec(ActivationSpec, {'bits': BITS, 'range': rule, **asked}, 'activation')


def _mapping(config) -> Mapping:
    return {} if config is None else config
