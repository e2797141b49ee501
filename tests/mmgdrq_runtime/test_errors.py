"""The base errors are one and the same in both packages."""

import pytest

import mmgdrq_runtime.errors
from mmgdrq import errors


@pytest.mark.parametrize('name', ['MMGDRQError', 'CheckpointError', 'ExportError', 'InputError'])
def test_both_packages_raise_the_same_errors(name):
    assert getattr(errors, name) is getattr(mmgdrq_runtime.errors, name)


def test_what_they_were_derived_from_stays():
    assert issubclass(errors.CheckpointError, (errors.MMGDRQError, RuntimeError))
    assert issubclass(errors.ConfigError, errors.MMGDRQError)
    assert not issubclass(errors.InputError, RuntimeError)
