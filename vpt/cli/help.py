"""Help for options that are arguments of classes and functions: what their docstrings say of each."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentParser

__all__ = ["describe", "said"]


def said(made: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The summary of a docstring, and what it says of each argument, written ``name: text`` or ``a, b: text``."""
    names = "|".join(map(re.escape, inspect.signature(made).parameters))
    doc = re.sub(r"\s*\(:\w+:`[^`]*`\)", "", inspect.getdoc(made) or "")  # links of Sphinx
    summary = " ".join(doc.split("\n\n")[0].split())
    if not names:
        return summary, {}
    starts = list(re.finditer(rf"(?:^|(?<=\s))((?:{names})(?:, (?:{names}))*): ", doc))
    ends = [*(m.start() for m in starts[1:]), len(doc)]
    found: dict[str, str] = {}
    for m, end in zip(starts, ends, strict=False):
        text = re.split(r"\n\s*\n|\s(?=Raises |Returns )", doc[m.end() : end])[0]
        found |= dict.fromkeys(m[1].split(", "), " ".join(text.split()))
    return summary, found


def describe(
    parser: ArgumentParser, made: Mapping[str, Callable[..., Any]], short: Mapping[str, str] | None = None
) -> None:
    """Put the docstrings into a parser that is about to print its help.

    made: by section ("" for options without one), what its options are arguments of.
    short: short names to full ones, shown in brackets.
    """
    shorter = {full: name.replace("_", "-") for name, full in (short or {}).items()}
    texts: dict[str, str] = {}
    for section, thing in made.items():
        summary, found = said(thing)
        texts |= {f"{section}.{name}" if section else name: text for name, text in found.items()}
        if group := (parser.groups or {}).get(section):
            group.title, group.description = section, summary
    for action in parser._actions:
        if action.dest in made:  # a file for one section: --config does it for all
            action.help = argparse.SUPPRESS
            continue
        text = texts.get(action.dest) or action.help or ""
        action.help = f"[--{shorter[action.dest]}] {text}" if action.dest in shorter else text
