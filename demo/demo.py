"""The main job: digits, float training, reshape, W2A4, folding, evaluation of each: python demo/demo.py

Every step is one of the command line tools. Finished steps are reused while nothing they depend on changes.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from mmgdrq.openmmlab.commands.checkpoints import use_checkpoint
from mmgdrq.openmmlab.commands.options import load_config
from mmgdrq.openmmlab.commands.runners import build_runner

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = 'configs/gdrq/'
TRAININGS = {
    'float': 'faster_rcnn_r18_fpn_digits.py',
    'reshaped': 'faster_rcnn_r18_fpn_digits_reshape.py',
    'w2a4': 'faster_rcnn_r18_fpn_digits_w2a4.py',
}
BITS = {'float': '32 / 32', 'reshaped': '32 / 32', 'w2a4': '2 / 4', 'folded': '2 / 4'}
SOURCES = ('mmgdrq/**/*.py', 'configs/**/*.py', 'tools/*.py', 'requirements/*.txt')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo')
    parser.add_argument('--data', default='data/digits/')
    parser.add_argument('--again', action='store_true', help='do all steps again')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='passed on to every tool')
    args = parser.parse_args()
    os.chdir(ROOT)
    # Waiting threads spin briefly only: if anything else uses a core, long spinning makes training many times slower.
    os.environ.setdefault('GOMP_SPINCOUNT', '20000')
    started = time.time()
    demo = Demo(Path(args.work_dir), args.data.rstrip('/') + '/', args.cfg_options, args.again)
    demo.run()
    print(f'\n{demo.table()}\n\n{demo.picture}\n{demo.summary}\n{(time.time() - started) / 60:.1f} minutes')


class Demo:
    """The steps, their folders and their results."""

    def __init__(self, work_dir: Path, data: str, options: list[str], again: bool) -> None:
        self.work_dir, self.data, self.again = work_dir, data, again
        self.options = [*data_options(data), *options]
        self.summary = work_dir / 'summary.json'
        self.picture = work_dir / 'detections.png'
        self.results: dict[str, dict[str, float]] = {}
        self.key = hashlib.sha256(' '.join(self.options).encode())
        for pattern in SOURCES:
            for file in sorted(ROOT.glob(pattern)):
                self.key.update(file.read_bytes())

    def run(self) -> None:
        """Do all steps and write summary and picture."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        say('data set')
        python('demo/make_digits.py', '--out', self.data)
        checkpoint = None
        for stage, config in TRAININGS.items():
            checkpoint = self.train(stage, CONFIGS + config, checkpoint)
            self.test(stage, CONFIGS + config, checkpoint)
        config = CONFIGS + TRAININGS['w2a4']
        self.deploy(config, checkpoint)
        self.test('folded', config, self.work_dir / 'folded')
        write_json(self.summary, self.results)
        draw(config, self.work_dir / 'folded', self.options, self.picture)

    def train(self, stage: str, config: str, start) -> Path:
        """Train one stage from the checkpoint ``start``; returns its checkpoint."""
        folder = self.work_dir / stage
        last = folder / 'last_checkpoint'
        if not self.is_done(f'{stage}.train'):
            say(f'train: {stage}')
            options = [*self.options, *([f'load_from={start}'] if start else [])]
            python('tools/train.py', config, '--work-dir', folder, '--cfg-options', *options)
            self.mark_done(f'{stage}.train')
        return Path(last.read_text(encoding='utf-8').strip())

    def test(self, stage: str, config: str, checkpoint: Path) -> None:
        """Evaluate one stage on the test split."""
        prefix = self.work_dir / f'{stage}.predictions'
        if not self.is_done(f'{stage}.test'):
            say(f'evaluate: {stage}')
            options = [*self.options, f'test_evaluator.outfile_prefix={prefix}']
            python('tools/test.py', config, checkpoint, '--work-dir', self.work_dir / 'test', '--cfg-options', *options)
            self.mark_done(f'{stage}.test')
        precision = average_precision(f'{self.data}annotations/instances_test.json', f'{prefix}.bbox.json')
        self.results[stage] = {**precision, 'size_mb': round(size_mb(checkpoint), 3)}

    def deploy(self, config: str, checkpoint: Path) -> None:
        """Fold the quantized checkpoint."""
        if not self.is_done('deploy'):
            say('fold')
            arguments = ['--out', self.work_dir / 'folded', '--work-dir', self.work_dir / 'deploy']
            python('tools/deploy.py', config, checkpoint, *arguments, '--cfg-options', *self.options)
            self.mark_done('deploy')

    def is_done(self, step: str) -> bool:
        """Whether a step was finished with what it depends on as it is now; it counts for those after it."""
        self.key.update(step.encode())
        marker = self.work_dir / f'.{step}.done'
        done = not self.again and marker.is_file() and marker.read_text(encoding='utf-8') == self.key.hexdigest()
        if done:
            say(f'{step}: done before, reused (--again does it again)')
        return done

    def mark_done(self, step: str) -> None:
        """Note that a step is finished."""
        (self.work_dir / f'.{step}.done').write_text(self.key.hexdigest(), encoding='utf-8')

    def table(self) -> str:
        """The results as text."""
        lines = ['stage     bits w/a  AP     AP50   size in MB', '--------  --------  -----  -----  ----------']
        for stage, row in self.results.items():
            lines.append(f'{stage:8}  {BITS[stage]:8}  {row["AP"]:.3f}  {row["AP50"]:.3f}  {row["size_mb"]:10.2f}')
        return '\n'.join(lines)


