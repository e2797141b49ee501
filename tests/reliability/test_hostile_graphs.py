"""ONNX graphs of a stranger: swapped, altered, or reading files elsewhere."""

import hashlib
import json
import shutil

import pytest
import torch

import mmgdrq
from mmgdrq.deploy import fold, load_folded, plug_engine, save_folded
from mmgdrq.deploy.deployment import export
from mmgdrq.errors import CheckpointError, ExportError
from mmgdrq_runtime.engines import open_engine
from mmgdrq_runtime.manifest import json_sha256

from .deploying import ToyClassifier

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
ENGINES = ('onnxruntime', 'openvino')


def quantized():
    torch.manual_seed(0)
    return mmgdrq.quantize(ToyClassifier(), weight=dict(bits=4), activation=dict(bits=4)).train()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A deployed classifier with graphs for both engines, and its input."""
    net, x = quantized(), torch.rand(2, 3, 8, 8)
    net(x)
    folded = fold(net.eval(), x)

    def graphs(folder):
        entries = {}
        for engine in ENGINES:
            (folder / engine).mkdir()
            parts = export(folded, lambda model: model(x), folder / engine, 'openvino')
            entries[engine] = {part.part.name: part.entry() for part in parts}
        return entries

    return save_folded(folded, tmp_path_factory.mktemp('deployed') / 'model', graphs=graphs), x


@pytest.fixture(params=ENGINES)
def engine(request):
    pytest.importorskip(request.param, reason=f'{request.param} is not installed')
    return request.param


@pytest.fixture
def deployed(written, tmp_path):
    """A copy to alter."""
    return shutil.copytree(written[0], tmp_path / 'model'), written[1]


def put(path, engine: str, model) -> None:
    """Put another graph there, with a right checksum."""
    file = path / engine / 'dense.onnx'
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((path / 'manifest.json').read_text())
    manifest['graphs'][engine]['dense']['sha256'] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest['graphs_sha256'] = json_sha256(manifest['graphs'])
    (path / 'manifest.json').write_text(json.dumps(manifest))


def plugged(path, engine: str):
    return plug_engine(load_folded(quantized(), path), path, engine)


def graph_of(outputs: int, weight=None):
    """A graph that adds a weight to the input."""
    helper = onnx.helper
    nodes = [helper.make_node('Add', ['input', 'w'], [f'y{i}']) for i in range(outputs)]
    shape = [None, 3, None, None]
    values = [helper.make_tensor_value_info(name, 1, shape) for name in ('input', *(f'y{i}' for i in range(outputs)))]
    weight = weight or helper.make_tensor('w', 1, [1], [1.0])
    graph = helper.make_graph(nodes, 'g', values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def test_the_graph_as_it_was_written_runs(deployed, engine):
    path, x = deployed
    assert plugged(path, engine)(x).shape == (2, 4)


def test_a_swapped_graph_is_refused(deployed, engine):
    path, _ = deployed
    (path / engine / 'dense.onnx').write_bytes(graph_of(1).SerializeToString())
    with pytest.raises(CheckpointError, match='altered'):
        plugged(path, engine)


def test_a_graph_with_other_results_is_an_error(deployed, engine):
    path, x = deployed
    put(path, engine, graph_of(3))
    model = plugged(path, engine)
    with pytest.raises(CheckpointError, match='one has 3 results, the manifest says 1'):
        model(x)


@pytest.mark.parametrize('where', ['above', 'absolute', 'link'])
def test_a_graph_cannot_read_other_files(deployed, engine, tmp_path, where):
    """Its weights would lie in a file that the stranger chooses."""
    path, _ = deployed
    secret = tmp_path / 'secret'
    secret.write_bytes(bytes(4))
    place = {'above': '../../secret', 'absolute': str(secret), 'link': 'link'}[where]
    (path / engine / 'link').symlink_to(secret)
    weight = onnx.TensorProto(name='w', data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (('location', place), ('length', '4')):
        weight.external_data.add(key=key, value=value)
    put(path, engine, graph_of(1, weight))
    with pytest.raises(ExportError, match='does not accept this graph'):
        plugged(path, engine)


@pytest.mark.parametrize('content', [b'', b'\x08', b'\xff' * 1000, b'\x0a\xff\xff\xff\xff\x0f'])
def test_bytes_that_are_no_graph(tmp_path, engine, content):
    (tmp_path / 'x.onnx').write_bytes(content)
    with pytest.raises(ExportError):
        open_engine(engine, tmp_path / 'x.onnx')
