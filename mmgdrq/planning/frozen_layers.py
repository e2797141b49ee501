"""Find the layers that are frozen in a model that trains others."""

from torch import nn

from .first_layers import Layers, image_layers


def frozen_layers(layers: Layers) -> list[str]:
    """The layers whose weights are not trained, in a model that trains others.

    A whole network, from the image on, beside one with the same layers follows it, as the teacher of mmdet's
    semi-supervised detectors does, which is also the one that is evaluated: its layers count as frozen only where
    those of the other are. Layers are the same by name, class and shapes.
    """
    trained = {name for name, layer in layers.items() if _trained(layer)}
    networks: dict[str, dict[str, tuple]] = {}
    for name, layer in layers.items():
        network, _, rest = name.partition('.')
        networks.setdefault(network, {})[rest] = type(layer), [p.shape for p in layer.parameters()]
    leaders = {name.partition('.')[0] for name in trained}
    followers = {name.partition('.')[0] for name in image_layers(layers)} - leaders
    for leader in leaders:
        for follower in followers:
            if networks[follower] == networks[leader]:
                rests = [rest for rest in networks[leader] if f'{leader}.{rest}' in trained]
                trained |= {f'{follower}.{rest}' for rest in rests}
    return [name for name in layers if name not in trained] if trained else []


def _trained(layer: nn.Module) -> bool:
    weights = list(layer.parameters(recurse=False))
    if hasattr(layer, 'parametrizations'):  # of torch, such as spectral_norm: they hold the weight
        weights += layer.parametrizations.parameters()
    return any(weight.requires_grad for weight in weights if weight.dim() >= 2)
