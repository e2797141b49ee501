"""Which checkpoint a resumed run takes, how it is saved, and that it fits the config."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmgdrq.errors import CheckpointError
from mmgdrq.openmmlab.commands.checkpoints import (
    check_checkpoint,
    resume_latest,
    save_whole_checkpoints,
    use_checkpoint,
)
from mmgdrq.openmmlab.commands.runners import add_hook
from mmgdrq.openmmlab.running.whole_files import WholeFilesBackend
from tests.helpers.toy import toy_config, toy_runner

SAFE = dict(type='mmgdrq.CheckpointHook', interval=1)


def work_dir(folder, *names, last=None, damaged=()):
    """A work directory with checkpoints, the later ones newer."""
    for number, name in enumerate(names):
        path = folder / name
        torch.save(dict(number=number), path)
        if name in damaged:
            path.write_bytes(path.read_bytes()[:-100])
        os.utime(path, (number + 1, number + 1))
    if last is not None:
        (folder / 'last_checkpoint').write_text(last and str(folder / last))
    return Config(dict(work_dir=str(folder), load_from='start.pth', resume=False))


@pytest.mark.parametrize(
    ('names', 'last', 'damaged', 'expected'),
    [
        (('epoch_1.pth', 'epoch_2.pth'), 'epoch_2.pth', (), 'epoch_2.pth'),
        (('epoch_1.pth', 'epoch_2.pth'), 'epoch_1.pth', (), 'epoch_1.pth'),
        (('epoch_1.pth', 'epoch_2.pth'), None, (), 'epoch_2.pth'),
        (('epoch_1.pth', 'epoch_2.pth'), '', (), 'epoch_2.pth'),
        (('epoch_1.pth', 'epoch_2.pth'), 'gone.pth', (), 'epoch_2.pth'),
        (('epoch_1.pth', 'epoch_2.pth'), 'epoch_2.pth', ('epoch_2.pth',), 'epoch_1.pth'),
        (('epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'), None, ('epoch_2.pth', 'epoch_3.pth'), 'epoch_1.pth'),
        (('iter_10.pth', 'iter_9.pth'), None, (), 'iter_9.pth'),
        (('epoch_1.pth', 'best_coco_epoch_1.pth', 'mine.pth'), None, (), 'epoch_1.pth'),
    ],
)
def test_the_latest_whole_checkpoint_is_resumed(tmp_path, names, last, damaged, expected):
    config = work_dir(tmp_path, *names, last=last, damaged=damaged)
    resume_latest(config)
    assert config.load_from == str(tmp_path / expected)
    assert config.resume is True


def test_a_first_start_with_resume_keeps_its_start_weights(tmp_path, capsys):
    config = work_dir(tmp_path)
    resume_latest(config)
    assert (config.resume, config.load_from) == (False, 'start.pth')
    assert 'starts from the beginning' in capsys.readouterr().out


def test_a_last_checkpoint_that_is_no_text(tmp_path):
    config = work_dir(tmp_path, 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_bytes(b'\xff\xfe\x00')
    resume_latest(config)
    assert config.load_from == str(tmp_path / 'epoch_1.pth')


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    config = work_dir(tmp_path, 'epoch_1.pth', damaged=('epoch_1.pth',))
    with pytest.raises(CheckpointError, match=r'epoch_1\.pth'):
        resume_latest(config)


@pytest.mark.parametrize(
    ('content', 'words'), [(b'', 'empty'), (b'PK\x03\x04half', 'cut off'), (b'<html>', 'is not a checkpoint')]
)
def test_a_file_that_is_no_checkpoint(tmp_path, content, words):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        check_checkpoint(str(tmp_path / 'x.pth'))


def test_a_checkpoint_of_the_old_format_is_accepted(tmp_path):
    torch.save(dict(w=torch.ones(1)), tmp_path / 'x.pth', _use_new_zipfile_serialization=False)
    check_checkpoint(str(tmp_path / 'x.pth'))


# ------------------------------------------------------------------ saving


@pytest.mark.parametrize(
    ('hooks', 'expected'),
    [
        (None, dict(type='mmgdrq.CheckpointHook', interval=1)),
        (dict(checkpoint=dict(type='CheckpointHook', interval=3)), dict(type='mmgdrq.CheckpointHook', interval=3)),
        (dict(checkpoint=None), None),
        (dict(checkpoint=dict(type='Mine')), dict(type='Mine')),
    ],
)
def test_the_tools_save_whole_checkpoints(hooks, expected):
    config = Config(dict(default_hooks=hooks))
    save_whole_checkpoints(config)
    assert config.default_hooks.checkpoint == expected


def test_the_outdated_checkpoints_go_after_the_new_one_is_there(tmp_path, monkeypatch):
    hook = dict(SAFE, max_keep_ckpts=1, save_best='toy/logits', rule='greater')
    train = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
    runner = toy_runner(tmp_path, 3, dict(), default_hooks=dict(checkpoint=hook), train_cfg=train)
    put, seen = WholeFilesBackend.put, []

    def look(self, obj, path):
        put(self, obj, path)
        seen.append({file.name for file in tmp_path.glob('*.pth')})

    monkeypatch.setattr(WholeFilesBackend, 'put', look)
    runner.train()
    assert {'epoch_1.pth', 'epoch_2.pth'} <= set().union(*seen)
    assert any({'epoch_1.pth', 'epoch_2.pth'} <= names for names in seen), 'there is always a whole one'
    left = sorted(file.name for file in tmp_path.glob('*.pth'))
    assert [name for name in left if name.startswith('epoch')] == ['epoch_3.pth']
    assert len(left) == 2, 'and the best one'
    best = torch.load(tmp_path / 'epoch_3.pth')['message_hub']['runtime_info']['best_ckpt']
    assert os.path.isfile(best)


def test_a_full_disk_keeps_the_outdated_checkpoint(tmp_path, monkeypatch):
    hook = dict(SAFE, max_keep_ckpts=1)
    runner = toy_runner(tmp_path, 2, dict(), default_hooks=dict(checkpoint=hook))
    put = WholeFilesBackend.put

    def fail(self, obj, path):
        if 'epoch_2' in str(path):
            raise OSError(28, 'No space left on device')
        put(self, obj, path)

    monkeypatch.setattr(WholeFilesBackend, 'put', fail)
    with pytest.raises(OSError, match='No space'):
        runner.train()
    assert [file.name for file in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')


def test_the_hook_saves_the_same_as_that_of_mmengine(tmp_path):
    states = []
    for name, hook in (('a', dict(type='CheckpointHook', interval=1)), ('b', SAFE)):
        toy_runner(tmp_path / name, 1, dict(), default_hooks=dict(checkpoint=hook)).train()
        states.append(torch.load(tmp_path / name / 'epoch_1.pth')['state_dict'])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ------------------------------------------------------------------ fit
# Other bits, groups, grids and rules are in tests/integration/test_lifecycle.py, quantized into float too.


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The checkpoint of a quantized toy model."""
    folder = tmp_path_factory.mktemp('fit')
    toy_runner(folder, 1, dict()).train()
    return folder / 'epoch_1.pth'


