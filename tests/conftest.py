"""Settings of all tests: the same examples in every run, and no time limit on one of them."""

from hypothesis import settings

settings.register_profile('mmgdrq', derandomize=True, deadline=None, max_examples=40)
settings.load_profile('mmgdrq')
