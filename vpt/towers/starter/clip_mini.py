"""clip-mini: an open_clip CLIP whose image tower is vit-mini with its last three blocks trained further.

Its file holds what vit-mini's does not; the rest is read from vit-mini's. See CARD-clip-mini.md.
"""

from pathlib import Path
from typing import Any

from open_clip import SimpleTokenizer
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from safetensors.torch import load_file
from torch import Tensor

from vpt.towers.starter import vit_mini as trunk

__all__ = [
    "PREPROCESSING",
    "WIDTH",
    "clip_mini",
    "clip_mini_tokenizer",
    "load_clip_mini",
    "owns",
    "shared_weights",
]

WEIGHTS = Path(__file__).with_name("clip-mini.safetensors")
MERGES = Path(__file__).with_name("clip-mini-merges.txt.gz")

WIDTH = 384  # of the joint space, which is that of all-MiniLM-L6-v2
FROZEN_BLOCKS = 3  # of vit-mini's six: these, and what lies below them, are vit-mini's to the bit
PREPROCESSING: dict[str, Any] = {
    "input_size": [3, 96, 96],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def clip_mini_tokenizer() -> SimpleTokenizer:
    """CLIP's byte pairs cut to its first 7,486 merges: 8,000 entries, the end token has the highest id.

    A word whose merges are all among them has the pieces that CLIP gives it; a rarer one has more.
    """
    return SimpleTokenizer(str(MERGES))


def clip_mini() -> CLIP:
    """clip-mini with random weights: pictures [B, 3, 96, 96] in [-1, 1], ids [B, 77], features [B, 384]."""
    vision = CLIPVisionCfg(
        timm_model_name=trunk.vit_mini.__name__, timm_pool="token", timm_proj="linear", image_size=96
    )
    text = CLIPTextCfg(context_length=77, vocab_size=8000, width=256, heads=4, layers=4, mlp_ratio=2.0)
    model = CLIP(WIDTH, vision, text)
    preprocess = {"size": 96, "mean": PREPROCESSING["mean"], "std": PREPROCESSING["std"], "mode": "RGB"}
    set_model_preprocess_cfg(model, preprocess | {"interpolation": "bicubic", "resize_mode": "shortest"})
    return model


def owns(name: str) -> bool:
    """Whether clip-mini's file holds the tensor of this name; of others, vit-mini's does."""
    if not name.startswith("visual.trunk."):
        return True
    part, _, rest = name.removeprefix("visual.trunk.").partition(".")
    return part == "norm" or (part == "blocks" and int(rest.partition(".")[0]) >= FROZEN_BLOCKS)


def shared_weights() -> dict[str, Tensor]:
    """What clip-mini has in common with vit-mini, float16. Raises FileNotFoundError."""
    _check(trunk.WEIGHTS)
    theirs = {f"visual.trunk.{name}": t for name, t in load_file(trunk.WEIGHTS).items()}
    return {name: t for name, t in theirs.items() if not owns(name) and ".head." not in name}


def load_clip_mini(weights: Path | None = None) -> tuple[CLIP, SimpleTokenizer, dict[str, Any]]:
    """The trained model in evaluation mode and float32, its tokenizer, and how pictures are prepared.

    The last is timm's data config: input_size, interpolation, mean, std, crop_pct, crop_mode.
    weights: another file in place of the package's. Every tensor has its place and every place its tensor,
    else RuntimeError. Raises FileNotFoundError if the package came without its files.
    """
    for file in (weights or WEIGHTS, MERGES):
        _check(file)
    model = clip_mini()
    counters = {n: t for n, t in model.state_dict().items() if n.endswith("num_batches_tracked")}
    state = {n: t.float() for n, t in (shared_weights() | load_file(weights or WEIGHTS)).items()}
    model.load_state_dict(state | counters)
    return model.eval(), clip_mini_tokenizer(), dict(PREPROCESSING)


def _check(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"a file of starter clip-mini is not at {file}. It is part of the package: install it again, or "
            "check the repository out with this file."
        )
