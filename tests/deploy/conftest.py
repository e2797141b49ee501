"""What the tests of deployment share."""

import pytest
import torch
from mmengine.runner import Runner

from tests.helpers.networks import Net, trained_fold


@pytest.fixture(autouse=True, scope='package')
def environment_is_not_logged():
    """A runner asks compilers for their versions, for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield


@pytest.fixture
def folded():
    """A network with every kind of result, folded, and its input."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 16, 16)
    quant = dict(weight=dict(bits=2), activation=dict(bits=4))
    rules = [dict(pattern='*', **quant), dict(pattern='stem', activation=dict(bits=8))]
    return trained_fold(model, x, rules=rules), x
