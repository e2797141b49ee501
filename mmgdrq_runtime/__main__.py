"""Run a deployed model on images: python -m mmgdrq_runtime DIR image.png --out picture.png"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Optional, cast

from .drawing import draw
from .engines import ENGINES
from .errors import InputError, MMGDRQError
from .model import load
from .results import Classification, Result, Segmentation


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m mmgdrq_runtime', description=__doc__)
    parser.add_argument('directory', help='deployed model, written by tools/deploy.py --export')
    parser.add_argument('image')
    parser.add_argument('--out', metavar='PICTURE', help='draw the result into a copy of the image')
    parser.add_argument('--engine', choices=ENGINES, default='onnxruntime')
    parser.add_argument('--threads', type=int, default=0, help='of the engine; 0: it chooses')
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections of lower scores are left out')
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    try:
        model = load(args.directory, args.engine, args.threads)
        result = cast(Result, model(args.image))
        print(json.dumps(summary(result, model.classes, args.score_thr), indent=1))
        if args.out:
            _save(draw(args.image, result, model.classes, model.palette, args.score_thr), args.out)
    except MMGDRQError as error:
        sys.exit(f'{type(error).__name__}: {error}')


def summary(result: Result, classes: Sequence[str], score_thr: float) -> Any:
    """Describe a result by values that JSON can hold."""

    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    if isinstance(result, Classification):
        return {'class': name(result.label), 'score': round(float(result.class_scores[result.label]), 4)}
    if isinstance(result, Segmentation):
        labels = sorted(set(result.label_map.ravel().tolist()))
        return {name(label): int((result.label_map == label).sum()) for label in labels}
    found = result.take(result.scores >= score_thr)
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist())
    return [
        {'class': name(label), 'score': round(score, 4), 'box': [round(value, 2) for value in box]}
        for label, score, box in rows
    ]


def _save(picture: Any, out: str) -> None:
    try:
        picture.save(out)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no such extension
        raise InputError(
            f'--out {out}: cannot be written ({error}). Name a picture such as picture.png, in a folder that exists'
        ) from error


if __name__ == '__main__':
    main()
