"""Go the whole way from a quantized model to a verified directory: fold, verify, export, compare, write."""

import copy
import importlib
import io
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..quantized_model.dense_parts import Part, example_inputs, parts_of
from .engines import find_engine, runner_of
from .engines.block import Block
from .export.block_variants import as_float, low_bit
from .export.exported import Axes, Exported
from .export.writer import BATCH, SIZE, BlockModel, block_model, possible_axes, write_graph, write_part
from .folding.artifact import check_out, load_folded, save_folded, stored_bytes
from .folding.fold import fold
from .folding.folded_layers import unread_parameters
from .plugged_engine import plug_engine
from .verification.blocks import check_compared, compare_with
from .verification.codes import check_codes, compare_codes
from .verification.folded import check_blocks, compare_blocks
from .verification.free_axes import right_axes
from .verification.latency import interleave, speedup
from .verification.replaced_parts import check_replaced_parts
from .verification.report import GraphReport, Report

Run = Callable[[nn.Module], object]
Metrics = dict[str, float]


def _silent(text: str, *args: object) -> None:
    """Say nothing."""


def deploy(
    model: nn.Module,
    batches: Sequence[Any],
    run: Callable[[nn.Module, Any], object],
    out: str,
    engines: Sequence[str] = (),
    rounds: int = 10,
    config: str = '',
    evaluate: Optional[Callable[[nn.Module], Metrics]] = None,
    floating: Optional[nn.Module] = None,
    say: Callable[..., None] = _silent,
) -> Report:
    """Fold a quantized model, verify it on real inputs, and write it.

    Args:
        model: a quantized model.
        batches: real inputs, to trace and to verify with.
        run: runs the model that it is given on one of them.
        out: directory to write.
        engines: names of the engines to write ONNX graphs for.
        rounds: how often each graph is timed beside its float counterpart; 0: not at all.
        config: text of the config that builds the quantized model.
        evaluate: gives the metrics of a model; None: nothing is evaluated.
        floating: the float model, to be evaluated as well.
        say: is told which step begins, as a logger is: a text and its arguments.

    Raises:
        FoldError: the folded model does not agree with the quantized one; nothing is written.
        CheckpointError: ``out`` cannot be replaced.
        ExportError: a graph cannot be made, or its engine is not installed or computes something else.
    """
    check_deployment(model, out, engines)
    evaluated = [name for name in engines if find_engine(name).runs_here] if evaluate else []
    evaluations = 2 + len(evaluated) + (floating is not None) if evaluate else 0
    say = _Steps(say, 3 + 2 * len(engines) + evaluations)
    model.eval()

    def run_all(target: nn.Module) -> object:
        return [run(target, batch) for batch in batches]

    def evaluated_as(stage: str, target: nn.Module) -> None:
        say('evaluating %s', stage)
        assert evaluate is not None
        metrics[stage] = evaluate(target)

    metrics: dict[str, Metrics] = {}
    folding = fold_and_verify(model, run_all, say)
    folded = folding.model
    quantized_mb = state_megabytes(model)
    if evaluate and floating is not None:
        evaluated_as('float', floating)
    if evaluate:
        evaluated_as('quantized', model)
    say('writing %s', out)
    reports: list[GraphReport] = []

    def graphs(folder: Path) -> dict[str, Any]:
        written = {}
        for name in engines:
            say('ONNX graphs for %s', name)
            (folder / name).mkdir()
            parts = export(folded, run_all, folder / name, name, reference=model)
            written[name] = {part.part.name: part.entry() for part in parts}
            say('comparing the codes of %s with those of torch%s', name, ', timing' if rounds else '')
            reports.extend(examine(folded, parts, rounds))
        return written

    save_folded(folded, out, config, graphs, lambda folder: _check_written(model, folded, folder))
    if evaluate:
        evaluated_as('folded', folded)
        for name in evaluated:
            evaluated_as(name, plug_engine(copy.deepcopy(folded), out, name))
    worst = max(folding.errors, key=lambda name: folding.errors[name])
    return Report(
        out=str(out),
        layers=len(folded.gdrq_folded),
        in_norm=sum(entry.norm is not None for entry in folded.gdrq_folded.values()),
        not_reached=sorted(set(folded.gdrq_folded) - set(folding.errors)),
        worst_layer=worst,
        worst_error=folding.errors[worst],
        quantized_mb=quantized_mb,
        folded_mb=stored_bytes(out) / 1e6,
        graphs_mb={name: sum(f.stat().st_size for f in Path(out, name).iterdir()) / 1e6 for name in engines},
        graphs=reports,
        metrics=metrics,
    )


