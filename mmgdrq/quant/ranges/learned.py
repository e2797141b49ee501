"""``'learned'``: the range is a parameter, which starts from a search."""

from .rule import register_range_rule
from .search import Search


@register_range_rule('learned')
class Learned(Search):
    """Trained with the gradient of LSQ (Esser et al., ICLR 2020), see :func:`mmgdrq.quant.fake_quantize_learned`."""

    learned = True
    improves = False
