"""The accuracy benchmark runs on a few made-up images, keeps what is finished and renders what it kept."""

import importlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / 'benchmarks/accuracy'
MODULES = (
    'cifar',
    'resnet20_cifar10',
    'openmmlab',
    'peers',
    'projection',
    'render',
    'render_distributions',
    'tables',
    'rows',
    'run',
    'store',
    'detection_bccd',
)


@pytest.fixture
def benchmark(monkeypatch):
    """Import a module of the benchmark; it is forgotten afterwards, since its names are common ones."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path, benchmark) -> Path:
    """An archive of a few images, and random float weights."""
    folder = tmp_path / 'data'
    folder.mkdir()
    cifar = benchmark('cifar')
    rng = np.random.default_rng(0)
    (folder / 'cifar-10-batches-bin').mkdir()
    for name in (*cifar.BATCHES['train'], *cifar.BATCHES['test']):
        rows = rng.integers(0, 256, (20, 3073), np.uint8)
        rows[:, 0] %= 10
        rows.tofile(folder / 'cifar-10-batches-bin' / name)
    state = {f'module.{key}': value for key, value in cifar.resnet20().state_dict().items()}
    torch.save(dict(state_dict=state), folder / cifar.WEIGHTS)
    return folder


def run_cli(benchmark, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, 'argv', ['run.py', *map(str, arguments)])
    benchmark('run').main()


@pytest.fixture
def short(benchmark, monkeypatch) -> list[str]:
    """Rows take two steps of four images; returns the names of the rows that were run."""
    task, done = benchmark('resnet20_cifar10'), []
    budget, full = task.Budget(steps=2, batch=4), task.run

    def run(row, *arguments):
        done.append(row.name)
        return full(row, *arguments, budget=budget)

    monkeypatch.setattr(task, 'run', run)
    return done


def test_finished_runs_are_kept_and_rendered(benchmark, short, data, tmp_path, monkeypatch):
    results = tmp_path / 'results'
    options = ('resnet20_cifar10', '--data', data, '--work', tmp_path / 'work', '--results', results)
    run_cli(benchmark, monkeypatch, *options, '--rows', 'float,reshape-w2a4,lsq-w2a4')
    run_cli(benchmark, monkeypatch, *options, '--rows', 'float,reshape-w2a4,gdrq-w2a4,learned-distill-w2a4')
    assert short == ['float', 'reshape-w2a4', 'lsq-w2a4', 'gdrq-w2a4', 'learned-distill-w2a4']
    files = sorted(results.rglob('*'))
    assert [f.name for f in files if f.is_file()] == [f'{name}-s0.json' for name in sorted(short)]
    record = json.loads((results / 'resnet20_cifar10/gdrq-w2a4-s0.json').read_text())
    assert 0 <= record['top-1'] <= 100
    assert {'date', 'machine', 'commit', 'budget'} <= set(record)
    page = benchmark('render').section('resnet20_cifar10', 'Title', 'top-1', results)
    assert f'| gdrq-w2a4 | {record["top-1"]:.2f} |' in page
    assert 'Fewer than 3 seeds' in page
    assert 'minmax-w2a4' in page.split('Not measured:')[1]


def test_images_in_columns_are_read_as_the_binary_ones(benchmark, tmp_path):
    cifar, rng = benchmark('cifar'), np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
    (tmp_path / 'cifar10').mkdir()
    with zipfile.ZipFile(tmp_path / 'cifar10/cifar10_test.zip', 'w') as bundle:
        for name, part in (('a.png', images[:10]), ('b.png', images[10:])):
            content = io.BytesIO()
            Image.fromarray(part.reshape(-1, 32, 3)).save(content, 'PNG')
            bundle.writestr(name, content.getvalue())
        content = io.BytesIO()
        np.save(content, np.arange(20, dtype=np.uint8))
        bundle.writestr('labels.npy', content.getvalue())
    found, labels = cifar.load_split(tmp_path, 'test')
    assert np.array_equal(found.numpy(), images.transpose(0, 3, 1, 2))
    assert labels.tolist() == list(range(20))


def test_different_budgets_are_not_mixed(benchmark, tmp_path):
    store = benchmark('store')
    for seed, budget in enumerate(('3 epochs', '9 epochs')):
        store.save('detection', 'float', seed, {'AP': 50.0, 'budget': budget}, tmp_path)
    with pytest.raises(ValueError, match='3 epochs; 9 epochs'):
        benchmark('render').section('detection', 'Title', 'AP', tmp_path)


def test_run_that_fails_leaves_no_result(benchmark, data, tmp_path, monkeypatch):
    task = benchmark('resnet20_cifar10')
    monkeypatch.setattr(task, 'accuracy', lambda *_: 1 / 0)
    monkeypatch.setattr(task.Trainer, 'train', lambda *_, **__: 0.0)
    options = ('resnet20_cifar10', '--data', data, '--work', tmp_path / 'work', '--results', tmp_path / 'results')
    with pytest.raises(ZeroDivisionError):
        run_cli(benchmark, monkeypatch, *options, '--rows', 'float')
    assert not list((tmp_path / 'results').rglob('*.json'))


def test_narrow_clipping_alone_shrinks_weights(benchmark, data):
    last = {k: benchmark('projection').project(data / benchmark('cifar').WEIGHTS, k)[-1]['kept'] for k in (1.0, 4.0)}
    assert last[1.0] < 0.05
    assert last[4.0] > 0.95


def test_unknown_row_is_an_error(benchmark):
    with pytest.raises(ValueError, match='no row matches'):
        benchmark('rows').select('gdrq-w3a4')


def test_spread_and_verdict(benchmark):
    render = benchmark('render')
    values = {row.name: {} for row in benchmark('rows').ROWS}
    for name, runs in {'float': (88, 89, 90), 'gdrq-w2a4': (88, 88.5, 89), 'lsq-w2a4': (89, 89, 89)}.items():
        values[name] = dict(enumerate(runs))
    text = render.verdict(values)
    assert 'loses 0.50 points' in text
    assert '**not reached**' not in text
    assert '0.50 points **below** lsq-w2a4' in text
    assert 'Fewer than' not in render.still_open(values, 'detection')
    assert 'brevitas' not in render.still_open(values, 'detection')
    assert 'brevitas-w2a4' in render.still_open(values, 'resnet20_cifar10')
    row = next(row for row in benchmark('rows').ROWS if row.name == 'float')
    assert render._row(row, values['float'], values['float'])[1:4] == ('89.00 ± 1.00', '', '3')
    assert render._row(row, values['gdrq-w2a4'], values['float'])[1:4] == ('88.50 ± 0.50', '-0.50 ± 0.29', '3')


def test_differences_are_those_of_the_same_seeds(benchmark):
    render = benchmark('render')
    changes = render.differences({0: 87.0, 2: 89.0}, {0: 88.0, 1: 70.0, 2: 89.5})
    assert changes == [-1.0, -0.5]
    assert render.change(changes) == '-0.75 ± 0.25'
    assert render.change(changes[:1]) == '-1.00'
    assert render.differences({3: 90.0}, {0: 88.0}) == []


def test_rules_are_compared_with_the_defaults_over_tasks(benchmark, tmp_path):
    render, store = benchmark('render'), benchmark('store')
    made = {
        'resnet20_cifar10': {'gdrq-w2a4': {0: 80.0, 1: 81.0}, 'k1-w2a4': {0: 81.0, 1: 81.5, 2: 90.0}},
        'resnet18_digits': {'gdrq-w2a4': {5: 70.0}, 'k1-w2a4': {5: 70.6}, 'layer-w2a4': {5: 71.0}, 'k4-w4a4': {5: 1.0}},
    }
    for task, rows in made.items():
        for row, values in rows.items():
            for seed, value in values.items():
                store.save(task, row, seed, {'top-1': value}, tmp_path)
    lines = render.against_defaults(tmp_path).splitlines()
    assert [line for line in lines if line.startswith('| k') or line.startswith('| l')] == [
        '| k1-w2a4 | k = 1 | +0.70 ± 0.15 | 3 | 2 |'
    ]


def test_cells_may_hold_bars(benchmark):
    assert benchmark('tables').table(('k', 'what'), [('1', 'mean|A|')]).splitlines()[-1] == '| 1 | mean\\|A\\| |'


def test_row_of_a_detector_takes_data_start_and_quantization(benchmark, tmp_path):
    experiment = benchmark('detection_bccd').EXPERIMENT
    row = benchmark('rows').select('reshape-w2a4')[0]
    config = experiment._row_config(row, 3, tmp_path, tmp_path / 'float.pth')
    config = Config.fromstring(config.pretty_text, '.py')
    assert config.train_dataloader.dataset.data_root == f'{tmp_path}/'
    assert config.test_evaluator.ann_file == f'{tmp_path}/test.json'
    assert config.load_from == str(tmp_path / 'float.pth')
    assert config.randomness.seed == 3
    assert config.model.type == 'mmgdrq.Quantized'
    assert config.model.base_type == 'FasterRCNN'
    assert config.model.quant.weight.bits == 2
    assert config.custom_hooks[0].stages == dict(reshape=0, quantize=3)
