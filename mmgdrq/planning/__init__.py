"""Which layer gets which bits, and why."""

from . import heads_of_others as heads_of_others  # registers them
