"""A float network teaches its quantized form in a training loop of one's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.training.distillation import Distillation, Distiller, Tap, make_teacher


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )


def images() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def student():
    return network()


@pytest.fixture
def distiller(student):
    teacher = make_teacher(student)
    return Distiller(mmgdrq.quantize(student), teacher, Distillation(weight=0.9, task_weight=0.1))


def test_the_loss_is_that_of_the_logits(student, distiller):
    x = images()
    y = student.train()(x)
    ours, theirs = F.log_softmax(y / 4, 1), F.softmax(network().eval()(x) / 4, 1)
    expected = 0.9 * 16 * F.kl_div(ours, theirs, reduction='batchmean')
    assert distiller.losses['logits'].item() == pytest.approx(expected.item(), rel=1e-3)
    assert distiller.total(torch.tensor(2.0)).item() == pytest.approx(expected.item() + 0.2, rel=1e-3)


def test_gradients_reach_the_student_only(student, distiller):
    student.train()(images())
    distiller.total(torch.zeros(())).backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert any(bool((p.grad != 0).any()) for p in student.parameters())


def test_the_teacher_is_no_part_of_the_student(student, distiller):
    twin = mmgdrq.quantize(network())
    assert list(student.state_dict()) == list(twin.state_dict())
    assert len(list(student.parameters())) == len(list(twin.parameters()))
    before = copy.deepcopy(distiller.teacher.state_dict())
    student.train()(images())
    assert all(torch.equal(before[key], value) for key, value in distiller.teacher.state_dict().items())


def test_nothing_happens_in_evaluation(student, distiller):
    student.train()(images())
    student.eval()(images())
    assert distiller.losses == {}
    with torch.no_grad():
        student.train()(images())
    assert distiller.losses == {}


def test_a_copy_has_no_teacher(student, distiller):
    student.train()(images())
    losses = dict(distiller.losses)
    copied = copy.deepcopy(student)
    distiller.teacher.register_forward_hook(lambda *_: pytest.fail('the teacher of a copy has run'))
    copied.train()(images())
    assert distiller.losses == losses


def test_a_copy_has_no_teacher_after_a_failed_pass(student, distiller):
    copied = copy.deepcopy(student)
    with pytest.raises(RuntimeError):
        student.train()(torch.randn(6, 4, 8, 8))
    distiller.teacher.register_forward_hook(lambda *_: pytest.fail('the teacher of a copy has run'))
    copied.train()(images())
    assert distiller.losses == {}


def test_it_ends(student, distiller):
    distiller.remove()
    student.train()(images())
    assert distiller.losses == {}


def test_taps_are_compared_call_by_call():
    student = network()
    teacher = make_teacher(student)
    taps = [Tap('hidden', '3', lambda a, b: dict(first=(a - b).abs().mean(), second=torch.ones(())), weight=2.0)]
    distiller = Distiller(mmgdrq.quantize(student, weight=dict(bits=8), activation=dict(bits=8)), teacher, taps=taps)
    student.train()(images())
    assert sorted(distiller.losses) == ['hidden_first', 'hidden_second']
    assert distiller.losses['hidden_second'].item() == 2.0
    assert distiller.losses['hidden_first'].item() > 0


def test_it_teaches():
    """Without labels: the student comes closer to its teacher."""
    student = network()
    teacher = make_teacher(student)
    distiller = Distiller(mmgdrq.quantize(student), teacher)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        student.train()(images())
        loss = distiller.total(torch.zeros(()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_teacher_is_a_copy_that_does_not_train(student):
    teacher = make_teacher(student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


def test_a_quantized_teacher_is_refused(student):
    with pytest.raises(ConfigError, match=r'before mmgdrq\.quantize'):
        make_teacher(mmgdrq.quantize(student))


def test_an_unknown_module_is_refused(student):
    with pytest.raises(ConfigError, match="no module 'neck'"):
        Distiller(student, make_teacher(student), taps=[Tap('features', 'neck', lambda a, b: a)])


WRONG = {
    'temperatur': (dict(temperatur=2), "Did you mean 'temperature'"),
    'no dict': (True, 'expected a dict'),
    'temperature 0': (dict(temperature=0), 'temperature=0'),
    'negative weight': (dict(weight=-1), 'weight=-1'),
    'a text': (dict(task_weight='half'), "task_weight='half'"),
    'checkpoint': (dict(checkpoint=3), 'checkpoint=3'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings(case):
    config, words = WRONG[case]
    with pytest.raises(ConfigError, match=words):
        Distillation.from_config(config)
