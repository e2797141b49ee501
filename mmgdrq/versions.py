"""Compare the versions of torch and Python with those that the tests were run with."""

import os
import sys
import warnings

import torch

SAFE_TORCH = (2, 6)
"""From here on torch loads with ``weights_only`` unless told otherwise."""


TESTED = {'torch': ((2, 4), (2, 14)), 'python': ((3, 9), (3, 12))}
"""Oldest and newest version that the tests were run with; see docs/reliability.md."""


def check_versions(torch_version: str = torch.__version__, python: tuple = sys.version_info[:2]) -> None:
    """Warn where a version lies outside of what is tested, and where torch unpickles checkpoints as they are.

    Raises:
        ImportError: torch is too old for the model to be right.
    """
    found = {'torch': version_of_torch(torch_version), 'python': tuple(python)}
    for name, version in found.items():
        oldest, newest = TESTED[name]
        text = f'mmgdrq: {name} {_text(version)} was not tested; tested are {_text(oldest)} to {_text(newest)}'
        if name == 'torch' and version < oldest:
            raise ImportError(f'{text}. Folding would be wrong with it: install torch {_text(oldest)} or newer')
        if not oldest <= version <= newest:
            warnings.warn(text, stacklevel=3)
    if found['torch'] < SAFE_TORCH:
        warnings.warn(
            f'mmgdrq: torch before {_text(SAFE_TORCH)} runs what a checkpoint holds when OpenMMLab loads it. Load '
            'only checkpoints that you trust, or update torch. (The tools of mmgdrq load nothing but weights, as far '
            'as that torch is able to.)',
            stacklevel=3,
        )


def version_of_torch(text: str = torch.__version__) -> tuple[int, ...]:
    """Major and minor number, such as ``(2, 11)``."""
    return tuple(int(part) for part in text.split('.')[:2])


def _text(version: tuple) -> str:
    return '.'.join(map(str, version))


def load_weights_only() -> None:
    """Let ``torch.load`` read no more than tensors and the allow-list in this process, with an older torch too.

    Newer ones do it unless told otherwise. What is set in the environment already stays.
    """
    if version_of_torch() < SAFE_TORCH:
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


check_versions()
