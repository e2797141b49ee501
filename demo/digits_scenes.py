"""Compose scenes and crops of handwritten digits; :mod:`make_digits` writes them as a dataset."""

import colorsys
import functools
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from sklearn.datasets import load_digits

SPLITS = ('train', 'val', 'test')
SPLIT_SHARES = (0.7, 0.1, 0.2)

GLYPH_ZOOM = 8
MIN_VISIBLE = 0.7
MAX_BOX_IOU = 0.1
PLACE_TRIES = 25


class DigitsError(Exception):
    """The arguments or the output folder do not allow the dataset to be made."""


@dataclass(frozen=True)
class DigitsArgs:
    """Everything that the content of the dataset depends on."""

    seed: int = 0
    train: int = 2000
    val: int = 300
    test: int = 1000
    size: int = 128
    min_digits: int = 2
    max_digits: int = 6
    min_px: int = 16
    max_px: int = 60
    crops_train: int = 4000
    crops_val: int = 500
    crops_test: int = 1000
    crop_size: int = 32

    def check(self):
        """Raise a ``DigitsError`` for the first argument that is out of range."""
        for name in ('seed', 'train', 'val', 'test', 'crops_train', 'crops_val', 'crops_test'):
            self._require(name, getattr(self, name) >= 0, 'must not be negative')
        self._require('size', 32 <= self.size <= 2048, 'must be from 32 to 2048 (pixels)')
        self._require('crop_size', 16 <= self.crop_size <= 512, 'must be from 16 to 512 (pixels)')
        self._require('min_digits', self.min_digits >= 1, 'must be at least 1')
        self._require(
            'max_digits',
            self.max_digits >= self.min_digits,
            f'must be at least {self.min_digits} (--min-digits)',
        )
        self._require('min_px', self.min_px >= 8, 'must be at least 8 (pixels)')
        self._require('max_px', self.max_px >= self.min_px, f'must be at least {self.min_px} (--min-px)')
        self._require(
            'max_px',
            self.max_px <= self.size // 2,
            f'must be at most {self.size // 2} (half of --size)',
        )

    def scenes(self, split: str) -> int:
        """Number of scenes of a split."""
        return getattr(self, split)

    def crops(self, split: str) -> int:
        """Number of crops of a split."""
        return getattr(self, f'crops_{split}')

    def _require(self, name: str, holds: bool, rule: str):
        if not holds:
            raise DigitsError(f'--{name.replace("_", "-")} {rule}, but is {getattr(self, name)}')


class Layer(NamedTuple):
    """One rendered digit: its scan, its top left corner and its opacity (float, 0 to 1)."""

    source: int
    x: int
    y: int
    alpha: np.ndarray

    @property
    def window(self) -> tuple:
        """Where the layer lies in its scene, as an index into the scene's array."""
        height, width = self.alpha.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    @property
    def box(self) -> tuple:
        """The layer's box as ``(x1, y1, x2, y2)``."""
        height, width = self.alpha.shape
        return self.x, self.y, self.x + width, self.y + height


class Scene(NamedTuple):
    """A picture (RGB), the source of every instance, and the instance at every pixel (0 = none)."""

    image: np.ndarray
    sources: list
    owner: np.ndarray


@functools.cache
def digit_scans() -> tuple:
    """The scans of scikit-learn: images ``(1797, 8, 8)`` scaled to 0..1, and their digits."""
    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


@functools.cache
def split_sources(seed: int) -> dict:
    """Deal the scans out to the splits: ``{split: one list of scan indices per digit}``.

    Every split gets its share of every digit, and no scan is in two splits.
    """
    _, targets = digit_scans()
    rng = np.random.default_rng([seed, len(SPLITS)])
    sources = {split: [] for split in SPLITS}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(targets == digit))
        cuts = np.round(np.cumsum(SPLIT_SHARES)[:-1] * len(order)).astype(int)
        for split, part in zip(SPLITS, np.split(order, cuts)):
            sources[split].append(part.tolist())
    return sources


@functools.lru_cache(maxsize=2048)
def glyph(source: int) -> np.ndarray:
    """A scan, smoothly enlarged and cropped to its ink: intensities from 0 to 1."""
    padded = np.pad(digit_scans()[0][source], 1)
    large = cv2.resize(padded, None, fx=GLYPH_ZOOM, fy=GLYPH_ZOOM, interpolation=cv2.INTER_CUBIC)
    large = np.clip(cv2.GaussianBlur(large, (0, 0), 0.2 * GLYPH_ZOOM), 0, 1)
    rows, cols = np.nonzero(large > 0.4)
    margin = GLYPH_ZOOM // 2
    top, left = max(rows.min() - margin, 0), max(cols.min() - margin, 0)
    return large[top : rows.max() + margin + 1, left : cols.max() + margin + 1]


