"""GDRQ in plain numpy: float32 arithmetic, one loop a group, written from the equations and not from the code."""

import numpy as np

FLOOR = np.float32(1e-12)
"""Smallest step."""


def groups(filters: int, group_size: int) -> list[slice]:
    """Consecutive filters that share a range; the last group may be smaller."""
    size = filters if group_size == -1 else group_size
    return [slice(start, min(start + size, filters)) for start in range(0, filters, size)]


def mean_abs(weight: np.ndarray, group_size: int) -> np.ndarray:
    """mean|W_g| of every group, over the elements that are not exactly zero."""
    means = []
    for part in groups(len(weight), group_size):
        values = np.abs(weight[part].astype(np.float32))
        means.append(np.float32(values.astype(np.float64).sum()) / np.float32(max(np.count_nonzero(values), 1)))
    return np.array(means, np.float32)


def weight_grid(bits: int, grid: str) -> tuple[int, int, int, float]:
    """Lowest code, highest code, steps between 0 and alpha, and what is added to a code."""
    half = 2 ** (bits - 1)
    if grid == 'narrow_range':
        return -(half - 1), half - 1, half - 1, 0.0
    return -half, half - 1, half, 0.5 if grid == 'midrise' else 0.0


def activation_grid(bits: int, signed: bool) -> tuple[int, int, int, float]:
    """Lowest code, highest code, steps between 0 and T, and what is added to a code."""
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1), 0.0
    return 0, 2**bits - 1, 2**bits - 1, 0.0


def step(alpha, levels: int) -> np.float32:
    return np.maximum(np.float32(alpha) / np.float32(levels), FLOOR)


def codes(x: np.ndarray, alpha, grid: tuple[int, int, int, float]) -> np.ndarray:
    """clip(round(x / step - offset)), halves to even."""
    low, high, levels, offset = grid
    scaled = x.astype(np.float32) / step(alpha, levels) - np.float32(offset)
    return np.clip(np.rint(scaled), low, high).astype(np.float32)


def fake_quantize(x: np.ndarray, alpha, grid: tuple[int, int, int, float]) -> np.ndarray:
    """Q(x; alpha) of a tensor with one range."""
    return (codes(x, alpha, grid) + np.float32(grid[3])) * step(alpha, grid[2])


def fake_quantize_weight(
    weight: np.ndarray, alphas: np.ndarray, bits: int, group_size: int, grid: str = 'twos_complement'
) -> np.ndarray:
    """Q(W_g; alpha_g) of every group."""
    grid = weight_grid(bits, grid)
    parts = groups(len(weight), group_size)
    assert len(parts) == len(alphas)
    return np.concatenate([fake_quantize(weight[part], alpha, grid) for part, alpha in zip(parts, alphas)])


def fake_quantize_activation(x: np.ndarray, threshold, bits: int, signed: bool) -> np.ndarray:
    return fake_quantize(x, threshold, activation_grid(bits, signed))


def activation_gradient(x: np.ndarray, threshold, signed: bool, upstream: np.ndarray) -> np.ndarray:
    """Zero where x was clipped to [0, T] or [-T, T], else the gradient from above."""
    low = -np.float32(threshold) if signed else np.float32(0)
    return np.where((x < low) | (x > np.float32(threshold)), np.float32(0), upstream)


def weight_gradient(weight: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """Scale-Clip is a projection, so no gradient of a weight is masked."""
    return upstream


def quantized_loss(x: np.ndarray, alpha, grid: tuple[int, int, int], p: int = 1) -> float:
    """||x - Q(x; alpha)||_p / ||x||_p."""
    error = np.abs((x - fake_quantize(x, alpha, grid)).astype(np.float64))
    size = np.abs(x.astype(np.float64))
    return float(((error**p).sum() / (size**p).sum()) ** (1 / p))


def scale_clip(weight: np.ndarray, k: float, group_size: int) -> np.ndarray:
    """W clipped to [-k mean|W_g|, k mean|W_g|]."""
    result = weight.copy()
    for part, mean in zip(groups(len(weight), group_size), mean_abs(weight, group_size)):
        bound = mean * np.float32(k)
        result[part] = np.clip(result[part], -bound, bound)
    return result


def statistic(calls: list, rule: str) -> float:
    """Pooled statistic of all calls of an iteration: mean|A|, mean of the non-zero |A|, Lehmer mean, or max|A|."""
    values = np.abs(np.concatenate([np.asarray(call, np.float64).ravel() for call in calls]))
    if rule == 'lehmer':
        return float((values**3).sum() / (values**2).sum())
    if rule == 'active_mean':
        values = values[values != 0]
    return float(values.max() if rule == 'minmax' else values.mean())


def running_threshold(iterations: list, k: float, momentum: float, rule: str = 'mean') -> float:
    """T after one update per iteration; every iteration is a list of calls, the first one sets T."""
    threshold = None
    for calls in iterations:
        new = k * statistic(calls, rule)
        threshold = new if threshold is None else threshold + momentum * (new - threshold)
    return threshold


def folded_block(acc, step_w, step_a, bias, gamma, beta, mean, var, eps) -> np.ndarray:
    """BN output of the integer sums ``acc`` of shape (N, O, ...), all other arguments one value per filter.

    y_o = (m_o s_g s_a) acc_o + (beta_o + m_o (b_o - mu_o)) with m_o = gamma_o / sqrt(var_o + eps).
    """
    m = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(var, np.float64) + eps)
    shape = (-1, *[1] * (acc.ndim - 2))
    scale = (m * step_w * step_a).reshape(shape)
    return acc * scale + (beta + m * (np.asarray(bias, np.float64) - mean)).reshape(shape)
