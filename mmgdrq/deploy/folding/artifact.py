"""A folded model on disk: ``manifest.json``, ``weights.safetensors`` and ``config.py`` in one directory.

Weights are stored as packed integer codes at their real bit-width. There is no pickle. A directory is
written beside its final place and renamed, so that a half-written one never has the final name.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmgdrq_runtime.manifest import (
    FORMAT,
    MANIFEST,
    VERSION,
    PathLike,
    check_file,
    file_sha256,
    is_deployed,
    json_sha256,
    read_manifest,
)

from ...errors import CheckpointError, MMGDRQError
from ...files import cannot_be_replaced, partial_name, real_path, remove_stale, replace_directory
from ...layers import is_quantized
from ...quant import pack, unpack
from ...quantized_model.conversion import copy_model
from ...quantized_model.state import check_whole
from .folded_layers import (
    STORED,
    FoldedLayer,
    StoredWeight,
    become_folded,
    become_folded_model,
    unread_parameters,
)

WEIGHTS, CONFIG = 'weights.safetensors', 'config.py'


def save_folded(
    folded: nn.Module,
    out: PathLike,
    config: str = '',
    graphs: Optional[Callable[[Path], dict[str, Any]]] = None,
    check: Optional[Callable[[Path], None]] = None,
) -> Path:
    """Write a folded model.

    Args:
        folded: result of :func:`mmgdrq.fold`.
        out: directory, or a link to one; an earlier deployed model there is replaced, an empty one filled, anything
            else is an error. So is what cannot be replaced: a mount point, and the current folder.
        config: text of the config that builds the quantized model.
        graphs: writes graphs for engines below the directory that it is given; what it returns goes into the
            manifest.
        check: looks at the directory when it is complete, but has not got its name yet; where it raises, an earlier
            deployed model stays.

    Returns:
        The directory.

    Raises:
        CheckpointError: ``out`` exists and is not a deployed model.
        OSError: it cannot be written, such as on a full disk; an earlier deployed model is still there then.
    """
    out = Path(out)
    check_out(out)
    final = real_path(out)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(final)
    temporary = partial_name(final)
    try:
        temporary.mkdir()
        (temporary / WEIGHTS).write_bytes(save(_tensors_of(folded)))  # OSError on a full disk, unlike save_file
        (temporary / CONFIG).write_text(config, encoding='utf-8')
        layers = {name: entry.as_json() for name, entry in folded.gdrq_folded.items()}
        written = graphs(temporary) if graphs is not None else {}
        manifest = {
            'format': FORMAT,
            'version': VERSION,
            'sha256': file_sha256(temporary / WEIGHTS),
            'config_sha256': file_sha256(temporary / CONFIG),
            'layers_sha256': json_sha256(layers),
            'layers': layers,
            'graphs': written,
            'graphs_sha256': json_sha256(written),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding='utf-8')
        if check is not None:
            check(temporary)
        replace_directory(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def check_out(out: PathLike) -> None:
    """Check that a deployed model may be written to a place.

    Raises:
        CheckpointError: something else is there, or a directory that cannot be replaced.
    """
    out = Path(out)
    reason = cannot_be_replaced(out)
    if reason:
        raise CheckpointError(
            f'{out}: {reason}, so no other directory can get its name. Choose a folder in it, such as {out / "model"}'
        )
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and not is_deployed(out):
        raise CheckpointError(f'{out}: exists and is not a deployed model, so it is not replaced. Choose another --out')


def load_folded(model: nn.Module, path: PathLike) -> nn.Module:
    """Turn a quantized model into the folded one of a directory, in place.

    Args:
        model: the quantized model that the deployed model's config builds.
        path: directory that :func:`save_folded` wrote.

    Raises:
        CheckpointError: the directory is incomplete, altered or newer, or does not fit the model. The model is
            not changed then.
        ConfigError: the model is a copy that has lost its state.
    """
    path = Path(path)
    check_whole(model, 'load_folded')
    manifest = read_manifest(path)
    tensors = _read_tensors(path, manifest)
    try:
        _become(copy_model(model), path, manifest, tensors)  # a rehearsal, so that an error changes nothing
    except MMGDRQError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{path}: its {MANIFEST} is altered or does not fit the model ({error!r}). Write it again with '
            'tools/deploy.py'
        ) from None
    return _become(model, path, manifest, tensors)


def _become(model: nn.Module, path: Path, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    entries = {name: FoldedLayer.from_json(values) for name, values in manifest['layers'].items()}
    layers = {name: layer for name, layer in model.named_modules() if is_quantized(layer)}
    _check_fit(path, layers, entries)
    weights = {
        _weight_key(name, entry): _weight_of(path, name, entry, tensors)
        for name, entry in entries.items()
        if entry.kind != STORED or entry.weight_bits <= 8
    }
    for name, entry in entries.items():
        become_folded(layers[name], entry)
        _adopt_norm_affine(model, entry.norm, tensors)
    state = {**tensors, **weights}
    state.update({alias: state[key] for alias, key in _alias_keys(model).items() if key in state})
    become_folded_model(model, entries)
    own = model.state_dict()
    state.update({key: torch.zeros_like(own[key]) for key in unread_parameters(model)})
    _give_ranges_a_dimension(own, state)
    _check_state(path, own, state)
    model.load_state_dict(state)
    return model.eval()


def read_config(path: PathLike) -> str:
    """Text of the config in a deployed directory.

    Raises:
        CheckpointError: it is missing or was altered.
    """
    return check_file(Path(path) / CONFIG, read_manifest(path)['config_sha256']).read_text(encoding='utf-8')


def stored_bytes(path: PathLike) -> int:
    """Size of a deployed model on disk without its graphs for engines, in bytes."""
    return sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())


def _tensors_of(folded: nn.Module) -> dict[str, Tensor]:
    aliases = _alias_keys(folded)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in folded.state_dict().items()}
    for name, entry in folded.gdrq_folded.items():
        if entry.weight_bits <= 8:
            key = _weight_key(name, entry)
            tensors[key] = pack(tensors[key], *entry.integers)
    for key in unread_parameters(folded):
        del tensors[key]
    return {key: t for key, t in tensors.items() if aliases.get(key, key) == key}


def _weight_key(name: str, entry: FoldedLayer) -> str:
    """Where the state of a model has the codes of a layer."""
    return f'{name}.weight_quantizer.codes' if entry.kind == STORED else f'{name}.weight'


def _alias_keys(model: nn.Module) -> dict[str, str]:
    """State key under any name of a folded layer -> the key under its first name."""
    first = {id(module): name for name, module in reversed(list(model.named_modules()))}
    keys = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if hasattr(module, 'input_codes') or isinstance(getattr(module, 'weight_quantizer', None), StoredWeight):
            for key in module.state_dict():
                keys[f'{name}.{key}'] = f'{first[id(module)]}.{key}'
    return keys


def _read_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    file = check_file(path / WEIGHTS, manifest['sha256'])
    try:
        return load_file(str(file))
    except SafetensorError as error:
        raise CheckpointError(f'{file}: cannot be read ({error})') from None


def _weight_of(path: Path, name: str, entry: FoldedLayer, tensors: dict[str, Tensor]) -> Tensor:
    key = _weight_key(name, entry)
    if key not in tensors:
        raise CheckpointError(f'{path}: the weight of {name} is missing')
    if entry.weight_bits > 8:
        return tensors[key]
    try:
        bits, lowest, stride = entry.integers
        return unpack(tensors[key], bits, lowest, entry.shape, stride).float()
    except ValueError as error:
        raise CheckpointError(f'{path}: the weight of {name} is damaged: {error}') from None


def _check_fit(path: Path, layers: dict[str, nn.Module], entries: dict[str, FoldedLayer]) -> None:
    different = sorted(set(layers) ^ set(entries))
    if different:
        raise CheckpointError(
            f'{path}: it was made from another config: {different[0]} is quantized in only one of model and '
            f'manifest ({len(different)} such layers). Use its own {CONFIG}'
        )
    for name, entry in entries.items():
        shape = tuple(layers[name].filters().shape)
        bits = [getattr(q, 'spec', None) for q in (layers[name].weight_quantizer, layers[name].activation_quantizer)]
        asked = [32 if spec is None else spec.bits for spec in bits]
        stored = [entry.weight_bits, entry.input_bits]
        if shape != entry.shape or asked != stored:
            raise CheckpointError(
                f'{path}: {name} has shape {entry.shape} and {stored} bits (weight, input), the config '
                f'builds shape {shape} and {asked} bits. Use its own {CONFIG}'
            )
        inputs = [tuple(bits[1].code_limits(signed)) for signed in (False, True)] if bits[1] else [None]
        integers = bits[0].integers if bits[0] else (0, 1)
        if entry.input not in inputs or (entry.weight_lowest, entry.weight_stride) != integers:
            raise CheckpointError(f'{path}: {name} has codes that {stored} bits (weight, input) do not have')


def _adopt_norm_affine(model: nn.Module, norm: Optional[str], tensors: dict[str, Tensor]) -> None:
    """A BN without affine parameters got them by folding."""
    if not norm:
        return
    module = model.get_submodule(norm)
    if f'{norm}.weight' in tensors and module.weight is None:
        module.weight = nn.Parameter(torch.ones_like(module.running_mean))
        module.bias = nn.Parameter(torch.zeros_like(module.running_mean))


def _give_ranges_a_dimension(expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Learned input ranges of stored layers, which version 0.1 wrote without one."""
    for key, tensor in expected.items():
        if key.endswith('.threshold') and tensor.shape == (1,) and key in state and state[key].shape == ():
            state[key] = state[key].reshape(1)


def _check_state(path: Path, expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    different = sorted(set(expected) ^ set(state))
    if different:
        raise CheckpointError(f'{path}: tensor {different[0]} is in only one of model and file. Use its own {CONFIG}')
    for key, tensor in expected.items():
        if tensor.shape != state[key].shape:
            raise CheckpointError(
                f'{path}: {key} has shape {tuple(state[key].shape)}, the config builds {tuple(tensor.shape)}'
            )