def render_glyph(source: int, height: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity of a digit about ``height`` pixels high, a bit rotated, sheared and stretched.

    The array is cropped to the pixels with an opacity of one half or more.
    """
    ink = glyph(source)
    scale = height / ink.shape[0]
    angle = np.deg2rad(rng.uniform(-15, 15))
    shear, stretch = rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * rotation @ np.array([[stretch, shear], [0, 1]])
    side = int(np.ceil(2 * scale * max(ink.shape)))
    centre = linear @ (np.array(ink.shape[::-1]) / 2)
    matrix = np.column_stack([linear, side / 2 - centre])
    warped = cv2.warpAffine(ink, matrix, (side, side), flags=cv2.INTER_LINEAR)
    level = rng.uniform(0.42, 0.55)
    alpha = np.clip((warped - level) / 0.2 + 0.5, 0, 1)
    rows, cols = np.nonzero(alpha >= 0.5)
    return alpha[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]


def random_colour(luma: float, rng: np.random.Generator) -> np.ndarray:
    """A colour of random hue whose brightness is about ``luma`` (0 to 255)."""
    rgb = 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.6), 1.0))
    grey = rgb @ [0.299, 0.587, 0.114]
    return np.clip(rgb + (luma - grey), 0, 255)


def smooth_noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Noise from -1 to 1 that varies over about ``cells`` patches a side."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    """Parallel waves from -1 to 1 of random direction and width."""
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(5, 24), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size]
    return np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase)


def background(size: int, luma: float, rng: np.random.Generator) -> np.ndarray:
    """A background of about the given brightness: two colours mixed by noise and stripes."""
    texture = sum(smooth_noise(size, cells, rng) / cells**0.3 for cells in (2, 6, 18))
    if rng.uniform() < 0.3:
        texture = texture + rng.uniform(0.3, 0.9) * stripes(size, rng)
    mix = np.clip(0.5 + 0.35 * texture, 0, 1)[..., None]
    contrast = rng.uniform(8, 26)
    return random_colour(luma - contrast, rng) * (1 - mix) + random_colour(luma + contrast, rng) * mix


def digit_luma(ground: float, rng: np.random.Generator) -> float:
    """A brightness that stands out from the ground: darker or lighter, as there is room."""
    contrast = rng.uniform(80, 150)
    lighter = rng.uniform() < 0.5
    if lighter and ground + contrast > 255:
        lighter = False
    elif not lighter and ground - contrast < 0:
        lighter = True
    return float(np.clip(ground + (contrast if lighter else -contrast), 0, 255))


def box_iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes ``(x1, y1, x2, y2)``.

    >>> box_iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def place(layers: list, source: int, alpha: np.ndarray, size: int, rng: np.random.Generator) -> list:
    """Add a digit where it covers little of the others; without such a place, leave it out."""
    height, width = alpha.shape
    for _ in range(PLACE_TRIES):
        x, y = rng.integers(size - width + 1), rng.integers(size - height + 1)
        layer = Layer(source, int(x), int(y), alpha)
        if all(box_iou(layer.box, other.box) <= MAX_BOX_IOU for other in layers):
            return [*layers, layer]
    return layers


def drop_hidden(layers: list, size: int) -> list:
    """Drop the digits of which the later ones leave less than ``MIN_VISIBLE`` to be seen."""
    covered = np.zeros((size, size), bool)
    kept = []
    for layer in reversed(layers):
        mask = layer.alpha >= 0.5
        if (mask & ~covered[layer.window]).sum() >= MIN_VISIBLE * mask.sum():
            covered[layer.window] |= mask
            kept.append(layer)
    return kept[::-1]


def paint(layers: list, size: int, rng: np.random.Generator) -> Scene:
    """Paint the layers one over the other on a new background."""
    ground = rng.uniform(40, 215)
    image = background(size, ground, rng)
    owner = np.zeros((size, size), np.uint8)
    for number, layer in enumerate(layers, 1):
        colour = random_colour(digit_luma(ground, rng), rng)
        alpha = layer.alpha[..., None]
        image[layer.window] = image[layer.window] * (1 - alpha) + colour * alpha
        owner[layer.window][layer.alpha >= 0.5] = number
    image += rng.normal(0, rng.uniform(1, 4), image.shape)
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return Scene(pixels, [layer.source for layer in layers], owner)


def make_scene(args: DigitsArgs, split: str, index: int) -> Scene:
    """Compose one scene of several digits."""
    rng = np.random.default_rng([args.seed, SPLITS.index(split), 0, index])
    sources = split_sources(args.seed)[split]
    layers = []
    for _ in range(rng.integers(args.min_digits, args.max_digits + 1)):
        source = int(rng.choice(sources[rng.integers(10)]))
        alpha = render_glyph(source, rng.uniform(args.min_px, args.max_px), rng)
        layers = place(layers, source, alpha, args.size, rng)
    return paint(drop_hidden(layers, args.size), args.size, rng)


def crop_source(args: DigitsArgs, split: str, index: int) -> int:
    """The scan of a crop: digits take turns, and so do the scans of a digit."""
    candidates = split_sources(args.seed)[split][index % 10]
    return candidates[index // 10 % len(candidates)]


def make_crop(args: DigitsArgs, split: str, index: int) -> Scene:
    """Compose one crop: a single digit with a small margin of background."""
    rng = np.random.default_rng([args.seed, SPLITS.index(split), 1, index])
    source = crop_source(args, split, index)
    alpha = render_glyph(source, rng.uniform(0.55, 0.75) * args.crop_size, rng)
    alpha = alpha[: args.crop_size, : args.crop_size]
    return paint(place([], source, alpha, args.crop_size, rng), args.crop_size, rng)
