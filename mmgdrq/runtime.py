"""Offer what :mod:`mmgdrq_runtime` does, which itself starts faster where torch is installed."""

import mmgdrq_runtime
from mmgdrq_runtime import *  # noqa: F403

__all__ = mmgdrq_runtime.__all__
