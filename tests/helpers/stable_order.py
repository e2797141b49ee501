"""Let torch and mmcv keep the order of equal scores, which they leave open on a CPU.

Quantized logits are equal often. With an arbitrary order results of OpenMMLab cannot be compared with anything.
"""

import importlib

import torch

nms_module = importlib.import_module('mmcv.ops.nms')  # mmcv.ops has a function of this name


def keep_order_of_equals(patch) -> None:
    """Patch torch's sort and mmcv's NMS, until the ``MonkeyPatch`` undoes it."""
    sort, suppress = torch.Tensor.sort, nms_module.ext_module.nms

    def stable_sort(self, dim=-1, descending=False):
        return sort(self, dim=dim, descending=descending, stable=True)

    def stable_nms(boxes, scores, **settings):
        order = stable_sort(scores, descending=True)[1]
        ranks = torch.arange(len(scores), 0, -1).to(scores)  # their order is no matter of sorting
        return order[suppress(boxes[order], ranks, **settings)]

    patch.setattr(torch.Tensor, 'sort', stable_sort)
    patch.setattr(nms_module.ext_module, 'nms', stable_nms)
