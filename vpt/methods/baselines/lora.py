"""LoRA, arXiv 2106.09685, through peft: low-rank updates of the attention's projections, and a head or class names.

peft puts its layers into a copy of the network; the copy's own weights stay frozen.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.baselines.split import in_blocks, split_attention
from vpt.methods.baselines.weights import lowest_stage
from vpt.methods.method import Method
from vpt.tower import Tower

__all__ = ["LoRA", "adaptable"]

QKV = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v")
HOLDERS = ("attn", "attention", "self")  # what the attention is called, in small letters
PROJECTIONS = {
    "qkv": QKV,
    "proj": ("proj", "out_proj", "o_proj"),
    "qkv+proj": (*QKV, "proj", "out_proj", "o_proj"),
}
SPLIT = ("q_proj", "k_proj", "v_proj", "out_proj")  # what torch's attention is taken apart to


class LoRA(Method):
    """No rows; :meth:`learn` makes the copy that learns.

    rank: of each update.  alpha: the update is scaled by alpha / rank.
    dropout: on the update's input, while training.
    targets: the projections to queries, keys and values, the one behind the attention, or both.
    Raises ValueError, before data are read, for networks without such layers.
    """

    rank_stable: bool = False
    """Scale by alpha / sqrt(rank)."""

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
        self.projections = PROJECTIONS[targets]
        adaptable(image.model, self.projections)

    def learn(self, tower: Tower) -> Tower:
        from peft import LoraConfig, inject_adapter_in_model  # seconds to import

        if tower.reopen is None:
            raise ValueError(f"the {tower.name!r} tower cannot be opened again on a copy of its model.")
        targets = adaptable(tower.model, self.projections)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets,
            use_rslora=self.rank_stable,
        )
        model = inject_adapter_in_model(config, split_attention(copy.deepcopy(tower.model)))
        for target in targets if self.dropout else ():
            layer: Any = model.get_submodule(target)
            layer.lora_dropout["default"] = _Dropout(self.dropout, self)
        twin = tower.reopen(model)
        for name, p in model.named_parameters():
            p.requires_grad_("lora_" in name)
        return replace(twin, learns_from=lowest_stage(tower, targets))


class _Dropout(nn.Module):
    """Dropout that is on while the method trains: the copy itself stays in evaluation mode, as networks here
    do."""

    def __init__(self, p: float, method: nn.Module) -> None:
        super().__init__()
        self.p = p
        self.owner = (method,)  # in a tuple: nn.Module registers modules only

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.owner[0].training)


def adaptable(model: nn.Module, projections: tuple[str, ...]) -> list[str]:
    """Full names of the attention's linear layers that an adapter can take the place of, once torch's attention is
    split; raises ValueError where there are none."""
    modules: dict[str, Any] = dict(model.named_modules())
    found = [f"{name}.{part}" for name in in_blocks(model) for part in SPLIT if part in projections]
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        holder = parent.rpartition(".")[2]
        if type(module) is not nn.Linear or last not in projections or not holder.lower().endswith(HOLDERS):
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
            f"{type(model).__name__} has no attention layer {' or '.join(projections[:4])} to adapt."
        )
    return found
