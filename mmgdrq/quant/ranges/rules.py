"""The rules of this package; importing one registers it."""

from .active_mean import ActiveMean
from .learned import Learned
from .lehmer import Lehmer
from .mean import Mean
from .minmax import MinMax
from .percentile import Percentile
from .search import Search

__all__ = ['ActiveMean', 'Learned', 'Lehmer', 'Mean', 'MinMax', 'Percentile', 'Search']
