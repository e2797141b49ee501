"""The digits dataset: reproducible, consistent, readable by OpenMMLab, safely written."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from pycocotools import mask as coco_mask

REPO = Path(__file__).resolve().parents[2]
SPLITS = ('train', 'val', 'test')
TINY = {
    'train': 12,
    'val': 4,
    'test': 6,
    'crops_train': 20,
    'crops_val': 10,
    'crops_test': 12,
}


sys.path.insert(0, str(REPO / 'demo'))  # as `python demo/make_digits.py` has it
scenes = importlib.import_module('digits_scenes')
tool = importlib.import_module('make_digits')


def command(out: Path, **changes) -> list:
    """The command line that makes a tiny dataset."""
    options = {'out': out, **TINY, 'workers': 1, **changes}
    return [f'--{name.replace("_", "-")}={value}' for name, value in options.items()]


def contents(folder: Path) -> dict:
    """All files of a folder: relative path and bytes."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def coco(folder: Path, split: str) -> dict:
    """The annotation file of a split."""
    return json.loads((folder / 'annotations' / f'instances_{split}.json').read_text())


def instances(folder: Path) -> list:
    """All annotations of all splits, each with its split and its decoded mask."""
    return [
        (split, annotation, coco_mask.decode(annotation['segmentation']).astype(bool))
        for split in SPLITS
        for annotation in coco(folder, split)['annotations']
    ]


def load_dataset(task: str, scope: str, folder: Path, split: str, with_mask: bool = False):
    """The samples and the classes of a dataset config of the repository, read from a folder."""
    config = Config.fromfile(REPO / 'configs' / '_base_' / 'datasets' / f'digits_{task}.py')
    config = config[f'{split}_dataloader'].dataset
    config.data_root = f'{folder}/'
    if with_mask:
        config.pipeline[1].with_mask = True
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(config)
        return list(dataset), tuple(dataset.metainfo['classes'])


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert tool.main(command(out)) == 0
    return out


def test_any_number_of_processes_writes_the_same_bytes(digits, tmp_path):
    arguments = command(tmp_path / 'again', workers=2)
    subprocess.run([sys.executable, tool.__file__, *arguments], check=True, timeout=120)
    assert contents(tmp_path / 'again') == contents(digits)


def test_another_seed_makes_other_scenes(digits, tmp_path):
    assert tool.main(command(tmp_path / 'other', seed=1)) == 0
    first = 'images/train/000000.jpg'
    assert (tmp_path / 'other' / first).read_bytes() != (digits / first).read_bytes()


def test_no_scan_is_in_two_splits(digits):
    manifest = json.loads((digits / 'manifest.json').read_text())
    dealt = {split: set(manifest['sources'][split]) for split in SPLITS}
    assert sum(len(part) for part in dealt.values()) == 1797
    assert len(set.union(*dealt.values())) == 1797
    for split, annotation, _ in instances(digits):
        assert annotation['source'] in dealt[split]
    for path in digits.glob('crops/*/*/*.png'):
        assert int(path.stem.split('_')[1]) in dealt[path.parts[-3]]


def test_category_is_the_digit_of_the_scan(digits):
    _, targets = scenes.digit_scans()
    for _, annotation, _ in instances(digits):
        assert annotation['category_id'] == targets[annotation['source']] + 1
    for path in digits.glob('crops/*/*/*.png'):
        assert int(path.parent.name) == targets[int(path.stem.split('_')[1])]


def test_boxes_enclose_the_visible_masks_tightly(digits):
    for _, annotation, mask in instances(digits):
        rows, cols = np.nonzero(mask)
        x, y, width, height = annotation['bbox']
        assert [x, y] == [cols.min(), rows.min()]
        assert [x + width, y + height] == [cols.max() + 1, rows.max() + 1]
        assert annotation['area'] == mask.sum()
        assert mask.shape == (128, 128)


@pytest.mark.parametrize('split', SPLITS)
def test_segmentation_map_agrees_with_the_masks(digits, split):
    annotations = coco(digits, split)
    for image in annotations['images']:
        expected = np.zeros((image['height'], image['width']), np.uint8)
        for annotation in annotations['annotations']:
            if annotation['image_id'] == image['id']:
                mask = coco_mask.decode(annotation['segmentation']).astype(bool)
                assert not expected[mask].any(), 'masks overlap'
                expected[mask] = annotation['category_id']
        path = digits / 'seg_maps' / split / image['file_name'].replace('.jpg', '.png')
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


def test_hidden_digits_are_dropped():
    solid = np.ones((20, 20))
    below = scenes.Layer(source=0, x=0, y=0, alpha=solid)
    mostly_over = scenes.Layer(source=1, x=5, y=5, alpha=solid)
    fully_over = scenes.Layer(source=2, x=1, y=1, alpha=solid)
    assert scenes.drop_hidden([below, fully_over], 64) == [fully_over]
    assert scenes.drop_hidden([below, mostly_over], 64) == [mostly_over]
    beside = below._replace(x=14)
    assert scenes.drop_hidden([below, beside], 64) == [below, beside]


@pytest.mark.parametrize('size', [8, 16, 60])
def test_every_scan_can_be_rendered(size):
    rng = np.random.default_rng(0)
    for source in range(0, 1797, 7):
        alpha = scenes.render_glyph(source, size, rng)
        assert alpha.min() >= 0
        assert alpha.max() <= 1
        assert 0.6 * size < alpha.shape[0] < 1.4 * size


