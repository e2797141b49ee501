"""What a run reports of layers whose inputs it looks at."""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from tests.helpers.toy import ToyModel, log_of, toy_runner

NO_VALIDATION = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


@MODELS.register_module(force=True)
class ReadsWeight(ToyModel):
    """Applies the weight of its second convolution without calling it."""

    def forward(self, inputs, labels=None, mode='tensor'):
        x = F.relu(self.bn1(self.conv1(inputs)))
        x = F.relu(self.bn2(F.conv2d(x, self.conv2.weight, None, padding=1)))
        logits = self.head(x.mean((2, 3)))
        return dict(loss=F.cross_entropy(logits, labels)) if mode == 'loss' else logits


def test_a_layer_that_is_never_called_is_reported_once(tmp_path):
    runner = toy_runner(tmp_path, 5, dict(), model=dict(type='ReadsWeight'), **NO_VALIDATION)
    runner.train()
    log = log_of(tmp_path)
    assert log.count("the input of 'conv2' has no range") == 1
    assert "the input of 'conv1'" not in log
    assert "the input of 'head'" not in log


def test_a_model_whose_layers_are_all_called_gets_no_warning(tmp_path):
    runner = toy_runner(tmp_path, 5, dict())
    runner.train()
    assert 'WARNING - mmgdrq' not in log_of(tmp_path)
    assert torch.isfinite(runner.model.conv2.weight).all()
