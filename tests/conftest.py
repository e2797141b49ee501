"""Settings of all tests: the same examples in every run, and no time limit on one of them."""

import os

from hypothesis import settings

examples = int(os.environ.get('MMGDRQ_EXAMPLES', '40'))
settings.register_profile('mmgdrq', derandomize=True, deadline=None, max_examples=examples)
settings.load_profile('mmgdrq')
