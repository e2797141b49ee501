"""Files that a manifest names."""

import pytest

from mmgdrq_runtime.errors import CheckpointError
from mmgdrq_runtime.manifest import file_sha256, graph_file


def test_a_graph_is_looked_for_in_the_folder_of_its_engine_only(tmp_path):
    (tmp_path / 'openvino').mkdir()
    for file in (tmp_path / 'dense.onnx', tmp_path / 'openvino' / 'dense.onnx'):
        file.write_bytes(b'a graph')
    entry = dict(file='../dense.onnx', sha256=file_sha256(tmp_path / 'dense.onnx'))
    assert graph_file(tmp_path, 'openvino', entry) == tmp_path / 'openvino' / 'dense.onnx'
    (tmp_path / 'openvino' / 'dense.onnx').write_bytes(b'another')
    with pytest.raises(CheckpointError, match='checksum'):
        graph_file(tmp_path, 'openvino', entry)


@pytest.mark.parametrize('entry', [{}, 'x', None, dict(file='dense.onnx'), dict(file=1, sha256='')], ids=str)
def test_an_entry_without_file_or_checksum(tmp_path, entry):
    with pytest.raises(CheckpointError, match=r'lacks file or sha256 of a graph for openvino.*Write it again'):
        graph_file(tmp_path, 'openvino', entry)
