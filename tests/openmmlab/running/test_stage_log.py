"""What the log of a run says about its stages."""

import pytest
from mmengine.runner import Runner

from mmgdrq.openmmlab.commands.deploy import deploy_runner
from tests.helpers.toy import log_of, toy_config, toy_runner
from tests.helpers.toy import test_only as only_test

ITERS = 3  # iterations an epoch


def trained(work_dir, epochs, stages, **changes):
    """A runner that was trained, with a validation after every epoch."""
    train = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
    runner = toy_runner(work_dir, epochs, dict(stages=stages), **{'train_cfg': train, **changes})
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('stages', 'unreached', 'last'),
    [
        (dict(reshape=0, quantize=2), ['quantize=2'], "in stage 'reshape' (nothing is rounded)"),
        (dict(quantize=0, quantize_activation=3), ['quantize_activation=3'], "'quantize_weight' (the inputs"),
        (dict(quantize=2, freeze=9), ['quantize=2', 'freeze=9'], "in stage 'float' (nothing is rounded)"),
        (dict(quantize=0, freeze=2), ['freeze=2'], "in stage 'quantize'. Let it begin earlier"),
        (dict(quantize=6, by_epoch=False), ['quantize=6'], 'ends after 6 iterations'),
        (dict(reshape=0, quantize=1), [], ''),
        (dict(reshape=0), [], ''),
        (dict(quantize=5, by_epoch=False), [], ''),
    ],
)
def test_stages_that_begin_when_the_training_is_over(tmp_path, stages, unreached, last):
    trained(tmp_path, 2, stages)
    log = log_of(tmp_path)
    assert log.count('is never reached') == len(unreached)
    for text in unreached:
        assert f'WARNING - mmgdrq: stages: {text} is never reached: the training ends after' in log
    assert last in log


def test_stages_of_a_training_by_iterations(tmp_path):
    train = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=100)
    trained(tmp_path / 'a', 1, dict(quantize=3, by_epoch=False), train_cfg=train)
    assert 'quantize=3 is never reached: the training ends after 3 iterations' in log_of(tmp_path / 'a')
    trained(tmp_path / 'b', 1, None, train_cfg=train)
    assert 'never reached' not in log_of(tmp_path / 'b')


@pytest.mark.parametrize(
    ('stages', 'stage'), [(None, 'quantize'), (dict(quantize=1), 'float'), (dict(reshape=0), 'reshape')]
)
def test_the_stage_at_the_start(tmp_path, stages, stage):
    trained(tmp_path, 1, stages)
    assert log_of(tmp_path).count(f"the training starts in stage '{stage}'") == 1


def test_the_stage_at_the_start_of_a_resumed_training(tmp_path):
    stages = dict(reshape=0, quantize=1)
    trained(tmp_path / 'a', 2, stages)
    trained(tmp_path / 'b', 3, stages, load_from=str(tmp_path / 'a/epoch_2.pth'), resume=True)
    assert log_of(tmp_path / 'b').count("the training starts in stage 'quantize'") == 1


def test_every_validation_that_does_not_round_says_so(tmp_path):
    trained(tmp_path, 5, dict(reshape=1, quantize=3, quantize_activation=4))
    log = log_of(tmp_path)
    assert log.count("evaluating in stage 'float': nothing is rounded") == 1
    assert log.count("evaluating in stage 'reshape': nothing is rounded") == 2
    assert log.count("evaluating in stage 'quantize_weight': the inputs of the layers are not rounded") == 1
    assert log.count('evaluating in stage') == 4


def test_a_test_that_does_not_round_says_so(tmp_path):
    stages = dict(reshape=0, quantize=1)
    trained(tmp_path / 'a', 2, stages)
    for epoch in (1, 2):
        checkpoint = str(tmp_path / f'a/epoch_{epoch}.pth')
        config = only_test(toy_config(tmp_path / f'{epoch}', hook=dict(stages=stages), load_from=checkpoint))
        Runner.from_cfg(config).test()
    assert log_of(tmp_path / '1').count("evaluating in stage 'reshape': nothing is rounded") == 1
    assert 'evaluating in' not in log_of(tmp_path / '2')


def test_a_deployed_model_has_no_stage(tmp_path):
    stages = dict(reshape=0, quantize=1)
    trained(tmp_path / 'a', 2, stages)
    hook = dict(stages=stages)
    config = only_test(toy_config(tmp_path / 'b', hook=hook, load_from=str(tmp_path / 'a/epoch_2.pth')))
    deploy_runner(Runner.from_cfg(config), str(tmp_path / 'deployed'))
    config = only_test(toy_config(tmp_path / 'c', hook=hook))
    config.custom_hooks.append(dict(type='mmgdrq.DeployedModelHook', path=str(tmp_path / 'deployed')))
    Runner.from_cfg(config).test()
    assert 'evaluating in' not in log_of(tmp_path / 'c')
