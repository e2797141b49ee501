"""Damaged and hostile deployed directories: one clear error, bounded memory, and never another model in silence."""

import contextlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmgdrq
from mmgdrq.deploy import load_folded, plug_engine, save_folded
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.folding.artifact import read_config
from mmgdrq.errors import CheckpointError, ExportError
from mmgdrq_runtime.manifest import MAX_BYTES, file_sha256, json_sha256
from tests.deploy.export.test_writer import Net, all_layers

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
ROOM = 512 << 20
"""Address space that a loader may take beyond what the process has, in bytes."""
CASES = 100
X = torch.rand(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def quantized():
    torch.manual_seed(0)
    return mmgdrq.quantize(Net(), rules=all_layers(3))


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """A deployed directory with a graph, and what its model computes."""
    model = quantized()
    for _ in range(2):
        model(X)
    folded = mmgdrq.fold(model.eval(), example=X)

    def graphs(folder):
        (folder / 'onnxruntime').mkdir()
        parts = export(folded, lambda m: m(X), folder / 'onnxruntime', 'onnxruntime')
        return {'onnxruntime': {part.part.name: part.entry() for part in parts}}

    path = save_folded(folded, tmp_path_factory.mktemp('fuzz') / 'model', 'model = dict(type="Net")\n', graphs)
    return path, folded(X)


@pytest.fixture
def path(original, tmp_path):
    return shutil.copytree(original[0], tmp_path / 'model')


@contextlib.contextmanager
def bounded(room: int):
    """Inside, the process may not take more than ``room`` bytes of address space."""
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def load(path, room=ROOM):
    """Everything that a user of the directory loads: config, packed weights, and the graph in its engine."""
    with bounded(room):
        read_config(path)
        return plug_engine(load_folded(quantized(), path), path, 'onnxruntime', threads=1)


def assert_refused(path, room=ROOM):
    with pytest.raises((CheckpointError, ExportError)):
        load(path, room)


def files_of(path):
    return [path / 'manifest.json', path / 'weights.safetensors', path / 'config.py', path / 'onnxruntime/dense.onnx']


def sign(path):
    """Make all checksums right, as someone who means harm would."""
    file = path / 'manifest.json'
    manifest = json.loads(file.read_text())
    manifest['sha256'] = file_sha256(path / 'weights.safetensors')
    if isinstance(manifest.get('graphs'), dict):
        with contextlib.suppress(KeyError, TypeError):
            manifest['graphs']['onnxruntime']['dense']['sha256'] = file_sha256(path / 'onnxruntime/dense.onnx')
    for part in ('layers', 'graphs'):
        if part in manifest:
            manifest[f'{part}_sha256'] = json_sha256(manifest[part])
    file.write_text(json.dumps(manifest))


def sections(content: bytes) -> list[int]:
    """Boundaries of a safetensors file: of its size, its header and every tensor."""
    size = struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    ends = {end for key, entry in header.items() if key != '__metadata__' for end in entry['data_offsets']}
    return [0, 8, *sorted(8 + size + end for end in ends)]


def test_the_undamaged_directory_loads(original, path):
    found = load(path)(X)
    assert (found - original[1]).abs().max() < 0.05 * original[1].abs().max()


@pytest.mark.parametrize('signed', [False, True], ids=['', 'right checksums'])
def test_weights_cut_off_at_every_section(path, signed):
    file = path / 'weights.safetensors'
    content = file.read_bytes()
    cuts = {cut + off for cut in sections(content) for off in (-1, 0, 1) if 0 <= cut + off < len(content)}
    assert len(cuts) > 30
    for cut in sorted(cuts):
        file.write_bytes(content[:cut])
        if signed:
            sign(path)
        assert_refused(path)


def test_every_file_cut_off_anywhere(path):
    for file in files_of(path):
        content = file.read_bytes()
        for cut in range(0, len(content), max(len(content) // 60, 1)):
            file.write_bytes(content[:cut])
            assert_refused(path)
        file.write_bytes(content)


@pytest.mark.parametrize('number', range(4), ids=['manifest', 'weights', 'config', 'graph'])
def test_every_file_with_a_flipped_bit_anywhere(path, number):
    file = files_of(path)[number]
    content = file.read_bytes()
    for place in range(0, len(content), max(len(content) // 250, 1)):
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert_refused(path)


HUGE = [2**31, 2**40, 2**63 - 1, 2**64 - 1, 10**30, -1]


@pytest.mark.parametrize('size', [8, 2**20, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header(path, size):
    file = path / 'weights.safetensors'
    file.write_bytes(struct.pack('<Q', size) + file.read_bytes()[8:])
    sign(path)
    assert_refused(path)


@pytest.mark.parametrize('value', HUGE, ids=str)
@pytest.mark.parametrize('key', ['shape', 'data_offsets'])
def test_huge_declared_tensors(path, key, value):
    file = path / 'weights.safetensors'
    content = file.read_bytes()
    size = struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for name, entry in header.items():
        changed = dict(entry, **{key: [*entry[key][:-1], value] if entry[key] else [value]})
        text = json.dumps({**header, name: changed}).encode()
        file.write_bytes(struct.pack('<Q', len(text)) + text + content[8 + size :])
        sign(path)
        assert_refused(path)


@pytest.mark.parametrize('name', ['manifest.json', 'weights.safetensors', 'config.py', 'onnxruntime/dense.onnx'])
def test_a_file_that_is_larger_than_the_memory(path, name):
    os.truncate(path / name, 4 * MAX_BYTES)  # sparse: it takes no room on disk
    assert_refused(path, room=2 * MAX_BYTES)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([*HUGE, 2, 3, 8, 9, 32])
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(['conv', 'linear', 'stored', 'norm', 'head', '../x', '__class__']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
LAYER_KEYS = ['kind', 'input', 'input_bits', 'scaled', 'offset', 'norm', 'weight_bits', 'weight_lowest', 'shape', 'x']


def changed_manifest(path, change):
    file = path / 'manifest.json'
    before = file.read_text()
    manifest = json.loads(before)
    change(manifest)
    file.write_text(json.dumps(manifest))
    sign(path)
    return before


@FAST
@given(layer=st.sampled_from(['conv', 'head', 'norm', 'x']), key=st.sampled_from(LAYER_KEYS), value=VALUES)
def test_any_value_in_a_layer(original, tmp_path_factory, layer, key, value):
    def change(manifest):
        manifest['layers'].setdefault(layer, {}).update({key: value})

    refused_or_the_same(copy_once(original[0], tmp_path_factory), change, original[1])


@FAST
@given(
    st.one_of(
        st.tuples(st.sampled_from(['layers', 'graphs', 'version', 'format', 'sha256', 'x']), VALUES),
        st.tuples(st.just('graph'), st.dictionaries(st.sampled_from(['file', 'tree', 'blocks', 'sha256']), VALUES)),
    )
)
def test_any_value_in_the_rest_of_the_manifest(original, tmp_path_factory, item):
    path = copy_once(original[0], tmp_path_factory)
    key, value = item

    def change(manifest):
        if key == 'graph':
            manifest['graphs']['onnxruntime']['dense'].update(value)
        else:
            manifest[key] = value

    refused_or_the_same(path, change, original[1])


_copies = {}


def copy_once(path, factory):
    if path not in _copies:
        _copies[path] = shutil.copytree(path, factory.mktemp('copy') / 'model')
    return _copies[path]


def refused_or_the_same(path, change, expected):
    """A hostile manifest is refused, or plays no part in what the model computes."""
    before = changed_manifest(path, change)
    try:
        found = load(path)(X)
    except (CheckpointError, ExportError):
        return
    finally:
        (path / 'manifest.json').write_text(before)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


ENGINE_RUN = """
import sys, resource
sys.path.insert(0, {root!r})
import numpy as np, onnx
from pathlib import Path
from mmgdrq_runtime.engines import open_engine
from mmgdrq.errors import ExportError
rng, x = np.random.default_rng({seed}), np.load({x!r})
content, file = Path({graph!r}).read_bytes(), Path({folder!r}, 'm.onnx')
open_engine({engine!r}, Path({graph!r}), 1)(x)
used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
def wild_bytes(case):
    data = bytearray(content)
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
        data[place] = rng.integers(256)
    return bytes(data[: rng.integers(len(data))] if case % 10 == 0 else data)

def huge_tensor(case):
    model = onnx.load_from_string(content)
    tensors = [node.attribute[0].t for node in model.graph.node if node.op_type == 'Constant']
    tensor = tensors[rng.integers(len(tensors))]
    dims = [int(rng.choice([2**31, 2**40, 2**62, -1, 0])) for _ in range(rng.integers(1, 4))]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    return model.SerializeToString()

for case in range({cases}):
    file.write_bytes((huge_tensor if case % 4 == 0 else wild_bytes)(case))
    try:
        open_engine({engine!r}, file, 1)(x)
        print('ran')
    except ExportError:
        print('refused')
    except Exception as error:
        print('failed', type(error).__name__)
"""


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_graphs_with_a_right_checksum_but_wild_bytes(path, tmp_path, engine):
    """Whoever signs a graph can make it compute anything, but the process lives on, in bounded memory."""
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    np.save(tmp_path / 'x.npy', X.numpy())
    script = ENGINE_RUN.format(
        root=str(Path(__file__).parents[2]),
        seed=0,
        x=str(tmp_path / 'x.npy'),
        graph=str(path / 'onnxruntime/dense.onnx'),
        folder=str(tmp_path),
        engine=engine,
        cases=CASES,
        room=4 * ROOM,
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = Counter(line.split()[0] for line in done.stdout.splitlines() if line.startswith(('ran', 'refu', 'fail')))
    assert counts.total() == CASES
    assert counts['refused'] > CASES / 2
