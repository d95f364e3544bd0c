"""Rewards by their names: likeness to words or to a picture, and callables by their import path."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from vpt.data.images import decode
from vpt.objectives.reward import Judge, Likeness
from vpt.towers.backbone import Backbone
from vpt.towers.load import load

__all__ = ["judge_of"]

KINDS = "clip-text (likeness to the prompt), clip-text:WORDS, clip-image:FILE, or module:callable"


def judge_of(name: str, backbone: str) -> Judge:
    """The reward of a name: ``clip-text``, ``clip-text:WORDS``, ``clip-image:FILE``, or ``module:callable``.

    backbone: name of the network whose features compare, for the first three; it needs a text tower for words.
    A module is looked for in Python's path, then in the folder that Python runs in.
    Raises ValueError for a name that is none, FileNotFoundError for a picture that is not there.
    """
    kind, _, rest = name.partition(":")
    if kind == "clip-text":
        return Likeness(_clip(backbone), rest)
    if kind == "clip-image" and rest:
        if not os.path.isfile(rest):
            raise FileNotFoundError(f"reward={name!r}: there is no picture {rest!r}.")
        return Likeness(_clip(backbone), picture=decode(rest))
    if not (kind and rest):
        raise ValueError(f"reward={name!r} is none. Wanted: {KINDS}.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = import_module(kind)
        for part in rest.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward={name!r} cannot be imported: {error}. Wanted: {KINDS}.") from error
    if not callable(found):
        raise ValueError(
            f"reward={name!r} is a {type(found).__name__}. Wanted a callable of pictures [batch, 3, height, width] in "
            "[0, 1] and their prompts, which gives a number each."
        )
    return found


def _clip(name: str) -> Backbone:
    found = load(name)
    if found.draws:
        raise ValueError(
            f"judge={name!r} draws pictures and has no features of them. Give a CLIP, such as starter/clip-mini or "
            "open_clip/ViT-B-16:openai."
        )
    return found
