"""Threads that share a deployed model get the results of their own images."""

import threading
import time

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.openmmlab.deployed.deployed_model import DeployedModel
from mmgdrq.quantized_model.dense_parts import parts_of
from mmgdrq_runtime.engines import open_engine
from tests.helpers.folding import IMAGE, ready
from tests.helpers.threads import THREADS, results_of_threads


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_an_engine(engine, tmp_path):
    pytest.importorskip('onnx', reason='onnx is not installed')
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    net = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)])
    example, file = torch.rand(1, 3, 32, 32), tmp_path / 'net.onnx'
    torch.onnx.export(net, (example,), str(file), dynamo=False, input_names=['input'], opset_version=17)
    run = open_engine(engine, file, threads=1)
    images = [np.full((1, 3, 32, 32), number, np.float32) for number in range(THREADS)]
    expected = [run(image)[0] for image in images]

    def work(number: int) -> bool:
        return all(np.allclose(run(images[number])[0], expected[number], atol=1e-5) for _ in range(30))

    assert results_of_threads(work) == [True] * THREADS


class TwoStage(nn.Module):
    """Gives features and proposals; all threads meet between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.rpn_head, self.roi_head = nn.Identity(), nn.Module()
        self.meeting = threading.Barrier(THREADS)

    def extract_feat(self, x):
        return (x,)

    def forward(self, x):
        feats = self.extract_feat(x)
        self.meeting.wait(10)
        return feats[0], self.rpn_head(feats)


def test_proposals_of_an_engine():
    model = TwoStage()
    parts_of(model)[0].replace_by(lambda x: ((x,), 10 * x))
    results = results_of_threads(lambda number: [float(y) for y in model(torch.tensor(float(number)))])
    assert results == [[number, 10 * number] for number in range(THREADS)]


class Remembers(nn.Module):
    """Keeps its input while it computes, as heads of OpenMMLab may do."""

    def test_step(self, data):
        self.image = data['inputs'][0]
        time.sleep(0.002)
        return [int(self.image.max())]


def test_an_application():
    init_default_scope('mmpretrain')
    dataset = dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    model = DeployedModel(Remembers(), Config(dict(test_dataloader=dict(dataset=dataset))))
    images = [np.full((4, 4, 3), number, np.uint8) for number in range(THREADS)]
    results = results_of_threads(lambda number: [model(images[number]) for _ in range(5)])
    assert results == [[number] * 5 for number in range(THREADS)]


def test_a_folded_model_in_torch():
    """Its stored layer and its folded ones keep nothing of an image."""
    net = ready(nn.Sequential(nn.ConvTranspose2d(4, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)), IMAGE)
    folded = mmgdrq.fold(net, IMAGE)
    images = [IMAGE * (number + 1) for number in range(THREADS)]
    with torch.no_grad():
        expected = [folded(image) for image in images]

    @torch.no_grad()
    def work(number: int) -> bool:
        return all(torch.equal(folded(images[number]), expected[number]) for _ in range(20))

    assert results_of_threads(work) == [True] * THREADS
