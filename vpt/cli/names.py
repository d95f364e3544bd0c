"""Class names and counts as they are typed."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["class_names", "positive"]


def class_names(given: str) -> list[str]:
    """The lines of a file, or words between commas. Raises FileNotFoundError for what is neither."""
    if Path(given).is_file():
        return [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    if Path(given).suffix or "," not in given:
        raise FileNotFoundError(
            f"there is no file of class names {given!r}. Give one, or the names as a,b,c."
        )
    return [name.strip() for name in given.split(",")]


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)
