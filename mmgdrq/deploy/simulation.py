"""Train with what an engine computes: it is put behind the blocks of a quantized model."""

from typing import Optional

from torch import nn

from ..errors import ConfigError
from ..layers import AffineQuantizer
from ..quantized_model.replaced_layers import refuse_new_float_layers, remember_layers
from ..quantized_model.state import state_of
from .engines import engine_names, find_engine
from .engines.requantized_output import CHILD, EngineResult, hook_up, simulated
from .quantized_outputs import Run, quantized_outputs


def check_simulates(engine: str) -> None:
    """Raise where there is nothing to simulate.

    Raises:
        ConfigError: an engine without a simulation.
    """
    simulating = [name for name in engine_names() if find_engine(name).simulates]
    if engine not in simulating:
        raise ConfigError(
            f'deploy={engine!r}: expected {" or ".join(map(repr, simulating))}. Other engines compute what the '
            'quantized model computes, so there is nothing to simulate'
        )


def simulate(model: nn.Module, engine: str = 'onnxruntime', run: Optional[Run] = None) -> nn.Module:
    """Let a quantized model compute, in training and evaluation, what an engine will; in place.

    Which results are rounded is found as the export finds it: from the graphs of the model's dense parts.

    Args:
        model: result of :func:`mmgdrq.quantize`; a detector, segmentor or classifier of OpenMMLab, or a model with
            the same dense parts.
        engine: one that simulates, such as ``'onnxruntime'``; OpenVINO computes what the quantized model computes.
        run: runs the model it is given on sample images; None: made-up inputs.

    Raises:
        ConfigError: an engine without a simulation, or a model that is not quantized or simulates already.
        ExportError: the model's dense parts cannot be found or traced.
        QuantizationError: quantized layers were replaced by float layers.
    """
    check_simulates(engine)
    state = state_of(model, 'deploy')
    if simulated(model):
        raise ConfigError('deploy: the model simulates an engine already')
    refuse_new_float_layers(model)
    _refuse_affine(model)
    modules = dict(model.named_modules())
    for found in quantized_outputs(model, find_engine(engine), run):
        tail = modules[found.tail]
        result = EngineResult(modules[found.layer], found.lowest, found.requantized, f'the result of {found.tail}')
        result.quantizer.state = state  # of an identity, too
        tail.add_module(CHILD, result.train(tail.training))
    model.register_forward_pre_hook(hook_up)
    hook_up(model)
    remember_layers(model)  # those of the results, too, or they would make up for lost layers
    return model


def _refuse_affine(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, AffineQuantizer):
            raise ConfigError(
                f"deploy: {name.rpartition('.')[0]} has an affine input range, which no engine's graph has yet, so "
                "there is nothing to simulate. Use activation=dict(grid='symmetric')"
            )
