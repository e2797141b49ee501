"""Print in which order the modules of mmgdrq are entered, on the ways that docs/architecture.md names.

python dev/paths.py [convert train load deploy]
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import mmgdrq

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('mmgdrq', 'mmgdrq_runtime')


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip


def images() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@contextmanager
def recorded(modules: list[str]) -> Iterator[None]:
    """Note each module of ours once, when it is entered for the first time."""

    def note(frame, event, _) -> None:
        if event == 'call':
            file = Path(frame.f_code.co_filename)
            if ROOT in file.parents and file.relative_to(ROOT).parts[0] in PACKAGES:
                name = '.'.join(file.relative_to(ROOT).with_suffix('').parts)
                if name not in modules and not name.endswith('__init__'):
                    modules.append(name)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def convert() -> list[str]:
    """A config becomes a quantized layer."""
    entered: list[str] = []
    model = network()
    with recorded(entered):
        mmgdrq.quantize(model, weight=dict(bits=2), activation=dict(bits=4))
    return entered


def trained() -> nn.Module:
    model = mmgdrq.quantize(network())
    model.train()(images())
    return model


def train() -> list[str]:
    """One iteration of a training."""
    model = trained()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    mmgdrq.ScaleClip(model).attach(optimizer)
    entered: list[str] = []
    with recorded(entered):
        model(images()).square().mean().backward()
        optimizer.step()
    return entered


def load() -> list[str]:
    """A checkpoint is loaded."""
    from mmengine.runner import load_checkpoint

    entered: list[str] = []
    model = mmgdrq.quantize(network())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(trained().state_dict(), Path(folder, 'model.pth'))
        with recorded(entered):
            load_checkpoint(model, str(Path(folder, 'model.pth')))
    return entered


class Classifier(nn.Module):
    """A network with the dense part of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = network()[:-1], network()[-1]

    def extract_feat(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.extract_feat(x))


def deploy() -> list[str]:
    """A model is folded, exported, checked and written."""
    from mmgdrq.deploy.deployment import deploy as deploy_model

    model = mmgdrq.quantize(Classifier())
    model.train()(images())
    entered: list[str] = []
    with tempfile.TemporaryDirectory() as folder, recorded(entered):
        deploy_model(model, [images()], lambda target, x: target(x), str(Path(folder, 'deployed')), ['openvino'])
    return entered


PATHS: dict[str, Callable[[], list[str]]] = dict(convert=convert, train=train, load=load, deploy=deploy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='*', default=list(PATHS), help=f'of {", ".join(PATHS)}')
    for name in parser.parse_args().paths:
        print(f'{name}: {PATHS[name].__doc__}')
        print(os.linesep.join(f'  {module}' for module in PATHS[name]()))


if __name__ == '__main__':
    main()
