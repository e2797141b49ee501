"""The rows of the accuracy tables: what is quantized how. The same rows serve every task."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

WHOLE = -1


@dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
        name: of the row and of its result files.
        about: what the reader should know.
        group: part of the table it belongs to.
        quant: ``weight`` and ``activation`` of ``mmgdrq.quantize``; None: float, or another library.
        reshape: share of the training that is spent on Scale-Clip without rounding.
        scale_clip: whether weights are projected after each step.
        library: who quantizes.
        distill: whether the float network teaches.
    """

    name: str
    about: str
    group: str = 'ablation'
    quant: Any = None
    reshape: float = 0.0
    scale_clip: bool = True
    library: str = 'mmgdrq'
    distill: bool = False


def _gdrq(weight: dict, activation: dict) -> dict[str, Any]:
    return dict(weight=weight, activation=activation)


def _w2a4(**weight) -> dict[str, Any]:
    return _gdrq(dict(bits=2, **weight), dict(bits=4))


def _w2(**activation) -> dict[str, Any]:
    return _gdrq(dict(bits=2), dict(bits=4, **activation))


def _lsq(weight: int, activation: int) -> dict[str, Any]:
    return _gdrq(
        dict(bits=weight, range='learned', group_size=WHOLE, grid='twos_complement'),
        dict(bits=activation, range='learned'),
    )


def _learned(weight: int, activation: int) -> dict[str, Any]:
    return _gdrq(dict(bits=weight, range='learned'), dict(bits=activation, range='learned'))


HEADLINE, BITS, PEERS, DISTILLED = 'headline', 'bits', 'peers', 'distilled'

