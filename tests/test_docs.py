"""What docs/usage.md and docs/semantics.md say about keys is what the code takes, and their configs work."""

import importlib
import importlib.util
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmgdrq
from mmgdrq import GDRQHook
from mmgdrq.analysis.distances import gap_to_uniform
from mmgdrq.deploy.engines import base
from mmgdrq.openmmlab.builder import QUANT_KEYS
from mmgdrq.openmmlab.commands.plan import plan_of
from mmgdrq.quant import ActivationSpec, WeightSpec, quantized_loss, search_range
from mmgdrq.quant.ranges import registry
from mmgdrq.quantized_model.execution import Execution
from mmgdrq.training.distillation import Distillation
from mmgdrq.training.schedule import Schedule

ROOT = Path(__file__).resolve().parent.parent
USAGE = (ROOT / 'docs/usage.md').read_text()
SEMANTICS = (ROOT / 'docs/semantics.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', USAGE, re.DOTALL)
CONFIGS = [block for block in BLOCKS if block.startswith('_base_')]


def rows(text: str, head: str) -> dict[str, list[str]]:
    """The table whose head begins with ``head``: key -> the cells behind it."""
    table = text[text.index(f'| {head} |') :].split('\n\n')[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in table]
    return {row[0].strip('`'): row[1:] for row in cells}


def names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


@pytest.fixture
def configs(tmp_path, monkeypatch) -> list[Config]:
    """The configs of the page, in its order."""
    files = [tmp_path / f'config_{number}.py' for number in range(len(CONFIGS))]
    for file, text in zip(files, CONFIGS):
        file.write_text(text)
    return [Config.fromfile(file) for file in files]


def test_the_configs_of_the_page_are_quantized_as_it_says(configs):
    tuned, with_hooks, by_hook, by_builder, learned = (plan_of(cfg, 'usage.md') for cfg in configs)
    reasons = {row.reason.partition(' (')[0] for row in tuned}
    assert reasons == {'reads the image', 'prediction layer', ''}, 'nothing is frozen'
    assert len(with_hooks.quantized) == len(with_hooks)
    assert by_hook == by_builder
    below_8_bits = [row for row in learned if row.weight.bits < 8]
    assert {(row.weight.range, row.activation.range) for row in below_8_bits} == {('learned', 'learned')}
    assert {row.weight.bits for row in by_hook if row.name.startswith('neck')} == {4}
    assert {row.activation.bits for row in by_hook if 'bbox_head' in row.name} == {4, 8}
    assert {row.weight for row in by_hook if row.name.startswith('backbone.layer4')} == {None}
    assert [hook['type'] for hook in configs[1].custom_hooks][-2:] == ['EMAHook', 'mmgdrq.GDRQHook']


def test_the_full_configs_have_every_key(configs):
    (hook,), quant = configs[2].custom_hooks, configs[3].model.quant
    keys = ['type', *rows(USAGE, 'key')]
    assert list(hook) == keys
    assert list(quant) == list(QUANT_KEYS)
    assert {key: hook[key] for key in quant} == quant
    defaults = dict(weight=WeightSpec(), activation=ActivationSpec(), execution=Execution())
    for key, default in defaults.items():
        assert type(default)(**hook[key]) == default
        assert list(hook[key]) == names(type(default))
    assert list(hook.stages) == names(Schedule)
    assert list(hook.distill) == names(Distillation) == list(rows(USAGE, 'key of `distill`'))
    assert Distillation(**hook.distill) == Distillation()


def test_the_table_has_the_keys_and_defaults_of_hook_and_builder():
    table = rows(USAGE, 'key')
    parameters = dict(inspect.signature(GDRQHook).parameters)
    parameters.pop('unknown')
    assert {key: f'`{p.default!r}`' for key, p in parameters.items()} == {key: row[0] for key, row in table.items()}
    assert [key for key, row in table.items() if row[2] == 'yes'] == list(QUANT_KEYS)
    assert all(row[1] == 'yes' for row in table.values())


