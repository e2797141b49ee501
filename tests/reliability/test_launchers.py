"""The launchers' command lines, and wrappers that are refused."""

import os
import subprocess
from pathlib import Path

import pytest
from torch import nn

from mmgdrq.errors import ConfigError
from mmgdrq.openmmlab.wrappers import refuse_sharding

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def run(tool: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a launcher with a stand-in that prints how it was called."""
    for name in ('python', 'srun'):
        stand_in = folder / name
        stand_in.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        stand_in.chmod(0o755)
    path = f'{folder}:{os.environ["PATH"]}'
    command = ['bash', str(TOOLS / tool), *arguments]
    return subprocess.run(command, env={'PATH': path, **environment}, capture_output=True, text=True, check=False)


def test_dist_train(tmp_path):
    done = run('dist_train.sh', tmp_path, 'c.py', '2', '--amp', PORT='29501')
    words = done.stdout.split()
    assert '--nproc_per_node=2' in words
    assert '--master_port=29501' in words
    assert words[-4:] == ['c.py', '--launcher', 'pytorch', '--amp']
    assert words[-5].endswith('tools/train.py')


def test_slurm_train(tmp_path):
    done = run('slurm_train.sh', tmp_path, 'part', 'job', 'c.py', '--amp', GPUS='4', GPUS_PER_NODE='2')
    words = done.stdout.split()
    assert words[:4] == ['srun', '-p', 'part', '--job-name=job']
    assert {'--gres=gpu:2', '--ntasks=4', '--ntasks-per-node=2'} <= set(words)
    assert words[-4:] == ['c.py', '--launcher', 'slurm', '--amp']


@pytest.mark.parametrize(('tool', 'arguments'), [('dist_train.sh', ['c.py']), ('slurm_train.sh', ['part', 'job'])])
def test_missing_arguments_show_the_usage(tmp_path, tool, arguments):
    done = run(tool, tmp_path, *arguments)
    assert done.returncode == 2
    assert f'tools/{tool}' in done.stderr
    assert not done.stdout


def test_sharded_models_are_refused():
    """A wrapper that splits weights; torch's own needs a process group and a GPU to be made."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    refuse_sharding(model)
    model.wrapped = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(model.wrapped)
    with pytest.raises(ConfigError, match='FullyShardedDataParallel: it splits the weights'):
        refuse_sharding(model)
