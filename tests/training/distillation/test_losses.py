"""Losses of distillation against numpy, and where their gradients go."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq.training.distillation import losses


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def pair(shape: tuple, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.normal(0, 2, shape)) for _ in range(2))


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return p * np.log(p / q)


@given(st.sampled_from([(3, 5), (2, 4, 3, 2)]), st.sampled_from([1.0, 4.0]), st.integers(0, 99))
def test_soft_labels(shape, temperature, seed):
    ours, theirs = pair(shape, seed)
    p, q = (softmax(x.numpy() / temperature, 1) for x in (theirs, ours))
    expected = divergence(p, q).sum(1).mean() * temperature**2
    assert losses.soft_labels(ours, theirs, temperature).item() == pytest.approx(expected, rel=1e-4)
    expected = divergence(*(softmax(x.numpy(), 1) for x in (theirs, ours))).sum()
    assert losses.soft_label_sum(ours, theirs).item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 99))
def test_binary_labels(seed):
    ours, theirs = pair((2, 6, 3, 3), seed)
    p, q = sigmoid(theirs.numpy()), sigmoid(ours.numpy())
    expected = (divergence(p, q) + divergence(1 - p, 1 - q)).sum()
    assert losses.binary_label_sum(ours, theirs).item() == pytest.approx(expected, rel=1e-4)


def test_features_of_another_scale_and_offset_are_the_same():
    ours, _ = pair((3, 4, 5, 6))
    scale, offset = torch.rand(4, 1, 1) + 0.1, torch.randn(4, 1, 1)
    assert losses.normalized_features(ours, ours * scale + offset).item() == pytest.approx(0, abs=1e-6)


def test_features_are_compared_by_correlation():
    ours, theirs = pair((3, 4, 5, 6))
    a, b = (x.numpy().transpose(1, 0, 2, 3).reshape(4, -1) for x in (ours, theirs))
    correlation = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)])
    assert losses.normalized_features(ours, theirs).item() == pytest.approx(1 - correlation, rel=1e-4)


def test_boxes_count_where_the_teacher_is_confident():
    ours, theirs = pair((1, 8, 1, 2))
    confidence = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.5]]]])  # two places of four values
    a, b = (x[0, :, 0].numpy().reshape(2, 4, 2) for x in (ours, theirs))
    difference = np.abs(a[0, :, 0] - b[0, :, 0]).sum() + 0.5 * np.abs(a[1, :, 1] - b[1, :, 1]).sum()
    size = np.abs(b[0, :, 0]).sum() + 0.5 * np.abs(b[1, :, 1]).sum()
    found = losses.confident_values([ours], [theirs], [confidence]).item()
    assert found == pytest.approx(difference / size, rel=1e-5)


def test_confidence():
    _, logits = pair((2, 6, 1, 1))
    grouped = logits.numpy().reshape(2, 2, 3)
    assert np.allclose(losses.confidence_of(logits, 3)[..., 0, 0], sigmoid(grouped).max(2), atol=1e-6)
    with_background = softmax(grouped, 2)[..., :2].max(2)
    assert np.allclose(losses.confidence_of(logits, 3, sigmoid=False)[..., 0, 0], with_background, atol=1e-6)


LOSSES = {
    'soft labels': lambda a, b: losses.soft_labels(a, b, 4.0),
    'sum of soft labels': losses.soft_label_sum,
    'binary labels': losses.binary_label_sum,
    'features': losses.normalized_features,
    'boxes': lambda a, b: losses.confident_values([a], [b], [torch.ones(2, 2, 3, 3)]),
}


@pytest.mark.parametrize('name', LOSSES)
def test_equal_outputs_cost_nothing_and_only_the_student_learns(name):
    ours, theirs = (x.requires_grad_() for x in pair((2, 8, 3, 3)))
    assert LOSSES[name](theirs, theirs).item() == pytest.approx(0, abs=1e-4)
    LOSSES[name](ours, theirs).backward()
    assert theirs.grad is None
    assert bool((ours.grad != 0).any())
