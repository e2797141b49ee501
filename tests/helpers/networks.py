"""Small networks with the seams of a detector, quantized, folded and exported."""

import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.export.block_variants import FORMS


class Net(nn.Module):
    """Every kind of result: before a pooling, a residual addition, a ReLU, two readers, and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 1)
        self.pooled = nn.Conv2d(16, 8, 3)
        self.head, self.other = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)

    def extract_feat(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner_norm(self.inner(x)))
        x = self.pooled(F.max_pool2d(torch.relu(self.wide(x)), 2))
        return self.head(x), self.other(x)

    def forward(self, x):
        return self.bbox_head(self.extract_feat(x))


class Stack(nn.Module):
    """A model that is one stack of layers."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body, self.bbox_head = body, nn.Identity()

    def extract_feat(self, x):
        return self.body(x)

    def forward(self, x):
        return self.bbox_head(self.extract_feat(x))


def trained_fold(model, x, **quant):
    """The model, quantized, trained for two iterations and folded."""
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, **quant)
    with torch.no_grad():
        for _ in range(2):
            model.train()(x)
    return mmgdrq.fold(model.eval(), example=x)


def exported_of(folded, out, profile, form='low-bit'):
    model, x = folded
    (exported,) = export(model, lambda m: m(x), out, profile, FORMS[form])
    return exported
