"""Class names as they are typed."""

from __future__ import annotations

from pathlib import Path

__all__ = ["class_names"]


def class_names(given: str) -> list[str]:
    """The lines of a file, or words between commas. Raises FileNotFoundError for what is neither."""
    if Path(given).is_file():
        return [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    if Path(given).suffix or "," not in given:
        raise FileNotFoundError(
            f"there is no file of class names {given!r}. Give one, or the names as a,b,c."
        )
    return [name.strip() for name in given.split(",")]
