"""One graph from a resized image to results: the dense part of a model between its pre- and postprocessing.

A decoder is a file of the same name as in :mod:`mmgdrq_runtime.decoders`, and reads the same description.
"""

from .graph import DECODERS, build_end2end, write_end2end

__all__ = ['DECODERS', 'build_end2end', 'write_end2end']
