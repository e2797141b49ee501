"""Loading the compiled functions, whatever lies where they should be."""

import shutil
import subprocess

import pytest
import torch

from mmgdrq.kernels import cpu as native


def test_nothing_built_is_no_matter(tmp_path, recwarn):
    assert native._load(tmp_path) is None
    assert not recwarn


def test_a_file_of_another_machine_is_reported(tmp_path):
    (tmp_path / '_kernels.so').write_bytes(b'not a library')
    with pytest.warns(UserWarning, match='Install mmgdrq again'):
        assert native._load(tmp_path) is None


@pytest.mark.skipif(shutil.which('gcc') is None, reason='needs gcc')
def test_a_library_of_another_version_is_reported(tmp_path):
    (tmp_path / 'old.c').write_text('void mmgdrq_encode(void) {}')
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', '_kernels.so', 'old.c'], cwd=tmp_path, check=True)
    with pytest.warns(UserWarning, match=r'undefined symbol: mmgdrq_statistic.*Install mmgdrq again'):
        assert native._load(tmp_path) is None


@pytest.mark.skipif(shutil.which('gcc') is None, reason='needs gcc')
def test_a_library_whose_means_count_zeros_is_reported(tmp_path):
    names = [name for name in native._SIGNATURES if name != 'sum_and_count_rows'] + ['sum_rows']
    (tmp_path / 'old.c').write_text(''.join(f'void mmgdrq_{name}(void) {{}}\n' for name in names))
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', '_kernels.so', 'old.c'], cwd=tmp_path, check=True)
    with pytest.warns(UserWarning, match=r'undefined symbol: mmgdrq_sum_and_count_rows.*Install mmgdrq again'):
        assert native._load(tmp_path) is None


@pytest.mark.skipif(not native.built(), reason='kernels are not built')
def test_a_tensor_in_place_of_a_number_is_an_error():
    grad, stored = torch.ones(4), torch.ones(4, dtype=torch.uint8)
    with pytest.raises(TypeError, match='expects a number'):
        native._call('mask', grad, stored, torch.tensor(4), 0)
