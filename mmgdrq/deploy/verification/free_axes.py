"""Does a graph compute on other batch and image sizes what torch computes there?

Some operators of a model turn sizes into Python numbers, which are constants in its graph.
"""

from dataclasses import replace
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ExportError
from ..engines.base import runner_of
from ..export.exported import Axes, Exported
from ..export.writer import BATCH, SIZE
from .codes import check_codes, compare_codes

LARGER = ((32, 64), (128, 256))
"""How much higher and wider other images are, in pixels; some networks need multiples of a large number."""


@torch.no_grad()
def right_axes(exported: Exported) -> Axes:
    """Those free axes of a graph along which it computes on other inputs what torch computes there.

    Args:
        exported: a part and its graph. Its axes stay as they are where the graph is wrong on the sample, too.
    """
    free = exported.free
    if not free or _is_right(exported, free) or not _computes(exported):
        return free
    right = frozenset().union(*(axes for axes in (BATCH, SIZE) if axes < free and _is_right(exported, axes)))
    return right if right != free else BATCH  # each right by itself, but not both


def _is_right(exported: Exported, axes: Axes) -> bool:
    """Whether the graph is right on an input that differs from the sample in these axes."""
    other = _other_input(exported, axes)
    return other is not None and _computes(replace(exported, example=other))


def _other_input(exported: Exported, axes: Axes) -> Optional[Tensor]:
    """An input with other sizes that the part takes in torch; None: it takes none."""
    x = exported.example
    if axes & BATCH:
        count = 3 if len(x) == 2 else 2
        x = torch.cat([x, x.flip(-1)])[:count]
    if not axes & SIZE:
        return x if _runs(exported, x) else None
    height, width = x.shape[2:]
    others = (F.interpolate(x, (height + more, width + wider), mode='bilinear') for more, wider in LARGER)
    return next((other for other in others if _runs(exported, other)), None)


def _runs(exported: Exported, x: Tensor) -> bool:
    try:
        exported.part.module(x)
    except Exception:  # what a network raises on sizes that do not suit it
        return False
    return True


def _computes(exported: Exported) -> bool:
    """Whether an engine gets torch's codes and results from the example."""
    runner, own = runner_of(exported.engine)
    try:
        check_codes(compare_codes(exported, runner.name, optimize=own), runner.name, exported.path)
    except ExportError:
        return False
    return True
