"""The command, drawing, and what they need installed."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmgdrq_runtime import Classification, Detections, Segmentation, draw, load
from mmgdrq_runtime.__main__ import main
from mmgdrq_runtime.drawing import color_of
from tests.helpers.deployed import deploy_random
from tests.helpers.pictures import smooth_image

pytest.importorskip('onnx', reason='onnx is not installed')
pillow = pytest.importorskip('PIL.Image', reason='Pillow is not installed')
ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ('torch', 'cv2', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmgdrq')
RUN = """
import sys
import numpy as np
import mmgdrq_runtime
sys.modules['cv2'] = None  # as if it were not installed
model = mmgdrq_runtime.load(sys.argv[1], threads=1)
found = model(np.load(sys.argv[2]))
np.savez(sys.argv[3], boxes=found.boxes, scores=found.scores, labels=found.labels)
del sys.modules['cv2']
print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[4:])))
"""


@pytest.fixture(scope='module')
def deployed(tmp_path_factory) -> Path:
    """A folder with a detector and an image as a file and as an array."""
    folder = tmp_path_factory.mktemp('runtime')
    image = smooth_image(100, 120)
    cfg = Config.fromfile(ROOT / 'configs/gdrq/faster_rcnn_r18_fpn_digits.py')
    deploy_random(cfg, folder / 'model', [smooth_image(128, 128)])
    pillow.fromarray(image[..., ::-1]).save(folder / 'image.png')
    np.save(folder / 'image.npy', image)
    return folder


def run_alone(python: str, folder: Path, out: Path, environment: dict) -> None:
    """Run the model in a process of its own, and compare with what it gives here."""
    arguments = ['-c', RUN, folder / 'model', folder / 'image.npy', out, *FOREIGN]
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'
    expected = load(folder / 'model', threads=1)(folder / 'image.png')
    found = np.load(out)
    assert len(expected) > 5
    for name in ('boxes', 'scores', 'labels'):
        assert np.array_equal(found[name], getattr(expected, name))


def test_nothing_of_torch_or_openmmlab_is_imported(deployed, tmp_path):
    run_alone(sys.executable, deployed, tmp_path / 'found.npz', {**os.environ, 'PYTHONPATH': str(ROOT)})


@pytest.fixture(scope='session')
def bare_python() -> str:
    """Python of an environment with numpy and onnxruntime only, made once and kept."""
    folder = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'), 'mmgdrq-bare-environment')
    python = folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    if not (folder / 'complete').exists():
        try:
            venv.create(folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f'venv cannot make an environment with pip: {error}')
        command = [python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'numpy', 'onnxruntime']
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f'pip cannot install numpy and onnxruntime: {done.stderr.strip().splitlines()[-1:]}')
        (folder / 'complete').touch()
    return str(python)


def test_numpy_and_onnxruntime_are_enough(deployed, tmp_path, bare_python):
    run_alone(bare_python, deployed, tmp_path / 'found.npz', {'PYTHONPATH': str(ROOT)})


def test_the_command_prints_and_draws(deployed, tmp_path, capsys):
    out = tmp_path / 'picture.png'
    main([str(deployed / 'model'), str(deployed / 'image.png'), '--out', str(out), '--score-thr', '0.1'])
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert set(rows[0]) == {'class', 'score', 'box'}
    picture = np.asarray(pillow.open(out))
    assert picture.shape == (100, 120, 3)
    assert (picture != np.asarray(pillow.open(deployed / 'image.png'))).any()


def test_the_command_says_what_is_wrong(deployed):
    with pytest.raises(SystemExit, match=r'InputError: image: missing\.png does not exist'):
        main([str(deployed / 'model'), 'missing.png'])
    with pytest.raises(SystemExit, match='CheckpointError: nowhere: does not exist'):
        main(['nowhere', 'missing.png'])


@pytest.mark.parametrize('out', ['no/such/folder/picture.png', 'picture.unknown'])
def test_the_command_says_that_the_picture_cannot_be_written(deployed, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f'InputError: --out {out}: cannot be written'):
        main([str(deployed / 'model'), str(deployed / 'image.png'), '--out', out])


def test_boxes_and_masks_are_drawn_in_the_colour_of_their_class():
    image, masks = np.zeros((40, 50, 3), np.uint8), np.zeros((1, 40, 50), bool)
    masks[0, 30:35, 10:20] = True
    found = Detections(np.float32([[5, 20, 40, 38]]), np.float32([0.9]), np.array([1]), masks)
    picture = np.asarray(draw(image, found, palette=[[1, 1, 1], [200, 100, 50]]))
    assert picture[38, 20].tolist() == [200, 100, 50]
    assert picture[32, 15].tolist() == [100, 50, 25]
    assert picture[5, 5].tolist() == [0, 0, 0]
    weak = Detections(found.boxes, np.float32([0.2]), found.labels)
    assert not np.asarray(draw(image, weak)).any()


def test_label_maps_and_classes_are_drawn():
    image, labels = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.int64)
    labels[:, 25:] = 1
    picture = np.asarray(draw(image, Segmentation(labels), palette=[[0, 0, 0], [200, 100, 50]]))
    assert picture[3, 30].tolist() == [100, 50, 25]
    assert not picture[3, 3].any()
    assert np.asarray(draw(image, Classification(np.float32([0.2, 0.8]), 1), ['cat', 'dog'])).any()
    assert len({color_of(label) for label in range(80)}) == 80


def test_the_example_of_the_page_runs(deployed, monkeypatch, capsys):
    page = (ROOT / 'docs/runtime.md').read_text()
    code = page.split('```python\n')[1].split('```')[0]
    monkeypatch.chdir(deployed)
    exec(code.replace("'DIR'", "'model'"), {})
    assert len(capsys.readouterr().out.splitlines()) > 5
    assert pillow.open('picture.png').size == (120, 100)


def test_installing_it_asks_for_no_torch():
    tomllib = pytest.importorskip('tomllib', reason='Python before 3.11')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    asked = project['dependencies'] + project['optional-dependencies']['runtime']
    assert asked == ['safetensors', 'numpy', 'onnxruntime', 'pillow']
