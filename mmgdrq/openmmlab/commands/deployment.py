"""The whole way from a runner with a quantized checkpoint to a verified directory."""

import copy
import importlib
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from mmgdrq_runtime.engines import ENGINES, REFERENCE, check_engine, open_engine

from ...deploy.engines.kernels import count_kernels
from ...deploy.export.exported import Exported
from ...deploy.export.writer import export, export_float
from ...deploy.folding.artifact import check_out, load_folded, save_folded, stored_bytes
from ...deploy.folding.fold import fold
from ...deploy.folding.folded_layers import unread_parameters
from ...deploy.plugged_engine import plug_engine
from ...deploy.verification.codes import check_codes, compare_codes
from ...deploy.verification.folded import check_blocks, compare_blocks
from ...deploy.verification.latency import interleave, speedup
from ...deploy.verification.report import GraphReport, Report
from ...errors import ConfigError, ExportError
from ...quantized_model.dense_parts import parts_of
from ..evaluation import evaluate, load_float_model
from ..wrappers import unwrap


class Steps:
    """Says which of how many steps begins."""

    def __init__(self, say: Callable[..., None], total: int) -> None:
        self.say, self.total, self.number = say, total, 0

    def __call__(self, text: str, *args: object) -> None:
        self.number += 1
        self.say('mmgdrq: step %d of %d: ' + text, self.number, self.total, *args)


def deploy(
    runner,
    out: str,
    batches: int = 2,
    profiles: Sequence[str] = (),
    rounds: int = 10,
    test: bool = False,
    float_checkpoint: Optional[str] = None,
) -> Report:
    """Fold the model of a runner's checkpoint, verify it on real inputs, and write it.

    Args:
        runner: built from a config with ``load_from``; its test data gives the inputs.
        out: directory to write.
        batches: number of test batches to trace and to verify with.
        profiles: engines to write ONNX graphs for, see :mod:`mmgdrq.deploy.engines.nodes`.
        rounds: how often each graph is timed beside its float counterpart; 0: not at all.
        test: run the test loop with the quantized model, the folded one and each engine.
        float_checkpoint: float weights of the same model, for the test loop as well; None: without them.

    Raises:
        FoldError: the folded model does not agree with the quantized one; nothing is written.
        ConfigError: too few batches or rounds, float weights without a test, or a config without a float model.
        CheckpointError: a checkpoint does not fit the config, or ``out`` cannot be replaced.
        ExportError: a graph cannot be made, or its engine is not installed or computes something else.
    """
    engines = [profile for profile in profiles if profile in ENGINES]
    tests = (2 + len(engines) + bool(float_checkpoint)) if test else 0
    say = Steps(runner.logger.info, 3 + 2 * len(profiles) + tests)
    model = unwrap(runner.model)
    _check_arguments(batches, rounds, test, float_checkpoint)
    check_out(out)
    if profiles:
        _check_exports(model, profiles)
    floating = load_float_model(runner.cfg, float_checkpoint) if float_checkpoint else None
    runner.call_hook('before_run')
    runner.load_or_resume()
    model.eval()
    inputs = list(islice(runner.build_dataloader(runner.cfg.test_dataloader), batches))

    def run(target: nn.Module) -> object:
        return [target.test_step(batch) for batch in inputs]

    say('folding')
    folded = fold(model, example=run)
    say('verifying %d blocks on %d real batches', len(folded.gdrq_folded), len(inputs))
    errors = compare_blocks(model, folded, run)
    check_blocks(errors, folded.gdrq_folded)
    quantized_mb = state_megabytes(model)
    reports: list[GraphReport] = []

    def graphs(folder: Path) -> dict[str, Any]:
        written = {}
        for profile in profiles:
            say('ONNX graphs for %s', profile)
            (folder / profile).mkdir()
            parts = export(folded, run, folder / profile, profile)
            written[profile] = {p.part.name: p.entry() for p in parts}
            say('comparing the codes of %s with those of torch%s', profile, ', timing' if rounds else '')
            reports.extend(examine(folded, profile, parts, rounds))
        return written

    def tested(stage: str, target: nn.Module) -> dict[str, float]:
        say('evaluating %s', stage)
        return evaluate(runner, target)

    metrics = {}
    if test and floating is not None:
        device = next(model.parameters()).device
        metrics['float'] = tested('float', floating.to(device))
    if test:
        metrics['quantized'] = tested('quantized', model)
    say('writing %s', out)
    save_folded(folded, out, runner.cfg.pretty_text, graphs, lambda folder: _check_written(model, folded, folder))
    if test:
        metrics['folded'] = tested('folded', folded)
        for engine in engines:
            metrics[engine] = tested(engine, plug_engine(copy.deepcopy(folded), out, engine))
    worst = max(errors, key=errors.get)
    return Report(
        out=str(out),
        layers=len(folded.gdrq_folded),
        in_norm=sum(entry['norm'] is not None for entry in folded.gdrq_folded.values()),
        not_reached=sorted(set(folded.gdrq_folded) - set(errors)),
        worst_layer=worst,
        worst_error=errors[worst],
        quantized_mb=quantized_mb,
        folded_mb=stored_bytes(out) / 1e6,
        graphs_mb={p: sum(f.stat().st_size for f in Path(out, p).iterdir()) / 1e6 for p in profiles},
        graphs=reports,
        metrics=metrics,
    )


