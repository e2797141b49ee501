"""Two gloo ranks with half a batch each against one process with the whole batch."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from mmengine.model import BaseModel, MMDistributedDataParallel
from torch import nn

import mmgdrq

STEPS = 4


class Model(BaseModel):
    """Convolutions without BN (it would differ between the ranks), and a head for chosen samples.

    ``shared`` is called twice an iteration; ``head`` sees only samples with ``chosen``, maybe none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.tail = nn.Linear(8, 4)

    def forward(self, inputs, chosen, mode='tensor'):
        x = F.relu(self.stem(inputs))
        x = F.relu(self.shared(self.shared(x)))
        x = x.mean((2, 3))
        # the weights of the mean make two half batches add up to the joined one
        loss = self.tail(x).square().sum(1).mean()
        return dict(loss=loss + self.head(x[chosen]).square().sum() * 0)


def data_of(step: int, kind: str) -> dict:
    """The joined batch of a step; the first half is that of rank 0."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(4, 3, 8, 8, generator=generator)
    chosen = torch.ones(4, dtype=torch.bool)
    if kind == 'unlike':
        inputs[2:] *= 5
    if kind == 'one signed':
        inputs[:2] = inputs[:2].abs()
    if kind.startswith('empty') and step in (0, 2):
        empty = dict(first=slice(2), second=slice(2, 4)).get(kind.split()[1], slice(4))
        chosen[empty] = False
    return dict(inputs=inputs, chosen=chosen)


def build(quant: dict, calibrated: bool) -> Model:
    """The model at the begin of a training, or in its course: then it has ranges already."""
    torch.manual_seed(0)
    model = mmgdrq.quantize(Model(), **copy.deepcopy(quant)).train()
    if calibrated:
        model(**data_of(99, 'alike'), mode='loss')
        model.load_state_dict(copy.deepcopy(model).state_dict())
    return model


def run(model, root, kind: str, part: slice) -> list:
    """Train; returns the state of every step."""
    optimizer = torch.optim.SGD(root.parameters(), lr=0.05)
    mmgdrq.ScaleClip(root).attach(optimizer)
    states = []
    for step in range(STEPS):
        data = {key: value[part] for key, value in data_of(step, kind).items()}
        loss = model(**data, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        states.append({k: v.clone() for k, v in copy.deepcopy(root).state_dict().items()})
    return states


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    results = {}
    own = slice(2 * rank, 2 * rank + 2)
    for calibrated in (False, True):
        for name, (quant, kind) in JOBS.items():
            root = build(quant, calibrated)
            model = MMDistributedDataParallel(root, broadcast_buffers=False)
            results[name, calibrated] = run(model, root, kind, own)
    torch.save(results, f'{folder}/{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


LEARNED = dict(weight=dict(range='learned'), activation=dict(range='learned'))
JOBS = {
    'mean': (dict(activation=dict(range='mean')), 'alike'),
    'active_mean': (dict(activation=dict(range='active_mean')), 'alike'),
    'lehmer': (dict(activation=dict(range='lehmer')), 'alike'),
    'minmax': (dict(weight=dict(range='search'), activation=dict(range='minmax')), 'unlike'),
    'unlike': (dict(), 'unlike'),
    'one signed': (dict(), 'one signed'),
    'empty first rank': (dict(), 'empty first rank'),
    'empty second rank': (dict(), 'empty second rank'),
    'search': (dict(activation=dict(range='search')), 'unlike'),
    'learned': (LEARNED, 'unlike'),
    'learned, reshape': (dict(LEARNED, stage='reshape'), 'alike'),
    'learned, float': (dict(LEARNED, stage='float'), 'alike'),
    'learned, empty first rank': (LEARNED, 'empty first rank'),
    'learned, empty ranks': (LEARNED, 'empty ranks'),
}
# In these one process with the joined batch computes the same. For 'search' the ranks are combined by the mean
# of what each has found, which is not what the joined batch gives.
LIKE_ONE_PROCESS = [name for name in JOBS if 'learned' not in name and name != 'search']


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Job, whether calibrated before -> states of both ranks, after every step."""
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    first, second = (torch.load(folder / f'{rank}.pth') for rank in range(2))
    return {job: (first[job], second[job]) for job in first}


@pytest.mark.parametrize('calibrated', [False, True])
@pytest.mark.parametrize('job', JOBS)
def test_ranks_hold_the_same_bits(ranks, job, calibrated):
    for step, (one, other) in enumerate(zip(*ranks[job, calibrated])):
        for key, value in one.items():
            assert torch.equal(value, other[key]), f'{key} after step {step}'


@pytest.mark.parametrize('job', LIKE_ONE_PROCESS)
def test_ranks_equal_one_process_with_the_joined_batch(ranks, job):
    quant, kind = JOBS[job]
    root = build(quant, calibrated=True)
    first = root.stem.activation_quantizer.threshold.clone()
    whole = run(root, root, kind, slice(4))
    assert root.stem.activation_quantizer.threshold != first
    for step, (wanted, found) in enumerate(zip(whole, ranks[job, True][0])):
        for key, value in wanted.items():
            text = f'{key} after step {step}: '
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, t=text: t + m)


@pytest.mark.parametrize('job', LIKE_ONE_PROCESS)
def test_first_range_is_that_of_the_joined_batch(ranks, job):
    """Only of the layer that reads the images: in the first iteration each rank rounds by its own
    range, so what deeper layers see differs a little."""
    quant, kind = JOBS[job]
    root = build(quant, calibrated=False)
    wanted = run(root, root, kind, slice(4))[0]
    found = ranks[job, False][0][0]
    key = 'stem.activation_quantizer.'
    assert float(found[key + 'threshold']) == pytest.approx(float(wanted[key + 'threshold']))
    assert bool(found[key + 'signed']) == bool(wanted[key + 'signed'])


@pytest.mark.parametrize('job', ['empty first rank', 'empty second rank'])
def test_rank_without_elements_gets_the_range(ranks, job):
    for rank in ranks[job, False]:
        assert bool(rank[0]['head.activation_quantizer.initialized'])
        assert float(rank[0]['head.activation_quantizer.threshold']) > 0


def test_sign_is_decided_by_all_ranks(ranks):
    for rank in ranks['one signed', False]:
        assert bool(rank[0]['stem.activation_quantizer.signed'])
