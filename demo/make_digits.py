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

    python demo/make_digits.py --out data/digits
"""

import argparse
import functools
import glob
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Optional

import cv2
import numpy as np
from digits_scenes import (
    SPLITS,
    DigitsArgs,
    DigitsError,
    Scene,
    crop_source,
    digit_scans,
    make_crop,
    make_scene,
    split_sources,
)
from pycocotools import mask as coco_mask
from rich.progress import Progress

GENERATOR = 'mmgdrq make_digits'
VERSION = 1
MANIFEST = 'manifest.json'
CLASSES = tuple(str(digit) for digit in range(10))
JPEG_QUALITY = 90


class Task(NamedTuple):
    """One file to make: its kind (``scene`` or ``crop``), its split and its number in the split."""

    kind: str
    split: str
    index: int


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
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco), encoding='utf-8')
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
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding='utf-8')
    return manifest


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
        manifest = json.loads((out / MANIFEST).read_text(encoding='utf-8'))
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
