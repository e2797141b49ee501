"""Files and directories behind links, and directories that cannot be replaced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded
from mmgdrq.deploy.folding.artifact import check_out
from mmgdrq.errors import CheckpointError
from mmgdrq.files import cannot_be_replaced, partial_name, real_path, write_file

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def net():
    net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3))).train()
    net(torch.rand(1, 3, 6, 6))
    return net.eval()


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / 'old.json').write_text('1', encoding='utf-8')
    (tmp_path / 'latest.json').symlink_to('old.json')
    write_file(tmp_path / 'latest.json', '2')
    assert (tmp_path / 'latest.json').is_symlink()
    assert (tmp_path / 'old.json').read_text(encoding='utf-8') == '2'


@pytest.mark.parametrize('present', [True, False], ids=['a model', 'nothing yet'])
def test_a_link_to_a_directory_stays_one(tmp_path, net, present):
    """Its target is replaced, as often as one likes, and nothing is left beside either."""
    target, link = tmp_path / 'models/v1', tmp_path / 'latest'
    link.symlink_to(target)
    if present:
        save_folded(mmgdrq.fold(net), target, 'a = 1\n')
    target.parent.mkdir(exist_ok=True)
    stale = partial_name(target).name.replace(str(os.getpid()), '999999999')
    (target.parent / stale).symlink_to(tmp_path)  # what an earlier version left behind
    for number in (2, 3):
        save_folded(mmgdrq.fold(net), link, f'a = {number}\n')
        assert link.is_symlink()
        assert (target / 'config.py').read_text(encoding='utf-8') == f'a = {number}\n'
    load_folded(mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3))), link)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['latest', 'models']
    assert [path.name for path in target.parent.iterdir()] == ['v1']


@pytest.mark.parametrize('out', ['.', '..', '../run', 'link'])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, net, out):
    """It would be gone for the shell that stands in it."""
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'link').symlink_to(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(CheckpointError, match=r'is the current folder, or holds it.* Choose a folder in it'):
        save_folded(mmgdrq.fold(net), out)
    assert os.listdir(folder) == ['link']
    save_folded(mmgdrq.fold(net), 'model')
    assert (folder / 'model/manifest.json').is_file()


@pytest.mark.skipif(not os.path.ismount('/proc'), reason='/proc is no mount point here')
def test_a_mount_point_is_refused_before_the_work():
    with pytest.raises(CheckpointError, match=r'/proc: is a mount point.* such as /proc/model'):
        check_out('/proc')


def test_a_folder_mounted_from_the_same_file_system(tmp_path):
    """It is on the same device as the folder around it; its name has a space."""
    (tmp_path / 'source').mkdir()
    (tmp_path / 'a volume').mkdir()
    code = 'import sys; from mmgdrq.files import cannot_be_replaced; print(cannot_be_replaced(sys.argv[1]))'
    commands = f'mount --bind source "a volume" && "{sys.executable}" -W ignore -c "{code}" "a volume"'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    mounted = subprocess.run(
        ['unshare', '-rm', 'sh', '-c', commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if 'is a mount point' not in mounted.stdout and ('ermi' in mounted.stderr or 'unshare' in mounted.stderr):
        pytest.skip('nothing may be mounted here')
    assert mounted.stdout.strip() == 'is a mount point', mounted.stderr
    assert cannot_be_replaced(tmp_path / 'a volume') == ''


def test_real_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert real_path('.') == Path(os.path.realpath(tmp_path))
    assert real_path('none/../other').name == 'other'
