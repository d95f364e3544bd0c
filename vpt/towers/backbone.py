"""What a user names and downloads: frozen towers with their preprocessing and, for two towers, their tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from vpt.promptset import fingerprint
from vpt.text import Sentence
from vpt.tower import Tower
from vpt.towers.tokens import Tokens

__all__ = ["Backbone"]


@dataclass(frozen=True)
class Backbone:
    """Frozen towers and what is needed to feed them.

    preprocessing: timm's data config of these weights: input_size (channels, height, width), interpolation,
        mean, std, crop_pct, crop_mode. Part of the image tower's fingerprint.
    library: the distribution whose modules the towers call.
    tokenizer: makes the tokenizer when it is first needed (some are fetched from a hub); None without a text tower.
    scale, bias: of logits between pictures and texts, scale * cosine + bias.
    draws: it is a diffusion pipeline, which draws pictures and has no features of them.
    """

    draws: ClassVar[bool] = False

    name: str
    towers: dict[str, Tower]
    preprocessing: Mapping[str, Any]
    library: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[], Tokens] | None = None
    scale: float = 1.0
    bias: float = 0.0

    @property
    def image(self) -> Tower:
        """The image tower."""
        return self.towers["image"]

    @property
    def text(self) -> Tower:
        """The text tower. Raises ValueError where there is none."""
        if "text" not in self.towers:
            raise ValueError(
                f"{self.name} has no text tower, so nothing can be named by words. Choose a CLIP, such as "
                "open_clip/ViT-B-16:openai or starter/clip-mini."
            )
        return self.towers["text"]

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer. Raises ValueError without a text tower, OSError where a hub cannot be reached."""
        _ = self.text
        if self.tokenizer is None:
            raise ValueError(f"{self.name} comes without a tokenizer, so it reads no sentences.")
        return self.tokenizer()

    def sentences(self, template: str, names: Sequence[str], *, grouped: bool = False) -> list[Sentence]:
        """One sentence a name; grouped: each has rows of its own (class-specific)."""
        tokens = self.tokens
        return [tokens.sentence(template, name, k if grouped else 0) for k, name in enumerate(names)]

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL picture to a normalised [3, height, width], as the weights were evaluated."""
        return create_transform(**self.preprocessing, is_training=False)

    @property
    def logits(self) -> Callable[..., Tensor]:
        """The network's own classifier, of the stream at "normed"; None where it has none."""
        return self.image.logits  # type: ignore[return-value]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the towers, by name; hashed once, since the weights are frozen. A file is checked against them anew."""
        return {
            n: fingerprint(t, self.preprocessing if n == "image" else None) for n, t in self.towers.items()
        }

    @cached_property
    def states(self) -> dict[str, str]:
        """Fingerprints of the text towers' states, which a CLIP and a diffusion pipeline may have in common."""
        texts = {n: t for n, t in self.towers.items() if t.name.startswith("text")}
        return {n: fingerprint(t, states=True) for n, t in texts.items()}

    def label(self) -> dict[str, Any]:
        """What a prompt set says of its backbone: name, options, fingerprints, library versions."""
        libraries = {lib: version(lib) for lib in ("torch", self.library)}
        told = {"fingerprints": dict(self.fingerprints), "states": self.states}
        return {"name": self.name, **self.options, **told, "libraries": libraries}
