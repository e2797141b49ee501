"""Times of several functions in one process, in turns, so that they share good and bad times."""

import statistics
import time
from collections.abc import Callable

Times = dict[str, list[float]]
"""Name -> seconds of each round."""


def interleave(functions: dict[str, Callable[[], object]], rounds: int, warmup: int = 2) -> Times:
    """Time each function once a round.

    Args:
        functions: name -> what to time.
        rounds: rounds that count, at least 1.
        warmup: rounds before them.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f'rounds={rounds}: expected at least 1')
    times: Times = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number >= warmup:
                times[name].append(time.perf_counter() - started)
    return times


def speedup(times: Times, name: str, reference: str) -> float:
    """How many times faster ``name`` is than ``reference``: median over the rounds."""
    return statistics.median(r / t for r, t in zip(times[reference], times[name]))
