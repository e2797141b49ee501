"""Finding the parts of a model, whatever attribute hides a method of nn.Module."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.layers.walk import all_modules

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class HidesModules(nn.Module):
    """Keeps a list of its layers as ``modules``, as ESPNet does."""

    def __init__(self, hide: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 2)
        if hide:
            self.modules = [self.conv1, self.bn]

    def forward(self, x):
        return self.fc(self.conv2(self.bn(self.conv1(x)).relu()).mean((2, 3)))


def trained(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mmgdrq.ScaleClip(model).attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(X).square().sum().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize('wrap', [lambda model: model, nn.Sequential])
def test_a_model_that_hides_its_modules(wrap, tmp_path):
    """From the plan to the folded model, it is that of a model that does not."""
    outputs = []
    for hide in (False, True):
        torch.manual_seed(0)
        model = wrap(HidesModules(hide))
        plan = mmgdrq.plan(model, example=X)
        model = trained(mmgdrq.quantize(model, plan=plan, config=dict(execution=dict(lean_relu=False))))
        mmgdrq.freeze(model)
        again = mmgdrq.quantize(wrap(HidesModules(hide)), plan=plan)
        again.load_state_dict(copy.deepcopy(model.state_dict()))
        folded = mmgdrq.fold(model, X)
        mmgdrq.deploy.save_folded(folded, tmp_path / str(hide))
        loaded = mmgdrq.deploy.load_folded(mmgdrq.quantize(wrap(HidesModules(hide)), plan=plan), tmp_path / str(hide))
        outputs.append((model(X), again.eval()(X), folded(X), loaded(X)))
    for shown, hidden in zip(*outputs):
        assert torch.equal(shown, hidden)


def test_all_modules():
    model = nn.Sequential(HidesModules(), nn.ReLU())
    assert set(all_modules(model)) == {model, *all_modules(model[0]), model[1]}
    assert len(list(all_modules(model[0]))) == 5


def test_nothing_asks_a_model_for_its_modules_itself():
    files = Path(mmgdrq.__file__).parent.rglob('*.py')
    assert [str(file) for file in files if re.search(r'\w\.modules\(\)', file.read_text(encoding='utf-8'))] == []
