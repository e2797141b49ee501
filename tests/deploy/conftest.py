"""What the tests with a runner share."""

import pytest
from mmengine.runner import Runner


@pytest.fixture(autouse=True, scope='package')
def environment_is_not_logged():
    """A runner asks compilers for their versions, for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield
