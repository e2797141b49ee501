"""Parts of a rendered page."""


def table(head, rows) -> str:
    """A markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)


def stamp(runs: list[dict]) -> str:
    """Days and machines of runs."""
    days = sorted({run['date'] for run in runs})
    days = days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'
    return f'{days}, {"; ".join(sorted({run["machine"] for run in runs}))}.'
