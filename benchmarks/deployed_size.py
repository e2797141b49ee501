"""Size of deployed detectors: python benchmarks/deployed_size.py CONFIG [CONFIG ...]

Builds the model with random weights (sizes do not depend on them), folds it after two passes over a random image, and
writes it. Says what float32 would take and what the directory takes, in all and in the layers with 2-bit weights.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import load_file
from torch import nn

import mmgdrq
from mmgdrq.deploy import save_folded
from mmgdrq.deploy.folding.artifact import WEIGHTS, stored_bytes
from mmgdrq.layers.walk import is_quantized_model
from mmgdrq_runtime.manifest import MANIFEST

SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+')
    args = parser.parse_args()
    print(f'{"":34}{"whole detector, MB":^27}{"layers with 2 bits, MB":^27}')
    print(f'{"config":34}' + f'{"float":>10}{"deployed":>10}{"ratio":>7}' * 2)
    for config in args.configs:
        row = measure(config)
        whole, low = (row['float'], row['deployed']), (row['float of 2 bits'], row['deployed of 2 bits'])
        print(
            f'{Path(config).stem:34}{whole[0]:10.1f}{whole[1]:10.2f}{whole[0] / whole[1]:7.1f}'
            f'{low[0]:10.1f}{low[1]:10.2f}{low[0] / low[1]:7.1f}'
        )


def measure(config: str) -> dict[str, float]:
    """Megabytes of a detector and of its layers with 2-bit weights, in float32 and deployed."""
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    cfg.model.pop('init_cfg', None)
    model = MODELS.build(cfg.model)
    floats = sum(p.numel() * 4 for p in model.parameters()) + sum(b.numel() * 4 for b in model.buffers())
    if not is_quantized_model(model):
        hook = next(hook for hook in cfg.custom_hooks if hook['type'].endswith('GDRQHook'))
        mmgdrq.quantize(model, **{key: hook[key] for key in ('weight', 'activation', 'rules') if key in hook})
    folded = mmgdrq.fold(set_ranges(model), example=predict)
    with tempfile.TemporaryDirectory() as folder:
        path = save_folded(folded, Path(folder, 'deployed'), cfg.pretty_text)
        layers = json.loads((path / MANIFEST).read_text(encoding='utf-8'))['layers']
        stored = load_file(path / WEIGHTS)
        low = [name for name, entry in layers.items() if entry['weight_bits'] == 2]
        counts = [folded.get_submodule(name).weight.numel() for name in low]
        carried = [f'{name}.{part}' for name in low for part in ('weight', 'scale', 'offset', 'input_codes.step')]
        bytes_of = {key: tensor.numel() * tensor.element_size() for key, tensor in stored.items()}
        return {
            'float': floats / 1e6,
            'deployed': stored_bytes(path) / 1e6,
            'float of 2 bits': 4 * sum(counts) / 1e6,
            'deployed of 2 bits': sum(bytes_of.get(key, 0) for key in carried) / 1e6,
        }


@torch.no_grad()
def set_ranges(model: nn.Module) -> nn.Module:
    """Let every input quantizer see one image."""
    model.test_cfg.rcnn.score_thr = 0.0
    model.forward = lambda: predict(model)  # an iteration is a call of the model itself
    for _ in range(2):
        model.train()()
    del model.forward
    return model.eval()


def predict(model: nn.Module) -> object:
    """Run a detector on a random image."""
    shape = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (SIZE, SIZE))
    sample = DetDataSample(metainfo=dict(shape, scale_factor=(1.0, 1.0)))
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 50
    return model.predict(image, [sample], rescale=False)


if __name__ == '__main__':
    main()
