"""The maths of GDRQ as pure functions: torch only, no state."""

from .codes import (
    Codes,
    Encoded,
    encode_activation,
    encode_clipped,
    encode_learned,
    encode_weight,
    encode_weight_by_rule,
)
from .fake_quant import (
    clip_activation,
    dequantize,
    fake_quantize_activation,
    fake_quantize_learned,
    fake_quantize_weight,
    keep_in_graph,
    learned_range_scale,
    quantize,
    step_of,
)
from .groups import group_max_abs, group_mean_abs, num_groups, per_filter
from .operators import Operand, conv2d, linear
from .packing import pack, unpack
from .ranges import rules  # noqa: F401  registers them
from .ranges.rule import (
    Range,
    RangeRule,
    add_statistic_,
    collect,
    register_range_rule,
    rule_of,
    threshold_of,
    weight_range,
)
from .ranges.squared_error import improve_weight_range, quantized_loss, search_range
from .relu import relu
from .specs import ActivationSpec, WeightSpec, make_spec, override_spec
from .weights import scale_clip_, weight_step

__all__ = [
    'ActivationSpec',
    'Codes',
    'Encoded',
    'Operand',
    'Range',
    'RangeRule',
    'WeightSpec',
    'add_statistic_',
    'clip_activation',
    'collect',
    'conv2d',
    'dequantize',
    'encode_activation',
    'encode_clipped',
    'encode_learned',
    'encode_weight',
    'encode_weight_by_rule',
    'fake_quantize_activation',
    'fake_quantize_learned',
    'fake_quantize_weight',
    'group_max_abs',
    'group_mean_abs',
    'improve_weight_range',
    'keep_in_graph',
    'learned_range_scale',
    'linear',
    'make_spec',
    'num_groups',
    'override_spec',
    'pack',
    'per_filter',
    'quantize',
    'quantized_loss',
    'register_range_rule',
    'relu',
    'rule_of',
    'scale_clip_',
    'search_range',
    'step_of',
    'threshold_of',
    'unpack',
    'weight_range',
    'weight_step',
]
