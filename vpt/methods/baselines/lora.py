"""LoRA, arXiv 2106.09685, through peft: low-rank updates of the attention's projections, and a head.

peft puts its layers into a copy of the network; the copy's own weights stay frozen.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.baselines.weights import lowest_stage
from vpt.methods.method import Method
from vpt.tower import Tower

__all__ = ["LoRA"]

PROJECTIONS = {
    "qkv": ("qkv", "q_proj", "k_proj", "v_proj"),
    "proj": ("proj",),
    "qkv+proj": ("qkv", "q_proj", "k_proj", "v_proj", "proj"),
}


class LoRA(Method):
    """No rows; :meth:`learn` makes the copy that learns.

    rank: of each update.  alpha: the update is scaled by alpha / rank.
    dropout: on the update's input, while training.
    targets: the projections to queries, keys and values, the one behind the attention, or both.
    Raises ValueError, before data are read, for networks without such layers.
    """

    def __init__(
        self,
        image: Tower,
        *,
        rank: int = 8,
        alpha: int = 16,
        dropout: float = 0.0,
        targets: Literal["qkv", "proj", "qkv+proj"] = "qkv",
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.targets = _targets(image.model, PROJECTIONS[targets])

    def learn(self, image: Tower) -> Tower:
        from peft import LoraConfig, inject_adapter_in_model  # seconds to import

        if image.reopen is None:
            raise ValueError(f"the {image.name!r} tower cannot be opened again on a copy of its model.")
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.targets)
        model = inject_adapter_in_model(config, copy.deepcopy(image.model))
        for target in self.targets if self.dropout else ():
            layer: Any = model.get_submodule(target)
            layer.lora_dropout["default"] = _Dropout(self.dropout, self)
        twin = image.reopen(model)
        for name, p in model.named_parameters():
            p.requires_grad_("lora_" in name)
        return replace(twin, learns_from=lowest_stage(image, self.targets))


class _Dropout(nn.Module):
    """Dropout that is on while the method trains: the copy itself stays in evaluation mode, as networks here
    do."""

    def __init__(self, p: float, method: nn.Module) -> None:
        super().__init__()
        self.p = p
        self.owner = (method,)  # in a tuple: nn.Module registers modules only

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.owner[0].training)


def _targets(model: nn.Module, projections: tuple[str, ...]) -> list[str]:
    """Full names of the attention's linear layers that an adapter can take the place of."""
    modules: dict[str, Any] = dict(model.named_modules())
    found = []
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if type(module) is not nn.Linear or last not in projections or not parent.endswith("attn"):
            continue
        a = modules[parent]
        if (
            last == "qkv"
            and getattr(a, "q_bias", None) is not None
            and not getattr(a, "qkv_bias_separate", False)
        ):
            raise ValueError(
                f"{type(model).__name__} reads the weight of {name} without calling the layer, so an adapter "
                "there would never be used. Give targets='proj'."
            )
        found.append(name)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention layer {' or '.join(projections)} to adapt."
        )
    return found
