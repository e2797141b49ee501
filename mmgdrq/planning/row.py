"""One row of a plan: a weight layer, what it is quantized to, why, and what it costs."""

from dataclasses import dataclass, replace
from typing import Optional

from ..quant import ActivationSpec, WeightSpec
from ..quant.specs import FLOAT_BITS

Specs = tuple[WeightSpec, ActivationSpec]


@dataclass(frozen=True)
class PlanRow:
    """One weight layer of the model.

    Attributes:
        name: qualified name, the first one where a layer has several.
        kind: ``'conv'``, ``'linear'`` or ``'other'``.
        module: class of the layer.
        filters: number of output channels.
        parameters: number of weight elements.
        weight: what the weight is quantized to; None where the layer stays as it is.
        activation: what the input is quantized to; None where the layer stays as it is.
        reason: why it has these bits, or why it is not quantized.
        built: whether it was a quantized layer before, with bits of its own.
        aliases: the other qualified names of a layer that is shared.
        float_input: why its input cannot be quantized; empty where it can.
        macs: multiplications of its weight in the pass of an example; None where they are not known.
        skipped: the specs of a layer that could be quantized and is not, as nobody wants it to be.
    """

    name: str
    kind: str
    module: str
    filters: int
    parameters: int
    weight: Optional[WeightSpec]
    activation: Optional[ActivationSpec]
    reason: str
    built: bool = False
    aliases: tuple[str, ...] = ()
    float_input: str = ''
    macs: Optional[int] = None
    skipped: Optional[Specs] = None

    @property
    def quantized(self) -> bool:
        """Whether anything of the layer is quantized."""
        return self.weight is not None

    @property
    def enabled(self) -> tuple[bool, bool]:
        """Whether its weight and whether its activation have fewer than 32 bits."""
        return self.weight is not None and self.weight.enabled, self.activation is not None and self.activation.enabled

    @property
    def changeable(self) -> bool:
        """Whether rules can change what the layer is quantized to."""
        return not self.built and self.specs is not None

    @property
    def bits(self) -> int:
        """Bits of each weight element."""
        return FLOAT_BITS if self.weight is None else self.weight.bits

    @property
    def bytes(self) -> int:
        """Size of the weight at these bits, in bytes, without its ranges."""
        return -(-self.parameters * self.bits // 8)

    @property
    def bit_operations(self) -> Optional[int]:
        """Multiplications by the bits of both operands, as papers compare costs; None where they are not known."""
        if self.macs is None:
            return None
        return self.macs * self.bits * (FLOAT_BITS if self.activation is None else self.activation.bits)

    @property
    def specs(self) -> Optional[Specs]:
        """What it is quantized to, or would be; None where it cannot be quantized."""
        return self.skipped if self.weight is None or self.activation is None else (self.weight, self.activation)

    def quantized_to(self, weight: WeightSpec, activation: ActivationSpec, reason: Optional[str] = None) -> 'PlanRow':
        """The same layer, quantized to these; its reason stays unless another is given."""
        reason = self.reason if reason is None else reason
        return replace(self, weight=weight, activation=activation, skipped=None, reason=reason)

    def in_float(self, reason: str) -> 'PlanRow':
        """The same layer, not quantized."""
        return replace(self, weight=None, activation=None, skipped=self.specs, reason=reason)
