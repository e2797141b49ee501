"""The table of a plan, as text and as HTML."""

import html
from collections.abc import Sequence

from .row import PlanRow

HEAD = ('layer', 'type', 'weight', 'activation', 'group', 'params', 'bytes', 'MACs', 'why')


def text_table(rows: Sequence[PlanRow]) -> str:
    """One line for each row, below a head; MACs where they are known."""
    lines = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple('-' * width for width in widths))
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def html_table(rows: Sequence[PlanRow]) -> str:
    """A ``<table>``, as notebooks show it."""
    first, *lines = _lines(rows)
    head = ''.join(f'<th>{cell}</th>' for cell in first)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in line) + '</tr>' for line in lines)
    return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _lines(rows: Sequence[PlanRow]) -> list[tuple[str, ...]]:
    lines = [HEAD, *map(_cells, rows)]
    if any(row.macs is not None for row in rows):
        return lines
    unknown = HEAD.index('MACs')
    return [line[:unknown] + line[unknown + 1 :] for line in lines]


def _cells(row: PlanRow) -> tuple[str, ...]:
    specs = [row.weight, row.activation]
    bits = ['-' if spec is None else str(spec.bits) for spec in specs]
    group = '-' if row.weight is None else str(row.weight.group_size)
    macs = '-' if row.macs is None else f'{row.macs:,}'
    return row.name, row.module, *bits, group, f'{row.parameters:,}', f'{row.bytes:,}', macs, row.reason
