"""Find the optimizers of a runner."""

from mmengine.optim import OptimWrapperDict


def optimizers_of(runner) -> list:
    """All torch optimizers of a runner."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [w.optimizer for w in wrappers]
