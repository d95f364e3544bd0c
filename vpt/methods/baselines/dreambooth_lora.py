"""DreamBooth, arXiv 2208.12242, with LoRA on the denoiser's attention (through peft): what text to image compares with.

A rare word in front of the kind of thing, such as "sks mug", is what captions say; the words stay as they are, and the
network learns. As in diffusers' script (examples/dreambooth/train_dreambooth_lora.py): updates of queries, keys, values
and outputs of every attention, rank 4, scale alpha / rank = 1, the first factor normal. Differs: the text encoders do
not learn; a prior needs pictures of the class (``beside``), which are not drawn here first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vpt.methods.method import Method
from vpt.methods.textual_inversion import check_word
from vpt.tower import Tower
from vpt.towers.twin import twin

if TYPE_CHECKING:
    from vpt.towers.diffusion import Diffusion

__all__ = ["DreamBoothLoRA", "adapted"]

# what diffusers calls an attention's projections; add_: those of the text in networks that join it to the picture
PROJECTION = re.compile(r"\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$")


class DreamBoothLoRA(Method):
    """No rows; :meth:`learn` makes the network that learns.

    concept: what captions call the thing.  word: what kind of thing it is.  rare: stands in front of it.
    rank: of each update.  alpha: the update is scaled by alpha / rank.
    """

    def __init__(
        self,
        pipeline: Diffusion,
        *,
        concept: str = "my-concept",
        word: str = "thing",
        rare: str = "sks",
        rank: int = 4,
        alpha: int = 4,
    ) -> None:
        super().__init__()
        self.placeholders = {check_word(concept, word): f"{rare} {word}".strip()}
        self.rank, self.alpha = rank, alpha
        _attention(pipeline.denoiser)

    def learn(self, tower: Tower) -> Tower:
        from peft import LoraConfig, inject_adapter_in_model  # seconds to import

        if tower.name != "denoiser":
            return tower
        model: nn.Module = twin(tower.model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=_attention(model),
            init_lora_weights="gaussian",
        )
        model = inject_adapter_in_model(config, model).eval()
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.requires_grad_(True)
        return replace(tower, model=model, learns_from="input")


def adapted(pipeline: Diffusion, method: DreamBoothLoRA, weights: Mapping[str, Tensor]) -> Any:
    """A copy of the library's pipeline whose network has learned ``weights``; its other parts are the same objects.

    weights: as the file has them.  Raises ValueError for those of another network.
    """
    tower = method.learn(pipeline.towers["denoiser"])
    own = {name for name, p in tower.model.named_parameters() if p.requires_grad}
    given = {name.removeprefix("denoiser."): t for name, t in weights.items()}
    if wrong := sorted(own ^ given.keys()):
        raise ValueError(
            f"these weights do not fit {pipeline.name}: {wrong[0]} is in only one of them. Name the pipeline that they "
            "were learned on."
        )
    tower.model.load_state_dict(given, strict=False)
    pipe = copy.copy(pipeline.pipe)
    setattr(pipe, "unet" if hasattr(pipe, "unet") else "transformer", tower.model.requires_grad_(False))
    return pipe


def _attention(model: nn.Module) -> list[str]:
    """Names of the projections of every attention. Raises ValueError where there are none."""
    found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and PROJECTION.search(n)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention with to_q, to_k, to_v to adapt.")
    return found
