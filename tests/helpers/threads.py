"""Work in several threads at once, which take turns as often as they can."""

import sys
import threading

THREADS = 4


def results_of_threads(work, count: int = THREADS) -> list:
    """What ``work(number)`` returns in ``count`` threads at the same time; an exception counts as a result."""
    results: list = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return results
