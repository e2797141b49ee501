"""The whole way from a runner with a quantized checkpoint to a verified directory."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import nn

from .artifact import load_folded, save_folded, stored_bytes
from .export import export
from .fold import fold
from .verify import TOLERANCE, check_blocks, compare_blocks


@dataclass(frozen=True)
class Report:
    """What was folded and how well it agrees.

    Attributes:
        out: the directory.
        layers: number of folded layers.
        in_norm: how many of them have their scale in a BN; the others keep one scale a filter.
        not_reached: layers that the verification's inputs did not reach.
        worst_layer, worst_error: block with the largest difference to the quantized model, relative to the
            block's largest output.
        quantized_mb: the quantized model as float32 tensors, in MB.
        folded_mb: the directory without graphs, in MB.
        graphs_mb: engine -> its ONNX graphs, in MB.
    """

    out: str
    layers: int
    in_norm: int
    not_reached: list[str]
    worst_layer: str
    worst_error: float
    quantized_mb: float
    folded_mb: float
    graphs_mb: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report for json."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f'folded {self.layers} layers: {self.in_norm} scales in BN, {self.layers - self.in_norm} in the layer',
            f'largest difference of a block on real inputs: {self.worst_error:.1e} ({self.worst_layer}), '
            f'accepted {TOLERANCE:.0e}',
            f'size: {self.quantized_mb:.2f} MB -> {self.folded_mb:.2f} MB',
            *(f'ONNX graphs for {engine}: {size:.2f} MB' for engine, size in self.graphs_mb.items()),
            f'written: {self.out}',
        ]
        if self.not_reached:
            lines.insert(2, f'not reached by these inputs, so not verified: {", ".join(self.not_reached)}')
        return '\n'.join(lines)


def deploy(runner, out: str, batches: int = 2, profiles: Sequence[str] = ()) -> Report:
    """Fold the model of a runner's checkpoint, verify it on real inputs, and write it.

    Args:
        runner: built from a config with ``load_from``; its test data gives the inputs.
        out: directory to write.
        batches: number of test batches to trace and to verify with.
        profiles: engines to write ONNX graphs for, see :mod:`mmgdrq.deploy.blocks`.

    Raises:
        FoldError: the folded model does not agree with the quantized one; nothing is written.
        CheckpointError: the checkpoint does not fit the config, or ``out`` cannot be replaced.
    """
    runner.call_hook('before_run')
    runner.load_or_resume()
    model = (runner.model.module if is_model_wrapper(runner.model) else runner.model).eval()
    loader = runner.build_dataloader(runner.cfg.test_dataloader)
    inputs = list(islice(loader, batches))

    def run(target: nn.Module) -> None:
        for batch in inputs:
            target.test_step(batch)

    runner.logger.info('mmgdrq: folding')
    folded = fold(model, example=run)
    runner.logger.info('mmgdrq: verifying %d blocks on %d real batches', len(folded.gdrq_folded), len(inputs))
    errors = compare_blocks(model, folded, run)
    check_blocks(errors, folded.gdrq_folded)
    quantized_mb = state_megabytes(model)

    def graphs(folder: Path) -> dict[str, Any]:
        written = {}
        for profile in profiles:
            runner.logger.info('mmgdrq: ONNX graphs for %s', profile)
            (folder / profile).mkdir()
            written[profile] = export(folded, run, folder / profile, profile)
        return written

    save_folded(folded, out, runner.cfg.pretty_text, graphs)
    _check_written(model, folded, out)
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
    )


def state_megabytes(model: nn.Module) -> float:
    """Size of a model's state dict as torch writes it, in MB."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 1e6


def _check_written(model: nn.Module, folded: nn.Module, out: str) -> None:
    """Read the directory back into the quantized model; every tensor must be what was folded."""
    written = load_folded(model, out).state_dict()
    for key, tensor in folded.state_dict().items():
        if not torch.equal(written[key], tensor):
            raise RuntimeError(f'{out}: {key} was not written as it is in memory')
