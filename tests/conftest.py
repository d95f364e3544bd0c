"""What every test shares: no network, one thread, one arithmetic, and the smallest networks there are."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # all before any library reads them
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# threads that wait by spinning made this suite 6 times slower beside other work on the machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vpt.tower import Tower
from vpt.towers.backbone import Backbone

torch.set_num_threads(1)  # tiny networks: two threads wait for each other longer than they work
torch.set_float32_matmul_precision("highest")
# nn.MultiheadAttention without autograd takes another path, 2e-6 away: equality tests compare like with like
torch.backends.mha.set_fastpath_enabled(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _shaken(model: nn.Module, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.ndim > 1 else 25
            p.add_(torch.randn(p.shape, generator=generator) * scale / fan**0.5)
    return model


@pytest.fixture(scope="session")
def shaken() -> Callable[..., nn.Module]:
    """shaken(model): the model with weights large enough that every token matters to the output.

    Libraries start at 0.02, where the class token alone decides and a wrong row would hardly be seen.
    """
    return _shaken


@pytest.fixture(scope="session")
def tower() -> Tower:
    """A ViT of random weights, 32 px, patch 8, 32 wide, 3 deep, class token pooling. Frozen: share it."""
    from vpt.towers.vit import tiny  # here, so that a test without networks waits for no import of timm

    opened = tiny()
    _shaken(opened.model)
    return opened


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Three pictures [3, 3, 32, 32]."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny_clip() -> Backbone:
    """A CLIP of random weights, 32 px, patch 8, towers 32 and 24 wide and 3 deep, CLIP's words. Frozen: share it."""
    import open_clip  # here, so that a test without it does not wait for it

    from vpt.towers.load_clip import backbone_of

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.model.CLIP(
            16,
            vision_cfg=open_clip.model.CLIPVisionCfg(
                layers=3, width=32, head_width=16, patch_size=8, image_size=32
            ),
            text_cfg=open_clip.model.CLIPTextCfg(width=24, heads=2, layers=3),
        )
    model.visual.preprocess_cfg = {"size": 32}
    return backbone_of(_shaken(model, 0.5), "open_clip/tiny", "ViT-B-32")


COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


NEEDED = {"zero-shot-descriptions": {"descriptions": {name: [f"it is {name}."] for name in COLOURS}}}


@pytest.fixture(scope="session")
def needed() -> Callable[[str], dict[str, object]]:
    """needed(method): the options that it cannot do without, for pictures of ``paint``."""
    return lambda name: NEEDED.get(name, {})


def _paint(
    root: Path, counts: Mapping[str, int], noise: int, colours: Mapping[str, tuple[int, int, int]] = COLOURS
) -> Path:
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name, colour in colours.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture = (np.array(colour) + rng.integers(-noise, noise, (32, 32, 3))).clip(0, 255)
                Image.fromarray(picture.astype("uint8")).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def paint() -> Callable[..., Path]:
    """paint(root, {"train": 12}, noise): 12 noisy pictures a colour as ROOT/train/COLOUR/0.png ..., 32 px."""
    return _paint


def _tell(root: Path) -> Path:
    for picture in sorted(root.rglob("*.png")):
        colour, number = picture.parent.name, int(picture.stem)
        told = [f"number {number} in {colour}", f"something {colour}", f"{colour} with noise, the {number}th"]
        picture.with_suffix(".txt").write_text("\n".join(told))
    return root


@pytest.fixture(scope="session")
def tell() -> Callable[[Path], Path]:
    """tell(root): three captions beside every picture of ``paint``; one is true of all pictures of a colour."""
    return _tell
