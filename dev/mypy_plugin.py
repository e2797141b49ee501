"""For mypy: what a module holds under a name that no class declares may be anything.

torch declares ``nn.Module.__getattr__`` as a tensor or a module, so every attribute that is set on a module from
outside, and every layer reached through a model, would need a cast. Attributes that a class declares are checked as
they are.
"""

from typing import Callable, Optional

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny

MODULE = 'torch.nn.modules.module.Module.'


class ModuleAttributes(Plugin):
    def get_attribute_hook(self, fullname: str) -> Optional[Callable[[AttributeContext], Type]]:
        return _anything if fullname.startswith(MODULE) else None


def _anything(context: AttributeContext) -> Type:
    declared = context.default_attr_type
    return AnyType(TypeOfAny.special_form) if 'Tensor' in str(declared) and 'Module' in str(declared) else declared


def plugin(version: str) -> type[Plugin]:
    return ModuleAttributes
