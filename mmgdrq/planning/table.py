"""The table of a plan, as text and as HTML."""

import html
from collections.abc import Iterable

from .row import PlanRow

HEAD = ('layer', 'type', 'weight', 'activation', 'group', 'params', 'bytes', 'why')


def text_table(rows: Iterable[PlanRow]) -> str:
    """One line for each row, below a head."""
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple('-' * width for width in widths))
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def html_table(rows: Iterable[PlanRow]) -> str:
    """A ``<table>``, as notebooks show it."""
    head = ''.join(f'<th>{cell}</th>' for cell in HEAD)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(row)) + '</tr>' for row in rows)
    return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cells(row: PlanRow) -> tuple[str, ...]:
    specs = [row.weight, row.activation]
    bits = ['-' if spec is None else str(spec.bits) for spec in specs]
    group = '-' if row.weight is None else str(row.weight.group_size)
    return row.name, row.module, *bits, group, f'{row.parameters:,}', f'{row.bytes:,}', row.reason