def edited(trained, folder, change):
    content = torch.load(trained)
    content['state_dict'] = change(content['state_dict'])
    torch.save(content, folder / 'edited.pth')
    return str(folder / 'edited.pth')


def renamed(state):
    return {key.replace('conv2', 'second'): value for key, value in state.items()}


MISFITS = {
    'renamed layer': (renamed, r'conv2\.activation_quantizer'),
    'missing range': (lambda s: {k: v for k, v in s.items() if k != 'head.activation_quantizer.threshold'}, 'head'),
    'extra range': (lambda s: {**s, 'x.activation_quantizer.threshold': torch.ones(())}, r'x\.activation_quantizer'),
    'missing weight': (lambda s: {k: v for k, v in s.items() if k != 'conv2.weight'}, r'conv2\.weight'),
    'extra weight': (lambda s: {**s, 'more.weight': torch.ones(1)}, r'more\.weight'),
    'other class count': (
        lambda s: {**s, 'head.weight': torch.zeros(9, 8), 'head.bias': torch.zeros(9)},
        r'head\.weight.*\(9, 8\).*\(4, 8\)',
    ),
    'range of another shape': (
        lambda s: {**s, 'head.activation_quantizer.threshold': torch.ones(3)},
        r'head\.activation_quantizer\.threshold',
    ),
    'range that is not finite': (
        lambda s: {**s, 'conv2.activation_quantizer.threshold': torch.tensor(float('nan'))},
        r'conv2\.activation_quantizer\.threshold is not finite',
    ),
    'weight that is not finite': (
        lambda s: {**s, 'conv2.weight': s['conv2.weight'] * float('inf')},
        r'conv2\.weight is not finite',
    ),
}


@pytest.mark.parametrize('kind', MISFITS)
def test_a_tool_never_evaluates_another_model_than_the_config_says(tmp_path, trained, kind):
    change, words = MISFITS[kind]
    config = toy_config(tmp_path / 'run', hook=dict())
    use_checkpoint(config, edited(trained, tmp_path, change))
    with pytest.raises(CheckpointError, match=words):
        Runner.from_cfg(config).test()


@pytest.mark.parametrize('kind', ['missing weight', 'other class count', 'extra weight'])
def test_resuming_needs_a_checkpoint_that_fits(tmp_path, trained, kind):
    change, words = MISFITS[kind]
    config = toy_config(tmp_path / 'run', 2, dict())
    config.resume, config.load_from = True, edited(trained, tmp_path, change)
    add_hook(config, type='mmgdrq.CheckpointFitHook', whole=True)
    with pytest.raises(CheckpointError, match=words):
        Runner.from_cfg(config).train()


def test_training_may_start_from_float_weights_of_another_head(tmp_path):
    """The documented conversion: a float checkpoint, whose head has other classes."""
    toy_runner(tmp_path / 'float').train()

    def more_classes(state):
        return {**state, 'head.weight': torch.zeros(9, 8), 'head.bias': torch.zeros(9)}

    config = toy_config(tmp_path / 'run', 1, dict())
    config.load_from = edited(tmp_path / 'float/epoch_1.pth', tmp_path, more_classes)
    add_hook(config, type='mmgdrq.CheckpointFitHook')
    Runner.from_cfg(config).train()


def test_whole_checkpoints_of_the_same_config_pass(tmp_path, trained):
    config = toy_config(tmp_path, hook=dict())
    use_checkpoint(config, str(trained))
    assert Runner.from_cfg(config).test()['toy/logits'] > 0
