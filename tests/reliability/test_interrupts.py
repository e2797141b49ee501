"""Kills and full disks at random moments; benchmarks/reliability does the same many more times."""

import os

import pytest

from mmgdrq.files import replace_directory, write_file

from .deploying import Deploying
from .faults import partials, small_file_system
from .scenarios import KINDS, MOUNTED, Packing, Training


@pytest.fixture(scope='module')
def training(tmp_path_factory) -> Training:
    return Training(tmp_path_factory.mktemp('training'), max_keep_ckpts=1)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    try:
        with small_file_system(tmp_path / 'disk', 16) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('moment', ['training', 'saving'])
@pytest.mark.parametrize('kind', ['SIGKILL', 'SIGTERM'])
def test_training_goes_on_as_if_nothing_had_happened(training, kind, moment):
    training.strike(kind, 1, moment)


def test_training_survives_writes_that_fail_in_the_middle(training):
    training.strike('file size limit', 2)


def test_training_survives_a_full_file_system(tmp_path, disk):
    Training(tmp_path, 0, disk, max_keep_ckpts=1).strike(MOUNTED, 2)


@pytest.mark.parametrize('kind', sorted({*KINDS} - {MOUNTED}))
def test_deployed_model_is_always_whole(tmp_path, kind):
    packing = Packing(tmp_path)
    packing.strike(kind, 4)
    assert packing.struck[kind, 'packing'] == 4
    packing.write(1)
    assert list(tmp_path.iterdir()) == [packing.out], 'the next write removes what the kills have left'
    packing.check()


def test_deployed_model_is_whole_on_a_full_file_system(disk):
    packing = Packing(disk)
    packing.strike(MOUNTED, 4)
    assert not partials(disk)


@pytest.fixture(scope='module')
def deploying(tmp_path_factory) -> Deploying:
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    return Deploying(tmp_path_factory.mktemp('deploying'))


@pytest.mark.parametrize(
    ('kind', 'moment'), [('SIGKILL', 'exporting'), ('SIGTERM', 'folding'), ('file size limit', 'exporting')]
)
def test_the_deploy_tool_leaves_the_earlier_model_or_the_new_one(deploying, kind, moment):
    deploying.strike(kind, 1, moment)


def test_the_faults_would_hurt_a_plain_writer(tmp_path):
    """The harness finds half-written files where there are some."""
    from .faults import Child

    def write() -> None:
        for _ in range(100):
            (tmp_path / 'plain').write_bytes(bytes(1 << 20))

    assert Child(write, file_size=1 << 19).wait() == 28
    assert 0 < (tmp_path / 'plain').stat().st_size < 1 << 20


# ------------------------------------------------------------------ files


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    write_file(path, 'old')

    def fail(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space'):
        write_file(path, 'new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('exchange', [True, False])
def test_a_directory_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr('mmgdrq.files._exchange', lambda *_: False)
    final = tmp_path / 'final'
    for text in ('one', 'two'):
        new = tmp_path / 'new'
        new.mkdir()
        (new / 'file').write_text(text)
        replace_directory(new, final)
        assert (final / 'file').read_text() == text
        assert list(tmp_path.iterdir()) == [final]


def test_what_another_process_is_writing_stays(tmp_path):
    path = tmp_path / 'file'
    write_file(path, 'old')
    from mmgdrq.files import _prefix

    running = tmp_path / f'{_prefix(path)}{os.getppid()}'
    running.write_text('half')
    write_file(path, 'new')
    assert running.read_text() == 'half'
    assert path.read_text() == 'new'
