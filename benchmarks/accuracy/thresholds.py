"""How well k times a statistic of the inputs gives the best threshold, over the layers of a trained quantized network.

python benchmarks/accuracy/thresholds.py CONFIG CHECKPOINT

For each layer and statistic: k = (threshold of the least squared error) / statistic. A rule suits all layers if their k
are alike. Writes results/distribution/thresholds-s0.json.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from store import commit, save
from torch import Tensor, nn

from mmgdrq.layers import activation_quantizers
from mmgdrq.quant import search_range

BATCHES = 2
SAMPLE = 20_000
"""Elements of an input that are looked at, in every call."""
STATISTICS = {
    'mean': lambda a: a.mean(),
    'active_mean': lambda a: a[a != 0].mean(),
    'contraharmonic': lambda a: a.pow(2).sum() / a.sum(),
    'lehmer': lambda a: a.pow(3).sum() / a.pow(2).sum(),
    'lehmer of order 4': lambda a: a.pow(4).sum() / a.pow(3).sum(),
    'max': lambda a: a.max(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--name', help='of the network, for the page; the name of the config if it is not given')
    args = parser.parse_args()
    version = commit()
    rows = compare(*inputs_of(args.config, args.checkpoint))
    save('distribution', 'thresholds', 0, dict(rows=rows, network=args.name or Path(args.config).stem, commit=version))


def inputs_of(config: str, checkpoint: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The trained model, and samples of the input of every layer from validation images."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = Config.fromfile(config)
        cfg.update(work_dir=folder, load_from=checkpoint, log_level='ERROR')
        init_default_scope(cfg.default_scope)
        runner = Runner.from_cfg(cfg)
        runner.call_hook('before_run')
        runner.load_or_resume()
        model, seen = runner.model.eval(), {}
        for quantizer in activation_quantizers(model):
            quantizer.register_forward_pre_hook(lambda module, args: _keep(seen, module.layer_name, args[0]))
        loader = iter(Runner.build_dataloader(cfg.val_dataloader))
        with torch.no_grad():
            for _ in range(BATCHES):
                model.val_step(next(loader))
    return model, {name: torch.cat(parts) for name, parts in seen.items()}


def _keep(seen: dict[str, list[Tensor]], name: str, x: Tensor) -> None:
    flat = x.detach().flatten()
    seen.setdefault(name, []).append(flat[:: max(flat.numel() // SAMPLE, 1) | 1].clone())


def compare(model: nn.Module, inputs: dict[str, Tensor]) -> list[dict]:
    """For each statistic, sign and bit-width: mean k and its coefficient of variation over the layers."""
    rows = []
    quantizers = [q for q in activation_quantizers(model) if q.spec.bits < 8 and q.layer_name in inputs]
    for signed in (False, True):
        group = [q for q in quantizers if bool(q.signed) is signed]
        if len(group) < 2:
            continue
        for name, statistic in STATISTICS.items():
            ks = [_best(q, inputs[q.layer_name]) / statistic(inputs[q.layer_name].double().abs()).item() for q in group]
            rows.append(dict(statistic=name, signed=signed, layers=len(ks), k=mean(ks), variation=stdev(ks) / mean(ks)))
    return rows


def _best(quantizer, sample: Tensor) -> float:
    signed = bool(quantizer.signed)
    spec = quantizer.spec
    return search_range(sample.unsqueeze(0), spec.levels(signed), spec.code_limits(signed), p=2).item()


if __name__ == '__main__':
    main()
