"""Compose scenes from real handwritten digits: one small dataset for three tasks.

The digits are the 1797 scans of 8x8 pixels that scikit-learn ships (``load_digits``). They are
drawn at varying scale, rotation, colour and contrast on textured backgrounds and partly hide each
other. The folder that this tool writes serves detection and instance segmentation (COCO), semantic
segmentation (maps of class indices) and classification (crops of single digits)::

    data/digits/
        images/{train,val,test}/000000.jpg             scenes
        annotations/instances_{train,val,test}.json    COCO: boxes, RLE masks, areas, ``source``
        seg_maps/{train,val,test}/000000.png           0 = background, 1..10 = digits 0..9
        crops/{train,val,test}/{0..9}/000000_0042.png  number of the crop, index of its scan
        manifest.json                                  written last: arguments, counts, sources

``source`` is the index of a digit's scan. No scan is used in more than one split. The result
depends on the arguments alone, not on ``--workers``::

    python tools/make_digits.py --out data/digits
"""

import argparse
import colorsys
import functools
import glob
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Optional

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.progress import Progress
from sklearn.datasets import load_digits

GENERATOR = 'mmgdrq make_digits'
VERSION = 1
MANIFEST = 'manifest.json'
SPLITS = ('train', 'val', 'test')
CLASSES = tuple(str(digit) for digit in range(10))
SPLIT_SHARES = (0.7, 0.1, 0.2)

GLYPH_ZOOM = 8
MIN_VISIBLE = 0.7
MAX_BOX_IOU = 0.1
PLACE_TRIES = 25
JPEG_QUALITY = 90


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


class Task(NamedTuple):
    """One file to make: its kind (``scene`` or ``crop``), its split and its number in the split."""

    kind: str
    split: str
    index: int


# ------------------------------------------------------------------------------------------ sources


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


# ---------------------------------------------------------------------------------------- rendering


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


# ------------------------------------------------------------------------------------------ writing


def image_name(split: str, index: int) -> Path:
    """Path of a scene inside the dataset."""
    return Path('images', split, f'{index:06d}.jpg')


def seg_map_name(split: str, index: int) -> Path:
    """Path of a segmentation map inside the dataset."""
    return Path('seg_maps', split, f'{index:06d}.png')


def crop_name(split: str, index: int, source: int) -> Path:
    """Path of a crop inside the dataset."""
    digit = digit_scans()[1][source]
    return Path('crops', split, CLASSES[digit], f'{index:06d}_{source:04d}.png')


def write_image(path: Path, image: np.ndarray, *options: int):
    """Write an RGB or grey image; the ending of the path says in which format."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    _, data = cv2.imencode(path.suffix, pixels, options)
    path.write_bytes(data.tobytes())


def annotate(scene: Scene) -> list:
    """COCO annotations of a scene; ids are added by ``coco_json``."""
    annotations = []
    for number, source in enumerate(scene.sources, 1):
        mask = scene.owner == number
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        rows, cols = np.nonzero(mask)
        x, y = int(cols.min()), int(rows.min())
        annotations.append(
            {
                'category_id': int(digit_scans()[1][source]) + 1,
                'bbox': [x, y, int(cols.max()) + 1 - x, int(rows.max()) + 1 - y],
                'area': int(mask.sum()),
                'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
                'iscrowd': 0,
                'source': source,
            }
        )
    return annotations


def write_scene(folder: Path, args: DigitsArgs, split: str, index: int) -> list:
    """Make one scene, write its image and its segmentation map, and return its annotations."""
    scene = make_scene(args, split, index)
    labels = np.array([0, *(digit_scans()[1][scene.sources] + 1)], np.uint8)
    write_image(folder / image_name(split, index), scene.image, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    write_image(folder / seg_map_name(split, index), labels[scene.owner])
    return annotate(scene)


def write_crop(folder: Path, args: DigitsArgs, split: str, index: int) -> list:
    """Make and write one crop; a crop has no annotations."""
    path = folder / crop_name(split, index, crop_source(args, split, index))
    write_image(path, make_crop(args, split, index).image)
    return []


def run_task(folder: Path, args: DigitsArgs, task: Task) -> list:
    """Make one file and return its annotations."""
    write = {'scene': write_scene, 'crop': write_crop}[task.kind]
    return write(folder, args, task.split, task.index)


def run_tasks(folder: Path, args: DigitsArgs, tasks: list, workers: int) -> list:
    """Run all tasks on the given number of processes; the results keep the order of the tasks."""
    run = functools.partial(run_task, folder, args)
    with Progress(disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task('digits', total=len(tasks))

        def collect(results) -> list:
            collected = []
            for result in results:
                collected.append(result)
                progress.advance(bar)
            return collected

        if workers == 1:
            return collect(map(run, tasks))
        # not fork: a copy of a process in which OpenCV already has threads waits for them forever
        with multiprocessing.get_context('spawn').Pool(workers, cv2.setNumThreads, (1,)) as pool:
            return collect(pool.imap(run, tasks, chunksize=32))


def coco_json(args: DigitsArgs, split: str, annotations: list) -> dict:
    """The COCO annotation file of a split, from the annotations of its scenes."""
    images = [
        {
            'id': index + 1,
            'file_name': image_name(split, index).name,
            'width': args.size,
            'height': args.size,
        }
        for index in range(args.scenes(split))
    ]
    owned = [(image['id'], found) for image, all_ in zip(images, annotations) for found in all_]
    return {
        'images': images,
        'annotations': [
            {'id': number, 'image_id': image_id, **found} for number, (image_id, found) in enumerate(owned, 1)
        ],
        'categories': [{'id': digit + 1, 'name': name} for digit, name in enumerate(CLASSES)],
    }


def make_folders(folder: Path):
    """Create the folders of the dataset."""
    (folder / 'annotations').mkdir()
    for split in SPLITS:
        (folder / 'images' / split).mkdir(parents=True)
        (folder / 'seg_maps' / split).mkdir(parents=True)
        for name in CLASSES:
            (folder / 'crops' / split / name).mkdir(parents=True)


def generate(folder: Path, args: DigitsArgs, workers: int) -> dict:
    """Write the dataset into a new folder, the manifest last, and return the manifest."""
    make_folders(folder)
    tasks = [Task('scene', split, index) for split in SPLITS for index in range(args.scenes(split))]
    tasks += [Task('crop', split, index) for split in SPLITS for index in range(args.crops(split))]
    results = run_tasks(folder, args, tasks, workers)
    counts = {}
    for split in SPLITS:
        wanted = ('scene', split)
        annotations = [r for task, r in zip(tasks, results) if task[:2] == wanted]
        coco = coco_json(args, split, annotations)
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))
        counts[split] = {
            'images': len(coco['images']),
            'instances': len(coco['annotations']),
            'crops': args.crops(split),
        }
    manifest = {
        **identity(args),
        'counts': counts,
        'sources': {split: sorted(itertools.chain(*parts)) for split, parts in split_sources(args.seed).items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return manifest


# ------------------------------------------------------------------------------------ whole dataset


def identity(args: DigitsArgs) -> dict:
    """What must agree for a finished dataset to be used again."""
    return {'generator': GENERATOR, 'version': VERSION, 'arguments': asdict(args)}


def read_manifest(out: Path) -> Optional[dict]:
    """The manifest of a finished dataset; None if there is no folder, or an empty one.

    A folder with other content is refused, so that nothing else is ever overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        if manifest['generator'] == GENERATOR:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DigitsError(f"'{out}' exists and was not made by this tool: pass another --out, or remove it")


