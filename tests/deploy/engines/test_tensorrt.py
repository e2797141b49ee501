"""Graphs for TensorRT."""

import pytest
import torch

from mmgdrq.deploy.verification.codes import check_codes, compare_codes
from tests.helpers.networks import Net, exported_of, trained_fold

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


def test_graphs_for_tensorrt_are_checked_as_they_are_written(folded, tmp_path):
    """ONNX Runtime would make an integer of the float bias."""
    exported = exported_of(folded, tmp_path, 'tensorrt')
    errors = compare_codes(exported, 'onnxruntime', optimize=False)
    assert errors.different <= 2
    assert errors.distance < 1e-4
    check_codes(errors, 'onnxruntime', exported.path)


def test_the_tensorrt_profile_has_symmetric_int8_only(folded, tmp_path):
    import onnx

    exported = exported_of(folded, tmp_path, 'tensorrt')
    graph = onnx.load(str(exported.path)).graph
    constants = {
        n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == 'Constant'
    }
    quantizers = [n for n in graph.node if n.op_type in ('QuantizeLinear', 'DequantizeLinear')]
    zeros = [constants[node.input[2]] for node in quantizers]
    assert len(quantizers) == 3 * len(exported.blocks)
    assert all(zero.dtype.name == 'int8' and not zero.any() for zero in zeros)
    assert {module.block.limits for module in exported.blocks} == {(-128, 127), (0, 15), (-8, 7)}
    assert compare_codes(exported, 'onnxruntime').different <= 1


def test_an_unsigned_8_bit_input_has_seven_bits_for_tensorrt(tmp_path):
    torch.manual_seed(0)
    model, x = Net(), torch.rand(2, 3, 16, 16)
    folded = trained_fold(model, x, weight=dict(bits=4), activation=dict(bits=8))
    exported = exported_of((folded, x), tmp_path, 'tensorrt')
    stem = next(module.block for module in exported.blocks if module.block.name == 'stem')
    assert stem.limits == (0, 127)
    assert stem.step * 127 == pytest.approx(float(folded.stem.input_codes.step) * 255)
    with torch.no_grad():
        expected, found = folded(x), exported.part.module(x)
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found):
        assert (ours - theirs).abs().mean() < 0.1 * ours.abs().mean()
    assert compare_codes(exported, 'onnxruntime').different <= 1
