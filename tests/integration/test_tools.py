"""The command line tools, run as a user runs them, on a tiny data set of digits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config

from mmgdrq.errors import ConfigError
from mmgdrq.openmmlab.commands.checkpoints import use_checkpoint
from mmgdrq.openmmlab.commands.checks import check_data
from mmgdrq.openmmlab.commands.runners import build_runner

ROOT = Path(__file__).resolve().parents[2]
W2A4 = ROOT / 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py'
FLOAT = ROOT / 'configs/gdrq/faster_rcnn_r18_fpn_digits.py'

TINY = """
_base_ = '{base}'
load_from = None
data = '{data}/'
model = dict(backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64]))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(data_root=data))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data))
val_evaluator = dict(ann_file=data + 'annotations/instances_val.json')
test_evaluator = dict(ann_file=data + 'annotations/instances_test.json')
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""


def run(*arguments, cwd: Path, status: int = 0) -> str:
    """Run Python with ``arguments``; the result is all that it printed."""
    environment = {**os.environ, 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def workplace(tmp_path_factory) -> Path:
    """A folder with data, a config for them, and a model that was trained for one epoch."""
    folder = tmp_path_factory.mktemp('tools')
    sizes = ('--train', '16', '--val', '4', '--test', '6')
    run(ROOT / 'demo/make_digits.py', '--out', folder / 'digits', *sizes, '--workers', '1', cwd=folder)
    for name, base in (('w2a4', W2A4), ('float', FLOAT)):
        (folder / f'{name}.py').write_text(TINY.format(base=base, data=folder / 'digits'))
    output = run(ROOT / 'tools/train.py', 'w2a4.py', '--work-dir', 'run', cwd=folder)
    assert '35 of 35 weight layers quantized' in output
    return folder


@pytest.fixture(scope='module')
def deployed(workplace) -> Path:
    """The trained model, folded, beside a float one."""
    run(ROOT / 'tools/train.py', 'float.py', '--work-dir', 'float', cwd=workplace)
    options = ('--out', 'folded', '--rounds', '2', '--evaluate', '--float', 'float/epoch_1.pth')
    options += ('--export', 'onnxruntime', 'openvino')
    options += ('--cfg-options', 'test_dataloader.num_workers=1', 'test_dataloader.persistent_workers=True')
    output = run(ROOT / 'tools/deploy.py', 'w2a4.py', 'run/epoch_1.pth', *options, cwd=workplace)
    assert 'folded 35 layers: 20 scales in BN, 15 in the layer' in output
    assert all(f'step {n} of 12: ' in output for n in range(1, 13))
    return workplace / 'folded'


def test_the_directory_runs_without_openmmlab(workplace, deployed):
    image = next((workplace / 'digits/images/test').iterdir())
    found = run('-m', 'mmgdrq_runtime', deployed, image, '--out', 'picture.png', '--score-thr', '0', cwd=workplace)
    assert '"box": [' in found
    assert (workplace / 'picture.png').stat().st_size > 1000


def metrics_of(folder: Path, checkpoint, config: str = 'w2a4.py', options: tuple = ()) -> dict:
    file = folder / 'metrics.json'
    arguments = ('--metrics', file, '--work-dir', 'tested', *options)
    run(ROOT / 'tools/test.py', config, checkpoint, *arguments, cwd=folder)
    return json.loads(file.read_text())


def test_mmdets_own_tool_gives_the_same_figures(workplace):
    ours = metrics_of(workplace, 'run/epoch_1.pth')
    tool = Path(mmdet.__file__).parent / '.mim/tools/test.py'
    output = run(tool, 'w2a4.py', 'run/epoch_1.pth', '--work-dir', 'theirs', cwd=workplace)
    assert 'weight layers quantized' in output
    files = list((workplace / 'theirs').glob('*/*.json'))
    theirs = json.loads(files[0].read_text())
    assert ours == {key: value for key, value in theirs.items() if key in ours}


def test_folded_model_is_evaluated_by_the_test_loop(workplace, deployed):
    quantized, folded = metrics_of(workplace, 'run/epoch_1.pth'), metrics_of(workplace, deployed)
    assert folded.keys() == quantized.keys()
    for key, value in quantized.items():
        assert folded[key] == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_an_engine_is_evaluated_by_the_test_loop(workplace, deployed, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    folded = metrics_of(workplace, deployed)
    metrics = metrics_of(workplace, deployed, options=('--engine', engine))
    assert metrics.keys() == folded.keys()
    assert metrics['coco/bbox_mAP'] == pytest.approx(folded['coco/bbox_mAP'], abs=0.03)  # a model of four steps


def test_an_engine_needs_a_deployed_directory(workplace):
    output = run(ROOT / 'tools/test.py', 'w2a4.py', 'run/epoch_1.pth', '--engine', 'openvino', cwd=workplace, status=2)
    assert 'engines run a directory of tools/deploy.py' in output


def test_load_deployed_runs_one_image(workplace, deployed, monkeypatch):
    import cv2

    import mmgdrq

    monkeypatch.chdir(workplace)
    image = next((workplace / 'digits/images/test').glob('*.jpg'))
    model = mmgdrq.load_deployed(deployed, engine='torch')
    from_file, from_array = model(image), model(cv2.imread(str(image)))
    assert len(from_file.pred_instances) > 0
    assert torch.equal(from_file.pred_instances.bboxes, from_array.pred_instances.bboxes)


def test_deployed_directory_is_small_and_reported(deployed):
    report = json.loads((deployed / 'report.json').read_text())
    assert report['worst_error'] < 1e-4
    assert report['not_reached'] == []
    assert report['folded_mb'] < report['quantized_mb'] / 5
    graphs = {(graph['engine'], graph['part']): graph for graph in report['graphs']}
    assert set(graphs) == {(engine, part) for engine in ('onnxruntime', 'openvino') for part in ('dense', 'bbox_head')}
    for graph in graphs.values():
        assert graph['integer'] == graph['blocks']
        assert graph['different'] <= 1e-4 * graph['codes']
        assert graph['speedup'] > 0
    assert list(report['metrics']) == ['float', 'quantized', 'folded', 'onnxruntime', 'openvino']
    values = [metrics['coco/bbox_mAP'] for stage, metrics in report['metrics'].items() if stage != 'float']
    assert max(values) - min(values) < 0.03  # a model of four steps
    assert not list(deployed.parent.glob('.folded*')), 'nothing half-written is left'


def test_the_float_stage_is_the_float_model(workplace, deployed):
    report = json.loads((deployed / 'report.json').read_text())
    assert report['metrics']['float'] == metrics_of(workplace, 'float/epoch_1.pth', config='float.py')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--float', 'float/epoch_1.pth'), 'needs --evaluate'),
        (('--evaluate', '--float', 'missing.pth'), 'missing.pth does not exist'),
        (('--evaluate', '--float', 'run/epoch_1.pth'), 'does not fit the float model'),
    ],
)
def test_a_wrong_float_checkpoint_is_refused_before_the_work(workplace, deployed, options, message):
    arguments = ('w2a4.py', 'run/epoch_1.pth', '--out', 'not_written', *options)
    output = run(ROOT / 'tools/deploy.py', *arguments, cwd=workplace, status=2)
    assert message in output
    assert not (workplace / 'not_written').exists()


