"""The sweep over the zoos finds what it claims to look for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

import mmgdrq

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))


def test_the_sweep_as_a_user_runs_it(tmp_path):
    command = [sys.executable, ROOT / 'dev/zoo_sweep.py', 'mmpretrain', '--only', 'lenet', 'resnet', 'blip']
    files = '--out', tmp_path / 'found.json', '--table', tmp_path / 'page.md'
    subprocess.run([*command, *files], check=True, cwd=ROOT, capture_output=True)
    found = json.loads((tmp_path / 'found.json').read_text())
    for folder, layers in (('lenet', 5), ('resnet', 54)):
        row = found[f'mmpretrain/{folder}']
        assert (row['result'], row['step'], row['quantized'], row['share']) == ('passed', 'loss', layers, 1.0), row
        assert row['groups'] > 0, 'the parameter groups were compared'
    assert found['mmpretrain/blip']['result'] == 'not built'
    page = (tmp_path / 'page.md').read_text()
    assert '| 3 | 2 | 2 (100.0%) | 59 | 100.00% | 2 of 2 |' in page
    assert 'optional dependency absent' in page


def test_the_page_is_that_of_the_results():
    from zoo_table import page

    results = json.loads((ROOT / 'docs/coverage.json').read_text())
    written = (ROOT / 'docs/coverage.md').read_text()
    assert written[written.index('| zoo |') :] == (made := page(results))[made.index('| zoo |') :]


def test_the_promise_of_the_sweep_holds():
    """At least 95 % of the architectures that can be built pass, with at least 97 % of their layers quantized."""
    results = json.loads((ROOT / 'docs/coverage.json').read_text())
    for zoo in ('mmdet', 'mmseg', 'mmpretrain'):
        rows = [row for key, row in results.items() if key.startswith(zoo + '/')]
        built = [row for row in rows if row['result'] not in ('not built', 'no model')]
        passed = [row for row in built if row['result'] == 'passed' and row['share'] >= 0.97]
        assert len(passed) >= 0.95 * len(built), zoo
        assert all(row['reason'] for row in rows if row['result'] != 'passed')


class Bypass(nn.Module):
    """Reads the weight of its child instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(nn.functional.linear(self.stem(x), self.middle.weight))


def test_a_bypassed_layer_is_found():
    from zoo_steps import check_step

    net = mmgdrq.quantize(Bypass())
    net.train()(torch.randn(3, 4)).sum().backward()
    row = dict(problems=[])
    check_step(net, row)
    assert row['problems'] == ['1 layers are bypassed, such as middle']


def test_layers_that_are_no_longer_shared_are_found():
    from zoo_sweep import shared_names

    layer = nn.Linear(2, 2)
    net = nn.ModuleList([layer, layer, nn.Linear(2, 2)])
    assert shared_names(net) == {frozenset({'0', '1'}), *(frozenset({f'0.{p}', f'1.{p}'}) for p in ('weight', 'bias'))}
    net[1] = nn.Linear(2, 2)
    assert not shared_names(net)


def test_models_are_built_without_synchronized_bn():
    from zoo_models import without_sync_bn

    config = ConfigDict(
        backbone=dict(norm_cfg=dict(type='SyncBN')),
        heads=[dict(norm_cfg=dict(type='MMSyncBN'))],
    )
    assert without_sync_bn(config) == dict(
        backbone=dict(norm_cfg=dict(type='BN')),
        heads=[dict(norm_cfg=dict(type='BN'))],
    )