def differences(manifest: dict, args: DigitsArgs) -> str:
    """Say in which arguments a finished dataset differs from the wanted one; empty if in none."""
    wanted = {'version': VERSION, **asdict(args)}
    found = {'version': manifest.get('version'), **manifest.get('arguments', {})}
    return ', '.join(
        f'{name} {found.get(name)} instead of {value}' for name, value in wanted.items() if found.get(name) != value
    )


def remove_stale(out: Path):
    """Remove the unfinished folders of runs that were killed."""
    for folder in out.parent.glob(f'{glob.escape(out.name)}.partial-*'):
        process = folder.name.rpartition('.partial-')[2].partition('.')[0]
        if process.isdigit() and (int(process) == os.getpid() or not Path('/proc', process).exists()):
            shutil.rmtree(folder)


def publish(folder: Path, out: Path):
    """Give a finished folder its final name, in place of an earlier dataset."""
    if out.exists():
        old = folder.with_name(folder.name + '.old')
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
    else:
        folder.rename(out)


def make_digits(out: Path, args: DigitsArgs, workers: int = 1, overwrite: bool = False) -> dict:
    """Make the dataset, or reuse a finished one of the same arguments, and return its manifest.

    Args:
        out: The dataset's folder. It appears under this name only when it is complete.
        args: What to make.
        workers: Number of processes; the result is the same for any number.
        overwrite: Whether a dataset of other arguments may be replaced.
    """
    args.check()
    if workers < 1:
        raise DigitsError(f'--workers must be at least 1, but is {workers}')
    found = read_manifest(out)
    changed = differences(found, args) if found else ''
    if found and not changed:
        print(f"'{out}' is complete and fits: reused")
        return found
    if found and not overwrite:
        raise DigitsError(f"'{out}' was made with other arguments ({changed}): pass --overwrite or another --out")
    remove_stale(out)
    folder = out.with_name(f'{out.name}.partial-{os.getpid()}')
    folder.mkdir(parents=True)
    try:
        manifest = generate(folder, args, workers)
        publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"'{out}' made: {json.dumps(manifest['counts'])}")
    return manifest


def parse_args(argv: Optional[list] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Compose scenes and crops of handwritten digits for three tasks.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = DigitsArgs()
    texts = {
        'seed': 'random seed',
        'train': 'number of training scenes',
        'val': 'number of validation scenes',
        'test': 'number of test scenes',
        'size': 'width and height of a scene in pixels',
        'min_digits': 'fewest digits drawn in a scene',
        'max_digits': 'most digits drawn in a scene',
        'min_px': 'height of the smallest digits in pixels',
        'max_px': 'height of the largest digits in pixels',
        'crops_train': 'number of training crops',
        'crops_val': 'number of validation crops',
        'crops_test': 'number of test crops',
        'crop_size': 'width and height of a crop in pixels',
    }
    parser.add_argument('--out', type=Path, default=Path('data/digits'), help='folder of the dataset')
    for name, text in texts.items():
        flag = f'--{name.replace("_", "-")}'
        parser.add_argument(flag, type=int, default=getattr(defaults, name), help=text)
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='number of processes')
    parser.add_argument('--overwrite', action='store_true', help='replace a dataset of other arguments')
    return parser.parse_args(argv)


def main(argv: Optional[list] = None) -> int:
    """Run the tool; return its exit status."""
    options = vars(parse_args(argv))
    out, workers, overwrite = (options.pop(name) for name in ('out', 'workers', 'overwrite'))
    try:
        make_digits(out, DigitsArgs(**options), workers, overwrite)
    except (DigitsError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