def test_the_tables_of_specs_and_stages_have_their_keys():
    stages = rows(USAGE, 'key of `stages`')
    assert list(stages) == names(Schedule)
    given = Schedule.from_config(dict(reshape=0))
    others = {key: f'`{getattr(given, key)!r}`' for key in stages if key != 'reshape'}
    assert others == {key: row[0] for key, row in stages.items() if key != 'reshape'}
    for section, spec in (('weight', WeightSpec), ('activation', ActivationSpec)):
        text = SEMANTICS[SEMANTICS.index(f'\n## {section}\n') :]
        assert set(rows(text, 'key')) == set(names(spec)), section


def test_the_examples_in_plain_torch_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    distilling, calibrating, training, planning = [block for block in BLOCKS if block not in CONFIGS]
    space: dict = {}
    exec(training, space)
    assert '3 of 3 weight layers quantized' in capsys.readouterr().out
    assert len([name for name, _ in space['model'].named_parameters() if 'activation_quantizer' in name]) == 3
    space = {}
    exec(distilling, space)
    assert space['loss'].requires_grad
    assert list(space['distiller'].losses) == ['logits']
    exec(calibrating, space)
    assert '3 of 3 weight layers quantized' in capsys.readouterr().out
    space = {}
    exec(planning, space)
    assert 'reads the input (traced)' in capsys.readouterr().out
    assert [row.weight and row.weight.bits for row in mmgdrq.state(space['model']).plan] == [8, 4, None]


@pytest.mark.parametrize('option', ['--help', '--unknown'])
def test_listing_the_configs_does_nothing_but_what_was_asked(option, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    tool = importlib.import_module('list_configs')
    for name in ('ROOT', 'CONFIGS', 'PLANS'):
        monkeypatch.setattr(tool, name, tmp_path)
    monkeypatch.setattr('sys.argv', ['list_configs.py', option])
    with pytest.raises(SystemExit):
        tool.main()
    assert not list(tmp_path.iterdir())
    assert 'list_configs.py' in ''.join(capsys.readouterr())


def test_the_examples_of_contributing_run(monkeypatch):
    monkeypatch.setattr(base, '_ENGINES', dict(base._ENGINES))
    monkeypatch.setattr(registry, '_rules', dict(registry._rules))
    text = (ROOT / 'docs/contributing.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert WeightSpec(range='three_sigma').range == ActivationSpec(range='three_sigma').range
    assert base.find_engine('my_engine').checked_by == 'onnxruntime'


def test_the_losses_of_known_distributions_are_those_of_the_page():
    shares = (torch.arange(1000) + 0.5) / 1000
    magnitudes = {
        'uniform': shares,
        'Gaussian': torch.special.ndtri((1 + shares) / 2),
        'Laplace': -torch.log(1 - shares),
    }
    table = rows(USAGE, 'distribution')
    assert set(table) == set(magnitudes)
    for name, x in magnitudes.items():
        found = [gap_to_uniform(x).item()]
        for spec, limits, values in cases(x):
            levels = spec.levels if isinstance(spec, WeightSpec) else spec.levels(False)
            grid = (levels, limits, 1, getattr(spec, 'offset', 0.0))
            found.append(quantized_loss(values, search_range(values[None], *grid)[0], *grid).item())
        assert [float(cell) for cell in table[name]] == pytest.approx(found, abs=0.005), name


def cases(x):
    """Specs of the columns of the table, their codes, and what they round: weights have both signs."""
    for bits in (2, 4, 8):
        spec = WeightSpec(bits=bits)
        yield spec, spec.code_limits, torch.cat([x, -x])
    for bits in (2, 4, 8):
        spec = ActivationSpec(bits=bits)
        yield spec, spec.code_limits(False), x


def test_links_of_the_pages_lead_somewhere():
    for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        for target in re.findall(r'\]\(([^)#: ]+)(?:#[^)]*)?\)', page.read_text()):
            assert (page.parent / target).exists(), f'{page.name}: {target}'


def test_moved_modules_are_where_the_changelog_says():
    text = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    cells = [row[-1] for row in rows(text, 'in 0.1').values()]
    modules = [name for cell in cells for name in re.findall(r'`(mmgdrq[\w.]*)`', cell)]
    assert len(modules) > 60
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