def _check_arguments(batches: int, rounds: int, test: bool, float_checkpoint: Optional[str]) -> None:
    if batches < 1:
        raise ConfigError(f'--batches {batches}: expected 1 or more; the folded model is verified on them')
    if rounds < 0:
        raise ConfigError(f'--rounds {rounds}: expected 0 (no timing) or more')
    if float_checkpoint and not test:
        raise ConfigError('--float: needs --evaluate, which compares the metrics')


def _check_exports(model: nn.Module, profiles: Sequence[str]) -> None:
    """Raise before the work where a graph could not be made or checked."""
    parts_of(model)
    try:
        importlib.import_module('onnx')
    except ImportError as error:
        raise ExportError('--export: the package onnx is not installed. Run `pip install onnx`') from error
    for profile in profiles:
        check_engine(profile if profile in ENGINES else REFERENCE)


def examine(folded: nn.Module, engine: str, parts: list[Exported], rounds: int) -> list[GraphReport]:
    """Compare, count and time the graphs of one engine.

    Args:
        folded: result of :func:`mmgdrq.fold`.
        engine: the profile of the graphs; where it is not the name of an engine that runs here, ``REFERENCE``
            checks the codes, and nothing is counted and timed.
        parts: result of :func:`~mmgdrq.deploy.export.writer.export`.
        rounds: how often each graph is timed; 0: not at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        timed = rounds and engine in ENGINES
        floats = export_float(folded, parts, Path(folder), engine) if timed else [None] * len(parts)
        return [_examine_part(engine, part, path, rounds) for part, path in zip(parts, floats)]


def _examine_part(engine: str, part: Exported, in_float: Optional[Path], rounds: int) -> GraphReport:
    runner = engine if engine in ENGINES else REFERENCE
    errors = compare_codes(part, runner, optimize=engine in ENGINES)
    check_codes(errors, runner, part.path)
    integer, floating = count_kernels(engine, part.path) if engine in ENGINES else (None, None)
    timed = {}
    if in_float is not None:
        x = part.example.numpy()
        runs = {name: open_engine(engine, path) for name, path in (('low-bit', part.path), ('float', in_float))}
        times = interleave({name: lambda f=f: f(x) for name, f in runs.items()}, rounds)
        timed['milliseconds'] = 1000 * statistics.median(times['low-bit'])
        timed['speedup'] = speedup(times, 'low-bit', 'float')
    return GraphReport(
        engine=engine,
        part=part.part.name,
        blocks=len(part.blocks),
        integer=integer,
        floating=floating,
        codes=errors.codes,
        different=errors.different,
        worst=errors.worst,
        distance=errors.distance,
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