def data_options(data: str) -> list[str]:
    """Config options that point the digits' data sets at ``data``."""
    options = [f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test')]
    return options + [
        f'{split}_evaluator.ann_file={data}annotations/instances_{split}.json' for split in ('val', 'test')
    ]


def average_precision(annotations: str, predictions: str) -> dict[str, float]:
    """COCO AP (0.50:0.95) and AP50 of a result file; CocoMetric rounds its own to three digits."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(predictions), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {'AP': round(float(evaluation.stats[0]), 5), 'AP50': round(float(evaluation.stats[1]), 5)}


def size_mb(path: Path) -> float:
    """Size of a model in MB: a deployed directory as it is, of a checkpoint the model's tensors only."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir()) / 1e6
    import torch

    import mmgdrq  # noqa: F401  allows mmengine's checkpoints under weights_only

    state = torch.load(path, map_location='cpu')['state_dict']
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6


def draw(config: str, checkpoint: Path, options: list[str], out: Path, images: int = 8) -> None:
    """Draw detections of a model on test images, side by side."""
    import cv2
    import numpy as np
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cli_args = parser.parse_args([config, '--cfg-options', *options, f'test_dataloader.dataset.indices={images}'])
    cli_args.work_dir, cli_args.launcher, cli_args.local_rank = str(out.parent / 'test'), 'none', 0
    cfg = load_config(cli_args)
    cfg.log_level = 'WARNING'
    use_checkpoint(cfg, str(checkpoint))
    runner = build_runner(cfg)
    runner.call_hook('before_run')
    tiles = []
    for batch in runner.build_dataloader(cfg.test_dataloader):
        for sample in runner.model.eval().test_step(batch):
            tiles.append(draw_one(cv2.imread(sample.img_path), sample.pred_instances))
    rows = [np.hstack(tiles[i : i + 4]) for i in range(0, len(tiles), 4)]
    cv2.imwrite(str(out), np.vstack(rows))


def draw_one(image, instances, scale: int = 3, threshold: float = 0.5):
    """One enlarged image with boxes, digits and scores."""
    import cv2

    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for box, label, score in zip(instances.bboxes, instances.labels, instances.scores):
        if score >= threshold:
            x1, y1, x2, y2 = (int(v * scale) for v in box)
            cv2.rectangle(image, (x1, y1), (x2, y2), (80, 255, 80), 2)
            text = f'{int(label)}: {score.item():.2f}'
            cv2.putText(image, text, (x1, max(y1 - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (80, 255, 80), 1)
    return image


def python(*arguments) -> None:
    """Run a tool of this project; its output goes to the terminal."""
    status = subprocess.run([sys.executable, *map(str, arguments)]).returncode
    if status:
        sys.exit(f'demo: {" ".join(map(str, arguments[:2]))} ended with status {status}')


def say(text: str) -> None:
    print(f'=== {text}', flush=True)


def write_json(path: Path, value) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(value, indent=1) + '\n', encoding='utf-8')
    temporary.replace(path)


if __name__ == '__main__':
    main()
