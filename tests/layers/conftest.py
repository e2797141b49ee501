"""Tests of layers leave the kernels as they found them."""

import pytest

from mmgdrq.kernels import dispatch as backend


@pytest.fixture(autouse=True)
def kernels_stay_on():
    yield
    backend.enable(True)
