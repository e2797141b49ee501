"""Build the runner of a config."""

from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config_parts import class_name


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def build_plain_runner(cfg: Config) -> Runner:
    """Build a runner that has model and data at hand, which a FlexibleRunner builds only when it starts."""
    if class_name(cfg.get('runner_type')) == 'FlexibleRunner':
        for key in ('runner_type', 'strategy'):
            cfg.pop(key, None)
    return build_runner(cfg)


def add_hook(cfg: Config, **hook: Any) -> None:
    """Append a hook to the config's ``custom_hooks``."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
