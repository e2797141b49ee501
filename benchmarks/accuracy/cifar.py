"""CIFAR-10 as JPEG files and the usual ResNet-20 for it, in plain torch."""

import io
import zipfile
from pathlib import Path
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

ARCHIVE, WEIGHTS = 'cifar10_jpeg.zip', 'resnet20_cifar10.th'
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def load_split(folder: Path, split: str, cache: Path) -> tuple[Tensor, Tensor]:
    """Images (uint8, ``(N, 3, 32, 32)``) and labels (int64, ``(N,)``) of ``'train'`` or ``'test'``.

    Args:
        folder: holds ``cifar10_jpeg.zip`` with ``<split>/<class>/*.jpg``.
        split: ``'train'`` or ``'test'``.
        cache: folder for the decoded images.

    Raises:
        FileNotFoundError: the archive is not in ``folder``.
    """
    file = cache / f'cifar10_{split}.npz'
    if not file.exists():
        images, labels = _decode(folder / ARCHIVE, split)
        cache.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix('.tmp.npz')
        np.savez(temporary, images=images, labels=labels)
        temporary.replace(file)
    data = np.load(file)
    return torch.from_numpy(data['images']), torch.from_numpy(data['labels'])


def _decode(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    if not archive.exists():
        raise FileNotFoundError(
            f'{archive}: not found. It holds CIFAR-10 as {split}/<class>/*.jpg; --data says in which folder it lies'
        )
    with zipfile.ZipFile(archive) as bundle:
        names = sorted(n for n in bundle.namelist() if n.endswith('.jpg') and f'{split}/' in n)
        classes = sorted({n.split('/')[-2] for n in names})
        images = [np.asarray(Image.open(io.BytesIO(bundle.read(n))).convert('RGB')) for n in names]
    labels = np.array([classes.index(n.split('/')[-2]) for n in names])
    return np.stack(images).transpose(0, 3, 1, 2).copy(), labels


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
