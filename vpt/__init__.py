"""vpt: learn prompts for frozen vision models.

Learned rows join a token sequence of a frozen network at a named site, and only the rows learn. Everything
here is loaded when it is first used: ``import vpt`` takes milliseconds and imports no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpt.encode import encode, tap
    from vpt.hub import pull, push
    from vpt.methods import methods
    from vpt.prompt import Context, Prompt, Site
    from vpt.promptset import PromptSet
    from vpt.tasks.tune import tune
    from vpt.tasks.tuned import Tuned, load_prompts
    from vpt.towers.backbone import Backbone
    from vpt.towers.load import load

_HOMES = {
    "Backbone": "vpt.towers.backbone",
    "Context": "vpt.prompt",
    "Prompt": "vpt.prompt",
    "PromptSet": "vpt.promptset",
    "Site": "vpt.prompt",
    "Tuned": "vpt.tasks.tuned",
    "encode": "vpt.encode",
    "load": "vpt.towers.load",
    "load_prompts": "vpt.tasks.tuned",
    "methods": "vpt.methods",
    "pull": "vpt.hub",
    "push": "vpt.hub",
    "tap": "vpt.encode",
    "tune": "vpt.tasks.tune",
}

__all__ = [
    "Backbone",
    "Context",
    "Prompt",
    "PromptSet",
    "Site",
    "Tuned",
    "encode",
    "load",
    "load_prompts",
    "methods",
    "pull",
    "push",
    "tap",
    "tune",
]


class _Face(ModuleType):
    """``encode`` and ``methods`` name functions here and modules below: importing those must not hide these."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vpt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