def test_mmdet_reads_the_scenes(digits):
    samples, classes = load_dataset('detection', 'mmdet', digits, 'train', with_mask=True)
    assert len(samples) == TINY['train']
    assert classes == tool.CLASSES
    by_image = {}
    for annotation in coco(digits, 'train')['annotations']:
        by_image.setdefault(annotation['image_id'], []).append(annotation)
    for sample in samples:
        truth = sample['data_samples'].gt_instances
        wanted = by_image[sample['data_samples'].img_id]
        assert tuple(sample['inputs'].shape) == (3, 128, 128)
        assert (truth.labels + 1).tolist() == [a['category_id'] for a in wanted]
        assert truth.masks.masks.sum(axis=(1, 2)).tolist() == [a['area'] for a in wanted]


def test_mmseg_reads_the_maps(digits):
    samples, classes = load_dataset('segmentation', 'mmseg', digits, 'test')
    assert len(samples) == TINY['test']
    assert classes == ('background', *tool.CLASSES)
    labels = [np.unique(sample['data_samples'].gt_sem_seg.data) for sample in samples]
    digits_there = {a['category_id'] for a in coco(digits, 'test')['annotations']}
    assert set(np.concatenate(labels).tolist()) == {0} | digits_there


def test_mmpretrain_reads_the_crops(digits):
    samples, classes = load_dataset('classification', 'mmpretrain', digits, 'test')
    assert classes == tool.CLASSES
    labels = [int(sample['data_samples'].gt_label) for sample in samples]
    assert sorted(labels) == sorted(index % 10 for index in range(TINY['crops_test']))
    assert tuple(samples[0]['inputs'].shape) == (3, 32, 32)


def test_counts_are_in_the_manifest(digits):
    counts = json.loads((digits / 'manifest.json').read_text())['counts']
    for split in SPLITS:
        assert counts[split] == {
            'images': TINY[split],
            'instances': len(coco(digits, split)['annotations']),
            'crops': TINY[f'crops_{split}'],
        }
        assert len(list((digits / 'images' / split).iterdir())) == TINY[split]
        assert len(list((digits / 'crops' / split).rglob('*.png'))) == TINY[f'crops_{split}']


def test_a_finished_dataset_is_reused(digits, capsys):
    before = os.stat(digits / 'manifest.json').st_mtime_ns
    assert tool.main(command(digits, workers=2)) == 0
    assert 'reused' in capsys.readouterr().out
    assert os.stat(digits / 'manifest.json').st_mtime_ns == before


def test_other_arguments_need_overwrite(tmp_path, capsys):
    small = {**dict.fromkeys(TINY, 1), 'seed': 3}
    out = tmp_path / 'digits'
    assert tool.main(command(out, **small)) == 0
    assert tool.main(command(out, **{**small, 'test': 2})) == 1
    message = capsys.readouterr().err
    assert 'test 1 instead of 2' in message
    assert '--overwrite or another --out' in message
    assert tool.main([*command(out, **{**small, 'test': 2}), '--overwrite']) == 0
    assert len(coco(out, 'test')['images']) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_a_folder_of_something_else_is_never_touched(tmp_path, capsys):
    (tmp_path / 'note.txt').write_text('mine')
    assert tool.main([*command(tmp_path), '--overwrite']) == 1
    assert 'was not made by this tool' in capsys.readouterr().err
    assert contents(tmp_path) == {'note.txt': b'mine'}


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'coco_json', interrupt)
    with pytest.raises(KeyboardInterrupt):
        tool.main(command(tmp_path / 'digits'))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    gone = subprocess.Popen(['true'])
    gone.wait()
    left = tmp_path / f'digits.partial-{gone.pid}'
    running = tmp_path / f'digits.partial-{os.getppid()}'
    other = tmp_path / f'scenes.partial-{gone.pid}'
    for folder in (left, running, other):
        (folder / 'images').mkdir(parents=True)
    assert tool.main(command(tmp_path / 'digits', **dict.fromkeys(TINY, 1))) == 0
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / 'digits', running, other])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train': -1}, '--train must not be negative, but is -1'),
        ({'crops_val': -2}, '--crops-val must not be negative, but is -2'),
        ({'seed': -1}, '--seed must not be negative, but is -1'),
        ({'size': 8}, '--size must be from 32 to 2048 (pixels), but is 8'),
        ({'crop_size': 4}, '--crop-size must be from 16 to 512 (pixels), but is 4'),
        ({'min_digits': 0}, '--min-digits must be at least 1, but is 0'),
        ({'max_digits': 1}, '--max-digits must be at least 2 (--min-digits), but is 1'),
        ({'min_px': 2}, '--min-px must be at least 8 (pixels), but is 2'),
        ({'max_px': 10}, '--max-px must be at least 16 (--min-px), but is 10'),
        ({'max_px': 100}, '--max-px must be at most 64 (half of --size), but is 100'),
        ({'workers': 0}, '--workers must be at least 1, but is 0'),
    ],
)
def test_wrong_arguments_give_one_error(tmp_path, capsys, changes, message):
    assert tool.main(command(tmp_path / 'digits', **changes)) == 1
    assert capsys.readouterr().err == f'error: {message}\n'
    assert list(tmp_path.iterdir()) == []
