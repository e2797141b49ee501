"""CIFAR-10 without loss, and the usual ResNet-20 for it, in plain torch."""

import io
import zipfile
from pathlib import Path
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

WEIGHTS = 'resnet20_cifar10.th'
BATCHES = {'train': [f'data_batch_{number}.bin' for number in range(1, 6)], 'test': ['test_batch.bin']}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def load_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (uint8, ``(N, 3, 32, 32)``) and labels (int64, ``(N,)``) of ``'train'`` or ``'test'``.

    Args:
        folder: holds either ``cifar-10-batches-bin/`` (the binary version of the data set's page), or
            ``cifar10/cifar10_<split>.zip`` with ``labels.npy`` and columns of 500 images each.
        split: ``'train'`` or ``'test'``.

    Raises:
        FileNotFoundError: neither is in ``folder``.
    """
    binary, archive = folder / 'cifar-10-batches-bin', folder / f'cifar10/cifar10_{split}.zip'
    if binary.is_dir():
        rows = np.concatenate([np.fromfile(binary / name, np.uint8).reshape(-1, 3073) for name in BATCHES[split]])
        images, labels = rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]
    elif archive.is_file():
        images, labels = _from_columns(archive)
    else:
        raise FileNotFoundError(f'{folder}: holds neither {binary.name}/ nor {archive.name}; --data names the folder')
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def _from_columns(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(archive) as bundle:
        labels = np.load(io.BytesIO(bundle.read('labels.npy')))
        names = sorted(name for name in bundle.namelist() if not name.endswith('.npy'))
        columns = [np.asarray(Image.open(io.BytesIO(bundle.read(name)))) for name in names]
    return np.concatenate(columns).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2), labels


def normalize(images: Tensor) -> Tensor:
    """uint8 images to float32 with ImageNet's mean and deviation, as the weights were trained."""
    return (images.float() / 255 - MEAN) / STD


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift by up to 4 pixels (zero padding after normalization) and mirroring, per image."""
    n = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, n), generator=generator)
    rows = (top[:, None] + torch.arange(32))[:, None, :, None]
    columns = (left[:, None] + torch.arange(32))[:, None, None, :]
    index = torch.arange(n)[:, None, None, None]
    crops = padded[index, torch.arange(3)[None, :, None, None], rows, columns]
    mirror = torch.rand(n, generator=generator) < 0.5
    crops[mirror] = crops[mirror].flip(3)
    return crops


class Block(nn.Module):
    """Basic block with the parameter-free (option A) shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images (He et al., CVPR 2016, section 4.2)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(weights: Optional[Path] = None) -> ResNet20:
    """A ResNet-20, with the float weights of a file if one is given."""
    model = ResNet20()
    if weights is not None:
        state = torch.load(weights, map_location='cpu', weights_only=True)
        state = state.get('state_dict', state)
        model.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
    return model
