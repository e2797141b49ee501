"""A model as it is while it trains, for those who only look at it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..layers.walk import all_modules


@contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """While active, ``model`` is as ``model.train()`` makes it; then it is as before.

    Many backbones freeze their stages there and not when they are built. Put back are the ``requires_grad`` of
    all parameters and the mode of all modules; attributes that ``train`` adds or removes (LeViT holds a cache so)
    go or come back. What else a ``train`` of a model's own does, it has to undo in ``train(False)``.

    >>> model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    >>> with in_training(model):
    ...     pass
    >>> model[0].training
    False
    """
    if not any(_trains_its_own_way(module) for module in all_modules(model)):
        yield
        return
    with in_mode(model, True):
        yield


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """While active, ``model`` is as ``model.train(training)`` makes it; then it is as before, see :func:`in_training`.

    >>> model = nn.Sequential(nn.Dropout())
    >>> with in_mode(model, False):
    ...     model[0].training
    False
    >>> model[0].training
    True
    """
    was_training = model.training
    modules = [(module, module.training, dict(vars(module))) for module in all_modules(model)]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.train(training)
        try:
            yield
        finally:
            model.train(was_training)
    finally:
        for module, training, attributes in modules:
            _put_back(module, attributes)
            module.training = training
        for parameter, requires_grad in trained:
            parameter.requires_grad = requires_grad


def _trains_its_own_way(module: nn.Module) -> bool:
    return getattr(module.train, '__func__', None) is not nn.Module.train


def _put_back(module: nn.Module, attributes: dict) -> None:
    now = vars(module)
    for name in set(now) - set(attributes):
        del now[name]
    for name in set(attributes) - set(now):
        now[name] = attributes[name]
