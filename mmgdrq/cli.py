"""The console command ``mmgdrq``: what tools/ holds, under one name."""

import importlib
import sys
from collections.abc import Sequence
from typing import Optional

COMMANDS = ('plan', 'calibrate', 'train', 'test', 'deploy', 'analyze')


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run ``mmgdrq COMMAND ...``.

    Args:
        arguments: name of a command and its arguments; None: those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in COMMANDS:
        status = 0 if arguments[:1] in (['-h'], ['--help']) else 2
        print(f'usage: mmgdrq {{{",".join(COMMANDS)}}} ...; `mmgdrq COMMAND --help` lists the options of one')
        sys.exit(status)
    from .openmmlab.commands.run import run_tool

    command = importlib.import_module(f'.openmmlab.commands.{arguments[0]}', __package__)
    sys.argv[0] = f'mmgdrq {arguments[0]}'
    run_tool(lambda: command.main(arguments[1:]))
