"""The errors that a deployed model raises; those of mmgdrq build on them.

Every message says what was wrong, where, what was expected and what to do.
"""


class MMGDRQError(Exception):
    """Base class of all errors that mmgdrq raises on purpose."""


class CheckpointError(MMGDRQError, RuntimeError):
    """A file or state dict does not fit the quantized model, or cannot be read."""


class ExportError(MMGDRQError):
    """A model cannot be exported, or an engine cannot run it."""


class InputError(MMGDRQError):
    """An image that a deployed model cannot take."""
