"""What the quantizers of a model do at present: one plain object that all of them hold."""

from .passes import Passes

FLOAT, CLIP, QUANTIZE = 'float', 'clip', 'quantize'
"""What a quantizer does: nothing, Scale-Clip without rounding (activations only), or quantize."""

MODES = {
    'float': (FLOAT, FLOAT),
    'reshape': (FLOAT, CLIP),
    'quantize_weight': (QUANTIZE, CLIP),
    'quantize': (QUANTIZE, QUANTIZE),
}
"""Stage -> what the quantizers of weights and of activations do in it."""

STAGES = tuple(MODES)


class ModelState:
    """Stage and forward passes of one model, or of one layer outside of a model.

    It refers to no module, so that copies and pickles of a model share one of their own.

    Attributes:
        stage: one of :data:`STAGES`.
        frozen: whether ranges stay as they are.
        managed: whether the forward pass of a root module is one iteration. Where it is not, as with a layer of its
            own, every call in training mode is one.
        emptied: whether the buffers of the root hold nothing, since ``to_empty()``.
        passes: the forward passes of the root.
    """

    def __init__(self, stage: str = 'quantize') -> None:
        self.stage = stage
        self.frozen = False
        self.managed = False
        self.emptied = False
        self.passes = Passes()

    def weight_mode(self) -> str:
        """What quantizers of weights do."""
        return MODES[self.stage][0]

    def activation_mode(self) -> str:
        """What quantizers of activations do."""
        return MODES[self.stage][1]
