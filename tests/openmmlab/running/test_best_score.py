"""The best checkpoint is one of the last stage that was evaluated."""

import pytest
import torch

from mmgdrq.quantized_model.stages import STAGES
from tests.helpers.toy import log_of, toy_runner

STAGES_OF_RUN = dict(reshape=0, quantize=2)
BEST_IS_FIRST = 'less'
"""The toy metric, the sum of |logits|, grows while the model is trained."""


def runner_of(work_dir, epochs=4, best='toy/logits', stages=STAGES_OF_RUN, hooks=(), **changes):
    """A runner that validates and saves after every epoch, and keeps the best checkpoint."""
    saving = dict(type='mmgdrq.CheckpointHook', interval=1, save_best=best, rule=BEST_IS_FIRST)
    metrics = [dict(type='ToyMetric'), dict(type='ToyMetric', prefix='second')]
    settings = dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1),
        default_hooks=dict(checkpoint=saving),
        val_evaluator=metrics,
        custom_hooks=[dict(type='mmgdrq.GDRQHook', stages=stages), *hooks],
    )
    return toy_runner(work_dir, epochs, None, **{**settings, **changes})


def best_of(work_dir) -> list[str]:
    return sorted(path.name for path in work_dir.glob('best_*.pth'))


def stage_of(path) -> str:
    return STAGES[int(torch.load(path)['state_dict']['gdrq_stage'])]


@pytest.mark.parametrize(
    ('best', 'files'),
    [
        ('auto', ['best_toy_logits_epoch_3.pth']),
        (['toy/logits', 'second/logits'], ['best_second_logits_epoch_3.pth', 'best_toy_logits_epoch_3.pth']),
    ],
    ids=['one metric', 'two metrics'],
)
def test_the_best_checkpoint_is_one_of_the_new_stage(tmp_path, best, files):
    runner_of(tmp_path, best=best).train()
    assert best_of(tmp_path) == files
    assert {stage_of(tmp_path / name) for name in files} == {'quantize'}
    assert log_of(tmp_path).count("is of stage 'reshape', which is over") == len(files)


def test_without_a_new_stage_the_best_one_stays(tmp_path):
    runner_of(tmp_path, stages=None).train()
    assert best_of(tmp_path) == ['best_toy_logits_epoch_1.pth']
    assert 'which is over' not in log_of(tmp_path)


@pytest.mark.parametrize('epoch', [1, 2, 3, 4])
def test_a_resumed_training_forgets_what_an_uninterrupted_one_would(tmp_path, epoch):
    """Epoch 2 is the last one before the new stage; 3 and 4 belong to it, so their best one stays the best."""
    runner_of(tmp_path, epochs=epoch).train()
    before = best_of(tmp_path)
    checkpoint = str(tmp_path / f'epoch_{epoch}.pth')
    runner_of(tmp_path, epochs=5, load_from=checkpoint, resume=True).train()
    assert before == [f'best_toy_logits_epoch_{1 if epoch < 3 else 3}.pth']
    assert best_of(tmp_path) == ['best_toy_logits_epoch_3.pth']
    assert log_of(tmp_path).count('which is over') == 1


def test_early_stopping_begins_anew(tmp_path):
    stopping = dict(type='EarlyStoppingHook', monitor='toy/logits', rule=BEST_IS_FIRST, patience=2)
    runner = runner_of(tmp_path, epochs=8, hooks=[stopping])
    runner.train()
    assert runner.epoch == 5, 'the first evaluation of the stage, and two that are no better'