ROWS = (
    Row('float', 'float, the same number of further steps', HEADLINE, library='float'),
    Row('gdrq-w2a4', 'the defaults: mean ranges per filter, Scale-Clip', HEADLINE, _w2a4()),
    Row('lsq-w2a4', 'LSQ: learned ranges, one a layer, no Scale-Clip', HEADLINE, _lsq(2, 4), scale_clip=False),
    Row(
        'minmax-w2a4',
        'min-max ranges, weights per filter, narrow range, no Scale-Clip',
        HEADLINE,
        _gdrq(dict(bits=2, range='minmax', grid='narrow_range'), dict(bits=4, range='minmax')),
        scale_clip=False,
    ),
    Row('gdrq-w4a4', 'the defaults', HEADLINE, _gdrq(dict(bits=4), dict(bits=4))),
    Row('brevitas-w2a4', 'brevitas: weight scales per filter, learned input scales', PEERS, library='brevitas'),
    Row('float-distill', 'float, taught by itself', DISTILLED, library='float', distill=True),
    Row('gdrq-distill-w2a4', 'the defaults', DISTILLED, _w2a4(), distill=True),
    Row('gdrq-distill-w4a4', 'the defaults', DISTILLED, _gdrq(dict(bits=4), dict(bits=4)), distill=True),
    Row('learned-distill-w2a4', 'weight and input ranges learned, per filter, no Scale-Clip', DISTILLED,
        _learned(2, 4), scale_clip=False, distill=True),
    Row('learned-distill-w4a4', 'weight and input ranges learned, per filter, no Scale-Clip', DISTILLED,
        _learned(4, 4), scale_clip=False, distill=True),
    Row('lsq-distill-w2a4', 'LSQ', DISTILLED, _lsq(2, 4), scale_clip=False, distill=True),
    Row('lsq-distill-w4a4', 'LSQ', DISTILLED, _lsq(4, 4), scale_clip=False, distill=True),
    Row('gdrq-w8a8', 'the defaults', BITS, _gdrq(dict(bits=8), dict(bits=8))),
    Row('gdrq-w2a2', 'the defaults', BITS, _gdrq(dict(bits=2), dict(bits=2))),
    Row('gdrq-w2a32', 'weights alone', BITS, _gdrq(dict(bits=2), dict(bits=32))),
    Row('gdrq-w4a32', 'weights alone', BITS, _gdrq(dict(bits=4), dict(bits=32))),
    Row('gdrq-w32a4', 'inputs alone', BITS, _gdrq(dict(bits=32), dict(bits=4))),
    Row('lsq-w4a4', 'LSQ at 4 bits', PEERS, _lsq(4, 4), scale_clip=False),
    Row('reshape-w2a4', 'a quarter of the steps without rounding, then the defaults', quant=_w2a4(), reshape=0.25),
    Row('no-scale-clip-w2a4', 'mean ranges, no projection', quant=_w2a4(), scale_clip=False),
    Row('twos-complement-w2a4', 'levels -2, -1, 0, 1', quant=_w2a4(grid='twos_complement')),
    Row('narrow-range-w2a4', 'levels -1, 0, 1', quant=_w2a4(grid='narrow_range')),
    Row('learned-input-w2a4', 'learned input ranges', quant=_w2(range='learned')),
    Row('group4-w2a4', '4 filters share a range', quant=_w2a4(group_size=4)),
    Row('group16-w2a4', '16 filters share a range', quant=_w2a4(group_size=16)),
    Row('layer-w2a4', 'one range a layer', quant=_w2a4(group_size=WHOLE)),
    Row('search-w2a4', 'weight ranges by search (p = 2)', quant=_w2a4(range='search')),
    Row('learned-w2a4', 'weight and input ranges learned, per filter, Scale-Clip',
        quant=_gdrq(dict(bits=2, range='learned'), dict(bits=4, range='learned'))),
    Row('learned-free-w2a4', 'as learned-w2a4 without Scale-Clip', scale_clip=False,
        quant=_gdrq(dict(bits=2, range='learned'), dict(bits=4, range='learned'))),
    Row('learned-input-free-w2a4', 'learned input ranges, no Scale-Clip', scale_clip=False, quant=_w2(range='learned')),
    Row('lsq-scale-clip-w2a4', 'LSQ with Scale-Clip', quant=_lsq(2, 4)),
    Row('no-scale-clip-w4a4', 'mean ranges, no projection', quant=_gdrq(dict(bits=4), dict(bits=4)), scale_clip=False),
    Row('k4-w4a4', 'k = 4', quant=_gdrq(dict(bits=4, k=4.0), dict(bits=4))),
    Row('lehmer-k2.1-w4a4', 'T = 2.1 sum|A|^3 / sum(A^2)', quant=_gdrq(dict(bits=4), dict(bits=4, k=2.1))),
    Row('k4-lehmer-k2.1-w4a4', 'k = 4, T = 2.1 sum|A|^3 / sum(A^2)',
        quant=_gdrq(dict(bits=4, k=4.0), dict(bits=4, k=2.1))),
    Row('group4-w4a4', '4 filters share a range', quant=_gdrq(dict(bits=4, group_size=4), dict(bits=4))),
    Row('search-w4a4', 'weight ranges by search (p = 2)', quant=_gdrq(dict(bits=4, range='search'), dict(bits=4))),
    Row('search-free-w4a4', 'weight ranges by search (p = 2), no projection', scale_clip=False,
        quant=_gdrq(dict(bits=4, range='search'), dict(bits=4))),
    Row('learned-input-w4a4', 'learned input ranges',
        quant=_gdrq(dict(bits=4), dict(bits=4, range='learned'))),
    Row('learned-free-w4a4', 'weight and input ranges learned, per filter, no Scale-Clip', scale_clip=False,
        quant=_gdrq(dict(bits=4, range='learned'), dict(bits=4, range='learned'))),
    Row('k1-w2a4', 'k = 1', quant=_w2a4(k=1.0)),
    Row('k4-w2a4', 'k = 4', quant=_w2a4(k=4.0)),
    Row('mean-input-k5-w2a4', 'T = 5 mean|A|', quant=_w2(range='mean', k=5.0)),
    Row('mean-input-k12-w2a4', 'T = 12 mean|A|', quant=_w2(range='mean', k=12.0)),
    Row('search-input-w2a4', 'input ranges by search (p = 2)', quant=_w2(range='search')),
    Row('active-mean-input-w2a4', 'T = 5 mean of the non-zero |A|', quant=_w2(range='active_mean', k=5.0)),
    Row('lehmer-k1.5-w2a4', 'T = 1.5 sum|A|^3 / sum(A^2)', quant=_w2(k=1.5)),
    Row('lehmer-k2.2-w2a4', 'T = 2.2 sum|A|^3 / sum(A^2)', quant=_w2(k=2.2)),
)  # fmt: skip


def select(pattern: str) -> list[Row]:
    """Rows whose name or group matches a glob, or one of several with commas between.

    Raises:
        ValueError: a part of the pattern matches nothing.
    """
    chosen = []
    for part in pattern.split(','):
        found = [row for row in ROWS if fnmatchcase(row.name, part) or fnmatchcase(row.group, part)]
        if not found:
            raise ValueError(f'no row matches {part!r}. There are {", ".join(row.name for row in ROWS)}')
        chosen += [row for row in found if row not in chosen]
    return chosen
