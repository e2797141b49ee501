"""What the quantizers of a model do at present: one plain object that all of them hold."""

from typing import Any

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
    """Stage and course of the training of one model, or of one layer outside of a model.

    It refers to no module, so that copies and pickles of a model share one of their own.

    Attributes:
        stage: one of :data:`STAGES`.
        frozen: whether ranges stay as they are.
        managed: whether the forward pass of a root module is one iteration. Where it is not, as with a layer of its
            own, every call in training mode is one.
        begun: whether a forward pass of the root has begun since this object was made, copied or unpickled.
        training: whether the last one that began was in training mode.
        collecting: whether one is running that adds to the statistics.
    """

    def __init__(self, stage: str = 'quantize') -> None:
        self.stage = stage
        self.frozen = False
        self.managed = False
        self.begun = False
        self.training = False
        self.collecting = False

    def weight_mode(self) -> str:
        """What quantizers of weights do."""
        return MODES[self.stage][0]

    def activation_mode(self) -> str:
        """What quantizers of activations do."""
        return MODES[self.stage][1]

    def begin(self, training: bool) -> None:
        """Note that a forward pass of the root begins."""
        self.begun, self.training, self.collecting = True, training, training and not self.frozen

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which no forward pass of a root has reached yet."""
        return {**self.__dict__, 'begun': False, 'training': False, 'collecting': False}
