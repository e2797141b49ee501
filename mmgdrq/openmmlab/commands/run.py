"""Run a command and end it with one line where mmgdrq refuses something."""

import errno
import logging
import os
import pickle
import sys
import warnings
from typing import Callable

from torch import distributed

from ...errors import MMGDRQError
from ...versions import load_weights_only

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a file system without room."""


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; an error that mmgdrq raised on purpose ends it with one line and exit status 2."""
    load_weights_only()
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)  # by mmengine, not to be mended here
    try:
        main()
        leave_ranks()
    except MMGDRQError as error:
        sys.exit(_fail(error))
    except pickle.UnpicklingError as error:
        reason = str(error).partition('Unsupported')[2].splitlines()
        sys.exit(
            _fail(
                'checkpoint: it is not loaded, because it holds more than tensors and what mmengine writes beside '
                f'them{": unsupported" + reason[0] if reason else ""}. Such a file can run any code; take only its '
                'tensors from a source that you trust'
            )
        )
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(_fail(f'{error}. What was saved before is whole; make room and go on with --resume'))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, MMGDRQError):
            sys.exit(_fail(cause))
        raise


def leave_ranks() -> None:
    """Wait for the other ranks, one of which may be saving, and end the process group.

    What a launcher does when a rank ends with an abort, as happens now and then with a group that is still there, is
    to kill the others. For the same reason the interpreter is not torn down, while threads of gloo may still run.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _fail(error: object) -> int:
    print(f'error: {error}', file=sys.stderr)
    return 2