def test_init_detector_detects_the_same_boxes(workplace):
    """The builder config gives mmdet's own API the very model that the hook trained."""
    from mmdet.apis import inference_detector, init_detector

    cfg = Config.fromfile(workplace / 'w2a4.py')
    hook = cfg.custom_hooks[0]
    built = Config(cfg.to_dict())
    built.custom_hooks = []
    built.model = dict(
        cfg.model.to_dict(),
        type='mmgdrq.Quantized',
        base_type='FasterRCNN',
        quant=dict(weight=hook.weight, activation=hook.activation),
    )
    checkpoint = str(workplace / 'run/epoch_1.pth')
    model = init_detector(built, checkpoint, device='cpu')

    cfg.work_dir, cfg.experiment_name = str(workplace / 'compare'), 'compare'
    use_checkpoint(cfg, checkpoint)
    runner = build_runner(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    found = 0
    for batch in runner.build_dataloader(cfg.test_dataloader):
        for sample in runner.model.eval().test_step(batch):
            expected, result = sample.pred_instances, inference_detector(model, sample.img_path).pred_instances
            assert torch.equal(result.labels, expected.labels)
            assert torch.allclose(result.bboxes, expected.bboxes, atol=1e-2)
            assert torch.allclose(result.scores, expected.scores, atol=1e-3)
            found += len(expected)
    assert found > 0


def test_resume_goes_on(workplace):
    arguments = ('--work-dir', 'resumed', '--resume', 'run/epoch_1.pth', '--cfg-options', 'train_cfg.max_epochs=2')
    output = run(ROOT / 'tools/train.py', 'w2a4.py', *arguments, cwd=workplace)
    assert 'resumed epoch: 1' in output
    assert (workplace / 'resumed/epoch_2.pth').is_file()


ERRORS = {
    'missing data': (
        ('tools/train.py', 'w2a4.py', '--cfg-options', 'train_dataloader.dataset.data_root=nowhere/'),
        ('train_dataloader.dataset', 'nowhere', '--cfg-options', 'digits_w2a4.py', 'make_digits.py'),
    ),
    'missing checkpoint': (('tools/test.py', 'w2a4.py', 'none.pth'), ('none.pth', 'does not exist')),
    'missing config': (('tools/test.py', 'none.py', 'none.pth'), ('none.py', 'does not exist')),
    'truncated checkpoint': (('tools/test.py', 'w2a4.py', 'cut.pth'), ('cut.pth', 'cut off')),
    'truncated start': (
        ('tools/train.py', 'w2a4.py', '--cfg-options', 'load_from=cut.pth'),
        ('cut.pth', 'cut off'),
    ),
    'misspelled key': (
        ('tools/train.py', 'misspelled.py', '--work-dir', 'e1'),
        ("unknown key 'bitz'", "'bits'"),
    ),
    'rule without a match': (
        ('tools/train.py', 'norule.py', '--work-dir', 'e2'),
        ('rules[0]', "'nek'", 'matches no layer'),
    ),
    'group size of zero': (('tools/train.py', 'group.py', '--work-dir', 'e3'), ('group_size=0', '1 or more')),
    'one bit': (('tools/train.py', 'bits1.py', '--work-dir', 'e4'), ('bits=1', '2 to 8')),
    'nine bits': (('tools/train.py', 'bits9.py', '--work-dir', 'e5'), ('bits=9', '2 to 8')),
    'quantized checkpoint, float config': (
        ('tools/test.py', 'float.py', 'run/epoch_1.pth', '--work-dir', 'e6'),
        ('quantized model', 'with a Runner, use the config it was trained with'),
    ),
    'other bits': (
        ('tools/test.py', 'other.py', 'run/epoch_1.pth', '--work-dir', 'e7'),
        ('bits=2', 'bits=4', 'weight_quantizer'),
    ),
    'folder that was not deployed': (('tools/test.py', 'w2a4.py', 'digits'), ('digits', 'tools/deploy.py')),
    'output that is something else': (
        ('tools/deploy.py', 'w2a4.py', 'run/epoch_1.pth', '--out', 'digits', '--work-dir', 'e8'),
        ('digits', 'not replaced'),
    ),
}

HOOKS = {
    'misspelled': 'weight=dict(bitz=2)',
    'norule': "rules=[dict(pattern='nek', skip=True)]",
    'group': 'weight=dict(group_size=0)',
    'bits1': 'weight=dict(bits=1)',
    'bits9': 'activation=dict(bits=9)',
    'other': 'weight=dict(bits=4)',
}


@pytest.mark.parametrize('case', ERRORS)
def test_bad_input_gets_one_clear_error(workplace, case):
    whole = (workplace / 'run/epoch_1.pth').read_bytes()
    (workplace / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    for name, settings in HOOKS.items():
        text = f"_base_ = './w2a4.py'\ncustom_hooks = [dict(type='mmgdrq.GDRQHook', {settings})]\n"
        (workplace / f'{name}.py').write_text(text)
    command, expected = ERRORS[case]
    output = run(ROOT / command[0], *command[1:], cwd=workplace, status=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'Traceback' not in output
    for part in expected:
        assert part in last, last


DOWNLOADED = {
    'by default': ({}, True),
    'asked for': (dict(download=True), True),
    'in a scope': (dict(type='mmpretrain.CIFAR100'), True),
    'in a wrapper': (
        dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(type='MNIST', data_root='no')),
        True,
    ),
    'refused': (dict(download=False), False),
    'of a class that cannot': (dict(type='ImageNet'), False),
    'of no class': (dict(type='NoSuchDataset'), False),
}


@pytest.mark.parametrize('case', DOWNLOADED)
def test_data_that_the_data_set_downloads_need_not_be_there(case):
    settings, accepted = DOWNLOADED[case]
    cfg = Config.fromfile(ROOT / 'configs/gdrq/resnet18_cifar10_w2a4.py')
    cfg.merge_from_dict(dict(train_dataloader=dict(dataset=dict(data_root='no/such/folder/', **settings))))
    if accepted:
        check_data(cfg, 'train')
    else:
        with pytest.raises(ConfigError, match=r'train_dataloader\.dataset: its data is expected at'):
            check_data(cfg, 'train')


SEGMENTOR = """
_base_ = '{root}/configs/gdrq/fcn_r18_digits_w2a4.py'
load_from = None
data = '{data}/'
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(data_root=data))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data))
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""


def test_a_segmentor_is_trained_deployed_and_evaluated(workplace):
    """Its metrics are numpy numbers, which json does not know."""
    (workplace / 'fcn.py').write_text(SEGMENTOR.format(root=ROOT, data=workplace / 'digits'))
    run(ROOT / 'tools/train.py', 'fcn.py', '--work-dir', 'fcn', cwd=workplace)
    options = ('--out', 'fcn_folded', '--rounds', '0', '--evaluate', '--export', 'openvino', '--work-dir', 'fcn')
    run(ROOT / 'tools/deploy.py', 'fcn.py', 'fcn/epoch_1.pth', *options, cwd=workplace)
    found = json.loads((workplace / 'fcn_folded/report.json').read_text())['metrics']
    assert list(found) == ['quantized', 'folded', 'openvino']
    tested = metrics_of(workplace, 'fcn_folded', 'fcn.py', ('--show-dir', 'pictures'))
    assert len(list((workplace / 'pictures').rglob('*.png'))) == 6
    assert tested == pytest.approx(found['folded'])
    assert tested == pytest.approx(found['quantized'], abs=0.1)