class _Steps:
    """Say which of how many steps begins."""

    def __init__(self, say: Callable[..., None], total: int) -> None:
        self.say, self.total, self.number = say, total, 0

    def __call__(self, text: str, *args: object) -> None:
        self.number += 1
        self.say('mmgdrq: step %d of %d: ' + text, self.number, self.total, *args)


def check_deployment(model: nn.Module, out: str, engines: Sequence[str]) -> None:
    """Raise before the work where its result could not be written, or a graph not be made or checked.

    Raises:
        CheckpointError: something else is at ``out``.
        ExportError: an unknown engine, a package is not installed, or the model has no known dense parts.
    """
    check_out(out)
    if not engines:
        return
    parts_of(model)
    try:
        importlib.import_module('onnx')
    except ImportError as error:
        raise ExportError('--export: the package onnx is not installed. Run `pip install onnx`') from error
    for name in engines:
        runner_of(find_engine(name))


@dataclass(frozen=True, eq=False)
class Folding:
    """A folded model that agrees with the quantized one.

    Attributes:
        model: result of :func:`mmgdrq.fold`.
        errors: layer name -> largest difference of its block, relative to the largest output of the block.
    """

    model: nn.Module
    errors: dict[str, float]


def fold_and_verify(model: nn.Module, run: Run, say: Callable[..., None] = _silent) -> Folding:
    """Fold a model and compare every block with the quantized one.

    Raises:
        FoldError: they do not agree.
    """
    say('folding')
    folded = fold(model, example=run)
    say('verifying %d blocks on real inputs', len(folded.gdrq_folded))
    errors = compare_blocks(model, folded, run)
    check_blocks(errors, folded.gdrq_folded)
    return Folding(folded, errors)


def export(
    folded: nn.Module,
    run: Run,
    out: Path,
    engine: str = 'openvino',
    variant: Callable[[Block], Block] = low_bit,
    reference: Optional[nn.Module] = None,
) -> list[Exported]:
    """Write ``<part>.onnx`` for every dense part of a folded OpenMMLab model, and check what an engine computes.

    Batch and image size of a graph are free where it computes on other ones what torch computes there. Some operators
    turn sizes into constants: then the image size is that of the sample images, or the graph takes one image at a time.

    Args:
        folded: result of :func:`mmgdrq.fold`, on any device.
        run: runs the model it is given, a copy on the CPU, on sample images and returns its results.
        out: existing directory.
        engine: name of the engine that the graphs are for.
        variant: for comparisons, one of :data:`mmgdrq.deploy.export.block_variants.FORMS`.
        reference: the quantized model that the blocks are compared with; None: the folded one.

    Raises:
        ExportError: an unknown engine, a model without known dense parts, an operator that ONNX lacks, or no engine is
            installed that could check the graphs.
    """
    blocks = block_model(folded, find_engine(engine), variant)
    inputs, results = example_inputs(blocks.parts, lambda: run(blocks.model))
    check_replaced_parts(blocks.model, blocks.parts, run, results)
    parts = [_export_part(blocks, part, inputs[part.name], Path(out, f'{part.name}.onnx')) for part in blocks.parts]
    if variant is low_bit:
        other = copy.deepcopy(folded if reference is None else reference).cpu().eval()
        check_compared(compare_with(other, blocks, run), engine)
    return parts


