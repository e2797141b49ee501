"""Two ranks, started by tools/dist_train.sh and tools/slurm_train.sh, and a resume with another number of them.

Batches of the same images: one rank takes four, each of two ranks takes two of them.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

import mmgdrq
from mmgdrq.errors import QuantizationError
from tests.helpers.toy import BATCH, toy_config

from . import ranks

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, ITERS = 4, 3
START = 2  # epoch after which another number of ranks goes on
DIST = dict(
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None),
)
SRUN = """#!/bin/bash
# stands for Slurm: starts two tasks of the command that follows srun's options
while [ "${1#-}" != "$1" ]; do [ "$1" = -p ] && shift; shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=here
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!
"""


def config_of(folder: Path, name: str, count: int, epochs: int = EPOCHS) -> Path:
    """Config file of a training on ``count`` ranks."""
    config = toy_config(
        folder / name,
        epochs,
        dict(weight=dict(bits=4), activation=dict(bits=8)),
        model=dict(type='PlainModel'),
        custom_imports=dict(imports=['tests.reliability.ranks']),
        experiment_name=name,
        **(DIST if count > 1 else {}),
    )
    config.train_dataloader.batch_size = BATCH // count
    config.custom_hooks = [*config.custom_hooks, dict(type='RankJournal', path=str(folder / f'{name}.log'))]
    config.dump(folder / f'{name}.py')
    return folder / f'{name}.py'


def run(command: list, folder: Path) -> None:
    """Run a launcher that finds this Python and the stand-ins of Slurm."""
    for name, text in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho 127.0.0.1\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f'{folder}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    environment = {**os.environ, 'PATH': path, 'PYTHONPATH': str(ROOT), 'PORT': free_port(), 'MASTER_PORT': free_port()}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def losses(folder: Path, name: str, count: int) -> list[float]:
    """Of every iteration, the mean over the ranks."""
    rows = [map(float, (folder / f'{name}.log.{rank}').read_text().split()) for rank in range(count)]
    return [sum(row) / count for row in zip(*rows)]


def ranges(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Thresholds in the last checkpoint."""
    state = torch.load(folder / name / f'epoch_{EPOCHS}.pth', weights_only=False)['state_dict']
    return {key: value for key, value in state.items() if key.endswith('threshold')}


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """Trainings: ``one`` and ``two`` ranks, and ``one_two`` and ``two_one`` that go on from them."""
    folder = tmp_path_factory.mktemp('ranks')
    dist_train = ROOT / 'tools/dist_train.sh'
    one, two = (folder / name / f'epoch_{START}.pth' for name in ('one', 'two'))
    Runner.from_cfg(Config.fromfile(config_of(folder, 'one', 1))).train()
    run(['bash', dist_train, config_of(folder, 'one_two', 2), 2, '--resume', one], folder)
    run(['bash', dist_train, config_of(folder, 'two', 2), 2], folder)
    resumed = Config.fromfile(config_of(folder, 'two_one', 1))
    resumed.update(resume=True, load_from=str(two))
    Runner.from_cfg(resumed).train()
    return folder


@pytest.mark.parametrize(('name', 'count'), [('one', 1), ('two', 2)])
def test_a_resume_with_another_number_of_ranks_goes_on(runs, name, count):
    """The losses and ranges are those of a training whose number of ranks did not change."""
    other, other_count = ('one_two', 2) if name == 'one' else ('two_one', 1)
    whole, resumed = losses(runs, name, count), losses(runs, other, other_count)
    assert len(whole) == EPOCHS * ITERS
    assert resumed == pytest.approx(whole[START * ITERS :], rel=1e-4)
    wanted, found = ranges(runs, name), ranges(runs, other)
    assert len(wanted) == len(found) == 3
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=0)


def test_slurm_starts_the_same_training(runs):
    """A stand-in for srun starts the tasks; two ranks of torchrun have the same losses, bit for bit."""
    config = config_of(runs, 'slurm', 2, epochs=1)
    run(['bash', ROOT / 'tools/slurm_train.sh', 'partition', 'job', config], runs)
    assert losses(runs, 'slurm', 2) == losses(runs, 'two', 2)[:ITERS]


# ------------------------------------------------------------------ sharding


def sharded(rank: int, port: str, folder: str) -> None:
    """FlexibleRunner with mmengine's FSDPStrategy, on a CPU, and a model that the builder has made."""
    variables = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    os.environ.update({key: str(value) for key, value in variables.items()})
    quant = dict(weight=dict(bits=2), activation=dict(bits=4))
    config = toy_config(
        folder,
        1,
        None,
        model=dict(type='mmgdrq.Quantized', base_type='PlainModel', quant=quant),
        strategy=dict(type='FSDPStrategy', model_wrapper=dict(type='MMFullyShardedDataParallel', device_id='cpu')),
        launcher='pytorch',
        env_cfg=DIST['env_cfg'],
    )
    with pytest.raises(QuantizationError) as caught:
        FlexibleRunner.from_cfg(config).train()
    Path(folder, 'error').write_text(str(caught.value))


def test_the_builder_refuses_fsdp_of_the_flexible_runner(tmp_path):
    mp.spawn(sharded, (free_port(), str(tmp_path)), nprocs=1)
    error = (tmp_path / 'error').read_text()
    assert error.startswith('conv1: its weight would be taken out')
    assert 'FullyShardedDataParallel' in error


def test_a_weight_stays_where_it_is():
    layer = mmgdrq.quantize(ranks.PlainModel()).conv2
    with pytest.raises(QuantizationError, match='conv2: its weight would be taken out of the layer'):
        del layer.weight
    assert layer.weight is layer.stored_weight()
