"""Write ``pipeline.json``: what OpenMMLab does before and after the graphs of a deployed model, as data.

:mod:`mmgdrq_runtime` runs a deployed directory by it. What it cannot say exactly is refused by name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mmgdrq_runtime.manifest import PathLike, read_manifest
from mmgdrq_runtime.pipeline import PIPELINE, check_content, pipeline_file

from ...errors import CheckpointError, ExportError
from ...files import write_file
from ..config_parts import registered
from ..deployed.image_pipeline import dataset_of_test
from .decoder import describe_decoder
from .preprocessing import describe_preprocessing


def write_pipeline(path: PathLike, model: nn.Module, cfg: Mapping[str, Any]) -> str:
    """Write the pipeline file of a deployed directory, or the reason why there is none.

    Args:
        path: the directory.
        model: the model whose dense parts are its graphs.
        cfg: its whole config.

    Returns:
        Empty, or why the directory runs through OpenMMLab only.
    """
    graphs = read_manifest(path)['graphs']
    try:
        content = describe(model, cfg, graphs)
    except (CheckpointError, ExportError) as error:
        content = {'reason': str(error)}
    write_file(Path(path, PIPELINE), json.dumps(pipeline_file(content, graphs), indent=1) + '\n')
    return content.get('reason', '')


def describe(model: nn.Module, cfg: Mapping[str, Any], graphs: Mapping[str, Any]) -> dict[str, Any]:
    """Say what happens before and after the graphs.

    Raises:
        ExportError: names what cannot be described.
        CheckpointError: the config has no test pipeline.
    """
    dataset = dataset_of_test(cfg)
    described = {
        'preprocessing': describe_preprocessing(dataset, model.data_preprocessor),
        'decoder': describe_decoder(model, graphs),
        **_classes(dataset),
    }
    content = as_json(described)
    try:
        check_content(content)
    except ValueError as error:
        raise ExportError(f'a value that a pipeline file does not take: {error}') from None
    return content


def as_json(value: Any) -> Any:
    """A value as it is when it has been written and read: tuples are lists."""
    return json.loads(json.dumps(value))


def _classes(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Names and colours of the classes, as far as the data set of the config or its class has them."""
    from mmengine.registry import DATASETS

    kind = registered(DATASETS, dataset.get('type'))
    known = {**(getattr(kind, 'METAINFO', None) or {}), **(dataset.get('metainfo') or {})}
    classes, palette = known.get('classes'), known.get('palette')
    return {
        'classes': [str(name) for name in classes] if isinstance(classes, (list, tuple)) else [],
        'palette': [list(color) for color in palette] if isinstance(palette, (list, tuple)) and palette else None,
    }