def _export_part(blocks: BlockModel, part: Part, x: Tensor, path: Path) -> Exported:
    """The graph with as many free axes as are right."""
    found = write_part(blocks, part, x, path)
    right = right_axes(found)
    while right != found.free:
        x = x if right & BATCH else x[:1]
        found = write_graph(blocks, part, x, path, right)
        right = right_axes(found)
    if right != possible_axes(part):
        _say_what_is_fixed(found, right)
    return found


def _say_what_is_fixed(found: Exported, free: Axes) -> None:
    size = 'x'.join(str(n) for n in found.example.shape[1:])
    fixed = [] if free & BATCH else ['runs one input at a time']
    fixed += [] if free & SIZE else [f'takes inputs of {size} only']
    warnings.warn(
        f'export: {found.path.name} {" and ".join(fixed)}: sizes of the sample images are constants in it',
        stacklevel=4,
    )


def export_float(folded: nn.Module, parts: Sequence[Exported], out: Path) -> list[Path]:
    """Write the same graphs in float, to time them beside ``parts``; nothing is checked again.

    Args:
        folded: the model that ``parts`` were made of.
        parts: result of :func:`export`; the engine, the examples and free axes are theirs.
        out: existing directory.

    Returns:
        The ONNX file of each part.
    """
    blocks = block_model(folded, parts[0].engine, as_float)
    return [
        write_graph(blocks, part, like.example, Path(out, like.path.name), like.free).path
        for part, like in zip(blocks.parts, parts)
    ]


def examine(folded: nn.Module, parts: Sequence[Exported], rounds: int) -> list[GraphReport]:
    """Compare, count and time the graphs of one engine.

    Args:
        folded: result of :func:`mmgdrq.fold`.
        parts: result of :func:`export`. Where their engine does not run here, another one checks the codes, and
            nothing is counted and timed.
        rounds: how often each graph is timed; 0: not at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        timed = rounds and parts[0].engine.runs_here
        floats = export_float(folded, parts, Path(folder)) if timed else [None] * len(parts)
        return [_examine_part(part, path, rounds) for part, path in zip(parts, floats)]


def _examine_part(part: Exported, in_float: Optional[Path], rounds: int) -> GraphReport:
    runner, own = runner_of(part.engine)
    errors = compare_codes(part, runner.name, optimize=own)
    check_codes(errors, runner.name, part.path)
    integer, floating = part.engine.count_kernels(part.path) if own else (None, None)
    timed = {}
    if in_float is not None:
        x = part.example.numpy()
        runs = {name: runner.open(path) for name, path in (('low-bit', part.path), ('float', in_float))}
        times = interleave({name: partial(f, x) for name, f in runs.items()}, rounds)
        timed['milliseconds'] = 1000 * statistics.median(times['low-bit'])
        timed['speedup'] = speedup(times, 'low-bit', 'float')
    return GraphReport(
        engine=part.engine.name,
        part=part.part.name,
        blocks=len(part.blocks),
        integer=integer,
        floating=floating,
        codes=errors.codes,
        different=errors.different,
        worst=errors.worst,
        distance=errors.distance,
        processor_dependent=sorted(
            {m.block.name for m in part.blocks if m.engine.depends_on_processor(m.block, m.output)}
        ),
        **timed,
    )


def state_megabytes(model: nn.Module) -> float:
    """Size of a model's state dict as torch writes it, in MB."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 1e6


def _check_written(model: nn.Module, folded: nn.Module, folder: Path) -> None:
    """Read a directory back into the quantized model; every tensor that is read must be what was folded."""
    written = load_folded(copy.deepcopy(model), folder).state_dict()
    unread = set(unread_parameters(folded))
    for key, tensor in folded.state_dict().items():
        if key not in unread and not torch.equal(written[key], tensor):
            raise RuntimeError(f'{folder}: {key} was not written as it is in memory, so nothing was replaced')
