"""How far a student's outputs are from those of its teacher, as pure functions.

Each returns a float32 scalar whose gradient reaches the student only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-6


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of class probabilities, times the squared temperature (Hinton et al. 2015).

    Args:
        student, teacher: logits, classes in dimension 1, shape ``(N, C, ...)``; averaged over all other dimensions.
        temperature: both are divided by it before softmax.

    >>> soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), 4.0).item()
    0.0
    """
    ours = F.log_softmax(student.float() / temperature, 1)
    theirs = F.log_softmax(teacher.detach().float() / temperature, 1)
    divergence = F.kl_div(ours, theirs, reduction='none', log_target=True).sum(1)
    return divergence.mean() * temperature**2


def soft_label_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of class probabilities, classes in dimension 1, summed up over all other dimensions."""
    ours, theirs = F.log_softmax(student.float(), 1), F.log_softmax(teacher.detach().float(), 1)
    return F.kl_div(ours, theirs, reduction='sum', log_target=True)


def binary_label_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of independent probabilities (sigmoid), summed up.

    Args:
        student, teacher: logits of any equal shape.
    """
    target = teacher.detach().float().sigmoid()
    cross = F.binary_cross_entropy_with_logits(student.float(), target, reduction='sum')
    return cross - F.binary_cross_entropy(target, target, reduction='sum')


def confident_values(student: Sequence[Tensor], teacher: Sequence[Tensor], confidence: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference where the teacher is confident, in units of the teacher's own values there.

    Args:
        student, teacher: of each level, shape ``(N, A * V, ...)``: V values for each of A places.
        confidence: of the teacher, 0 to 1, of each level, shape ``(N, A, ...)``.
    """
    difference, size = [], []
    for ours, theirs, level in zip(student, teacher, confidence):
        weight = level.detach().float().repeat_interleave(ours.shape[1] // level.shape[1], 1)
        target = theirs.detach().float()
        difference.append(((ours.float() - target).abs() * weight).sum())
        size.append((target.abs() * weight).sum())
    return torch.stack(difference).sum() / torch.stack(size).sum().clamp(min=TINY)


def normalized_features(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of features, each channel with mean 0 and variance 1 (PKD, Cao et al. 2022).

    It is 1 minus the mean correlation of the channels, so that neither the scale nor the offset of a channel counts.

    Args:
        student, teacher: shape ``(N, C, H, W)``.
    """
    return (_normalized(student) - _normalized(teacher.detach())).square().mean() / 2


def _normalized(features: Tensor) -> Tensor:
    channels = features.float().transpose(0, 1).flatten(1)
    centred = channels - channels.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)


def confidence_of(logits: Tensor, classes: int, sigmoid: bool = True) -> Tensor:
    """Largest probability of the classes of each place: ``(N, A * C, H, W)`` gives ``(N, A, H, W)``.

    Args:
        logits: of A places and C classes.
        classes: number C; without ``sigmoid`` the last one is the background.
        sigmoid: whether the classes are independent of each other.

    >>> confidence_of(torch.zeros(1, 6, 2, 2), 3).shape
    torch.Size([1, 2, 2, 2])
    """
    logits = logits.detach().float().unflatten(1, (-1, classes))
    return logits.sigmoid().amax(2) if sigmoid else logits.softmax(2)[:, :, :-1].amax(2)
