"""Engines are found by name, and can be added from outside."""

import pytest

from mmgdrq.deploy.engines import engine_names, find_engine
from mmgdrq.errors import ExportError


def test_known_engines():
    assert engine_names()[:3] == ['openvino', 'onnxruntime', 'tensorrt']
    assert [name for name in engine_names()[:3] if find_engine(name).simulates] == ['onnxruntime']


def test_an_unknown_engine():
    with pytest.raises(
        ExportError, match=r"'onxruntime' is unknown\. Did you mean 'onnxruntime'\? Expected one of openvino"
    ):
        find_engine('onxruntime')
