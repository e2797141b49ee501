"""Two gloo ranks: which of them share the statistics of a model, and what a wrapper has to know of."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmgdrq
from mmgdrq.errors import QuantizationError

SCALES = (1.0, 100.0)
"""Of the inputs of each rank."""


def build(seed: int = 0, **quant) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return mmgdrq.quantize(model, **quant).train()


def data(rank: int, step: int) -> torch.Tensor:
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(10 * rank + step)) * SCALES[rank]


def train(model, rank: int, steps: int = 3) -> list:
    """Thresholds after some steps."""
    for step in range(steps):
        model(data(rank, step)).sum().backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    state = inner.state_dict()
    return [float(state[f'{layer}.activation_quantizer.threshold']) for layer in (0, 2)]


def error_of(run) -> str:
    try:
        run()
    except QuantizationError as error:
        return str(error)
    return ''


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    groups = [dist.new_group([number]) for number in range(2)]
    found = {}
    found['alone, not said'] = error_of(lambda: train(build(seed=rank), rank))
    model = build(seed=rank)
    mmgdrq.state(model).process_group = groups[rank]
    found['alone, as an argument'] = train(model, rank)
    found['alone, by the wrapper'] = train(DistributedDataParallel(build(seed=rank), process_group=groups[rank]), rank)
    found['together'] = train(build(), rank)
    found['together, wrapped'] = train(DistributedDataParallel(build()), rank)
    learned = dict(weight=dict(range='learned'), activation=dict(range='learned'))
    torch.manual_seed(0)
    first = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    mmgdrq.quantize(first.module, **learned)
    found['wrapped, then quantized'] = error_of(lambda: train(first, rank))
    first = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    mmgdrq.quantize(first.module)
    found['wrapped, then quantized, nothing learned'] = error_of(lambda: train(first, rank))
    found['quantized, then wrapped'] = error_of(lambda: train(DistributedDataParallel(build(**learned)), rank))
    torch.save(found, f'{folder}/{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory) -> list:
    """What each rank has found."""
    folder = tmp_path_factory.mktemp('groups')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f'{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('way', ['as an argument', 'by the wrapper'])
def test_a_model_of_one_rank_sees_its_own_inputs_alone(ranks, way):
    for rank in range(2):
        assert ranks[rank][f'alone, {way}'] == train(build(seed=rank), rank)
    assert ranks[1][f'alone, {way}'][0] > 50 * ranks[0][f'alone, {way}'][0]


def test_different_models_in_one_group_are_refused(ranks):
    for found in ranks:
        assert 'the processes hold different models' in found['alone, not said']
        assert 'mmgdrq.state(model).process_group' in found['alone, not said']


@pytest.mark.parametrize('way', ['together', 'together, wrapped'])
def test_a_model_of_both_ranks_sees_the_inputs_of_both(ranks, way):
    assert ranks[0][way] == ranks[1][way]
    assert ranks[0][way][0] > 10 * train(build(), 0)[0]


def test_a_wrapper_that_does_not_know_the_learned_ranges(ranks):
    for found in ranks:
        assert (
            'DistributedDataParallel does not average the gradient of its learned range'
            in (found['wrapped, then quantized'])
        )
        assert found['wrapped, then quantized, nothing learned'] == ''
        assert found['quantized, then wrapped'] == ''
