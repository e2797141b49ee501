"""tools/calibrate.py makes a quantized checkpoint of a float one, which every other tool takes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

import mmgdrq
from mmgdrq.errors import CheckpointError, ConfigError
from mmgdrq.openmmlab.calibration_data import calibration_loader
from mmgdrq.openmmlab.commands import calibrate, test
from mmgdrq.openmmlab.commands.runners import build_runner
from tests.helpers.toy import ToyData, ToyModel, test_only, toy_config, toy_runner

ROOT = Path(__file__).resolve().parents[3]
W8A8 = dict(weight=dict(bits=8, range='search'), activation=dict(bits=8, range='minmax'))


@pytest.fixture
def float_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = ToyModel()
    model.train()(torch.randn(16, 3, 8, 8))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'float.pth')
    return tmp_path / 'float.pth'


def config_file(folder, name='config.py', **settings) -> str:
    file = folder / name
    toy_config(folder / 'run', **settings).dump(file)
    return str(file)


def calibrated(folder, checkpoint, *options, config=None, **settings) -> dict:
    config = config or config_file(folder, **settings)
    calibrate.main([config, str(checkpoint), '--out', str(folder / 'quantized.pth'), '--images', '7', *options])
    return torch.load(folder / 'quantized.pth', weights_only=True)['state_dict']


def images_of(loader) -> torch.Tensor:
    return torch.cat([batch['inputs'] for batch in loader])


def test_the_checkpoint_holds_the_ranges_of_the_chosen_images(tmp_path, float_checkpoint):
    state = calibrated(tmp_path, float_checkpoint, hook=W8A8)
    images = images_of(calibration_loader(toy_config(tmp_path), 'train', 7))
    assert len(images) == 7
    expected = ToyModel()
    expected.load_state_dict(torch.load(float_checkpoint)['state_dict'])
    mmgdrq.calibrate(expected, [images], progress=False, **W8A8)
    expected = expected.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=0)


def test_it_is_tested_trained_on_and_resumed(tmp_path, float_checkpoint):
    state = calibrated(tmp_path, float_checkpoint, hook=W8A8)
    file = str(tmp_path / 'quantized.pth')
    runner = build_runner(test_only(toy_config(tmp_path / 'test', hook=W8A8, load_from=file)))
    metrics = runner.test()
    model = mmgdrq.quantize(ToyModel(), **W8A8)
    model.load_state_dict(state)
    with torch.no_grad():
        logits = model.eval()(ToyData().images)
    assert metrics['toy/logits'] == pytest.approx(logits.double().abs().sum().item(), rel=1e-4)
    for resume in (False, True):
        runner = toy_runner(tmp_path / f'train{resume}', epochs=2, hook=W8A8, load_from=file, resume=resume)
        runner.train()
        assert runner.iter == 6, 'nothing is skipped'


def test_a_float_config_gets_a_config_that_quantizes(tmp_path, float_checkpoint, capsys):
    calibrated(tmp_path, float_checkpoint, '--bits', 'W4A8', custom_imports=dict(imports=['math']))
    assert 'quantized.pth goes with' in capsys.readouterr().out
    cfg = Config.fromfile(tmp_path / 'quantized.py')
    assert cfg.custom_imports['imports'] == ['math', 'mmgdrq']
    assert cfg.load_from is None if 'load_from' in cfg else True
    metrics = tmp_path / 'metrics.json'
    test.main([str(tmp_path / 'quantized.py'), str(tmp_path / 'quantized.pth'), '--metrics', str(metrics)])
    assert json.loads(metrics.read_text())['toy/logits'] > 0
    hook = cfg.custom_hooks[-1]
    assert (hook['weight']['bits'], hook['activation']['bits']) == (4, 8)


def test_the_builder_with_learned_ranges(tmp_path, float_checkpoint):
    quant = dict(weight=dict(bits=8, range='learned'), activation=dict(bits=8, range='learned'))
    state = calibrated(
        tmp_path, float_checkpoint, model=dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=quant)
    )
    assert state['conv1.activation_quantizer.threshold'].abs().sum() > 0
    assert state['conv1.weight_quantizer.alpha'].min() > 0


def test_a_config_with_stages_ends_quantized(tmp_path, float_checkpoint):
    state = calibrated(tmp_path, float_checkpoint, hook=dict(W8A8, stages=dict(reshape=1, quantize=2)))
    assert state['gdrq_stage'] == 3


def test_affine_inputs_and_reconstruction_by_options(tmp_path, float_checkpoint):
    options = ('--bits', 'W4A8', '--grid', 'affine', '--reconstruct', '--bias-correction')
    state = calibrated(tmp_path, float_checkpoint, *options)
    assert state['conv2.activation_quantizer.scale'] > 0
    before = torch.load(float_checkpoint)['state_dict']
    assert not torch.equal(state['conv2.weight'], before['conv2.weight'])
    assert not torch.equal(state['bn2.running_mean'], before['bn2.running_mean'])
    assert Config.fromfile(tmp_path / 'quantized.py').custom_hooks[-1]['activation']['grid'] == 'affine'


def test_the_report_is_written(tmp_path, float_checkpoint, capsys):
    calibrated(tmp_path, float_checkpoint, '--report', str(tmp_path / 'report.json'), hook=W8A8)
    data = json.loads((tmp_path / 'report.json').read_text())
    assert [layer['name'] for layer in data['layers']] == ['conv1', 'conv2', 'head']
    assert '3 of 3 weight layers quantized' in capsys.readouterr().out


def test_wrong_use_is_one_error(tmp_path, float_checkpoint):
    config, plain = config_file(tmp_path, hook=W8A8), config_file(tmp_path, 'plain.py')
    cases = [
        ([config, 'no.pth'], 'no.pth does not exist'),
        ([plain, str(float_checkpoint)], 'Say --bits W8A8'),
        ([plain, str(float_checkpoint), '--bits', '8'], 'expected bits of weights and activations'),
        ([plain, str(float_checkpoint), '--bits', 'W9A8'], 'bits=9 is not possible'),
        ([config, str(float_checkpoint), '--bits', 'W8A8'], 'Change it there'),
        ([config, str(float_checkpoint), '--images', '0'], 'expected 1 or more'),
        ([config, str(float_checkpoint), '--grid', 'affine'], 'it goes with --bits'),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            calibrate.main([*arguments, '--out', str(tmp_path / 'out.pth')])
    with pytest.raises(ConfigError, match='such as quantized'):
        calibrate.main([config, str(float_checkpoint), '--out', str(tmp_path)])
    assert not (tmp_path / 'out.pth').exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, float_checkpoint):
    state = torch.load(float_checkpoint)
    del state['state_dict']['conv2.weight']
    torch.save(state, float_checkpoint)
    with pytest.raises(CheckpointError, match='is in the model'):
        calibrated(tmp_path, float_checkpoint, hook=W8A8)


@DATASETS.register_module(force=True)
class Read(ToyData):
    """Knows the pipeline that it was made with."""

    def __init__(self, length: int = 12, pipeline=()) -> None:
        super().__init__(length)
        self.pipeline = pipeline


@DATASETS.register_module(force=True)
class Mixed(torch.utils.data.Dataset):
    """Wraps a data set, as MultiImageMixDataset of mmdet does."""

    def __init__(self, dataset, pipeline=()) -> None:
        raise AssertionError('wrappers are left out')


def with_datasets(tmp_path, **datasets) -> Config:
    cfg = toy_config(tmp_path)
    for split, dataset in datasets.items():
        cfg[f'{split}_dataloader'].dataset = dataset
    return cfg


def test_training_images_are_read_as_the_test_loop_reads(tmp_path):
    read = dict(type='Read', length=20, pipeline=['augment'])
    train = dict(type='Mixed', pipeline=['mosaic'], dataset=dict(type='RepeatDataset', times=3, dataset=read))
    cfg = with_datasets(tmp_path, train=train, test=dict(type='Read', pipeline=['plain']))
    loader = calibration_loader(cfg, 'train', 9)
    assert loader.dataset.dataset.pipeline == ['plain']
    assert [len(batch['inputs']) for batch in loader] == [4, 4, 1]
    assert cfg.train_dataloader.dataset.dataset.dataset.pipeline == ['augment'], 'the config is as it was'
    assert torch.equal(images_of(loader), images_of(calibration_loader(cfg, 'train', 9)))
    assert len(calibration_loader(cfg, 'train', 100).dataset) == 20


def test_joined_data_sets_are_each_read_so(tmp_path):
    (tmp_path / 'images').mkdir()
    image = np.zeros((8, 8, 3), np.uint8)
    for number in range(3):
        Image.fromarray(image).save(tmp_path / 'images' / f'{number}.png')
    part = dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path), data_prefix='images', with_label=False)
    plain = [dict(type='mmpretrain.LoadImageFromFile')]
    parts = [dict(part, pipeline=[dict(type='mmpretrain.PackInputs')], _scope_='mmpretrain') for _ in range(2)]
    cfg = with_datasets(tmp_path, train=dict(type='ConcatDataset', datasets=parts), test=dict(part, pipeline=plain))
    dataset = calibration_loader(cfg, 'train', 5).dataset.dataset
    assert len(dataset) == 6
    assert [len(inner.pipeline.transforms) for inner in dataset.datasets] == [1, 1]
    assert dataset[0]['img'].shape == (8, 8, 3)


def test_a_split_that_is_not_there_is_an_error(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.val_dataloader = None
    with pytest.raises(ConfigError, match='no val_dataloader'):
        calibration_loader(cfg, 'val', 4)
    cfg.test_dataloader = None
    with pytest.raises(ConfigError, match='neither test_dataloader nor val_dataloader'):
        calibration_loader(cfg, 'train', 4)


def test_a_digits_config_as_a_user_runs_it(tmp_path):
    def run(*arguments) -> str:
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    for split, digit in itertools.product(('train', 'test'), '0123456789'):
        folder = tmp_path / 'data/digits/crops' / split / digit
        folder.mkdir(parents=True)
        image = np.random.default_rng(int(digit)).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(image).save(folder / 'image.png')
    config = ROOT / 'configs/gdrq/resnet18_digits.py'
    init_default_scope('mmpretrain')
    torch.save(dict(state_dict=MODELS.build(Config.fromfile(config).model).state_dict()), tmp_path / 'float.pth')
    options = ('--images', '6', '--bits', 'W8A8', '--work-dir', 'run', '--cfg-options')
    options += ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    output = run(ROOT / 'tools/calibrate.py', config, 'float.pth', '--out', 'quantized.pth', *options)
    assert '21 of 21 weight layers quantized' in output
    output = run(ROOT / 'tools/test.py', 'quantized.py', 'quantized.pth', '--work-dir', 'run')
    assert 'accuracy/top1' in output


def test_the_float_config_and_checkpoint_are_not_replaced(tmp_path, float_checkpoint):
    config = config_file(tmp_path, hook=None)
    link = tmp_path / 'link.pth'
    link.symlink_to(float_checkpoint)
    before = Path(config).read_bytes(), float_checkpoint.read_bytes()
    for name, message in {
        'config.pth': 'would replace .*config.py, the float config',
        'float.pth': 'it is the float checkpoint',
        'link.pth': 'it is the float checkpoint',
    }.items():
        with pytest.raises(ConfigError, match=message):
            calibrate.main([config, str(float_checkpoint), '--bits', 'W8A8', '--out', str(tmp_path / name)])
    assert (Path(config).read_bytes(), float_checkpoint.read_bytes()) == before
