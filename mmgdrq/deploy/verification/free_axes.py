"""Does a graph compute on other batch and image sizes what torch computes there?

Some operators of a model turn sizes into Python numbers, which are constants in its graph.
"""

from dataclasses import replace
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgdrq_runtime.engines import REFERENCE, check_engine, is_installed

from ...errors import ExportError
from ..export.exported import Exported
from .codes import check_codes, compare_codes

Axes = frozenset[int]
BATCH: Axes = frozenset({0})
SIZE: Axes = frozenset({2, 3})
LARGER = ((32, 64), (128, 256))
"""How much higher and wider other images are, in pixels; some networks need multiples of a large number."""


@torch.no_grad()
def right_axes(exported: Exported, profile: str, free: Axes) -> Axes:
    """Those free axes of a graph along which it computes on other inputs what torch computes there.

    Args:
        exported: a part and its graph.
        profile: of the graph.
        free: axes of the input that are free in the graph, of :data:`BATCH` and :data:`SIZE`. They stay as they are
            where the graph is wrong on the sample, too.
    """
    if not free or _is_right(exported, profile, free) or not _computes(exported, profile):
        return free
    right = frozenset().union(*(axes for axes in (BATCH, SIZE) if axes < free and _is_right(exported, profile, axes)))
    return right if right != free else BATCH  # each right by itself, but not both


def _is_right(exported: Exported, profile: str, axes: Axes) -> bool:
    """Whether the graph is right on an input that differs from the sample in these axes."""
    other = _other_input(exported, axes)
    return other is not None and _computes(replace(exported, example=other), profile)


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


def _computes(exported: Exported, profile: str) -> bool:
    """Whether an engine gets torch's codes and results from the example."""
    own = is_installed(profile)
    engine = profile if own else REFERENCE
    check_engine(engine)
    try:
        check_codes(compare_codes(exported, engine, optimize=own), engine, exported.path)
    except ExportError:
        return False
    return True
