"""Open a source of labelled pictures by the string that names it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vpt.data.item import DataError, Files, Item, Source

__all__ = ["DataError", "Files", "Item", "Source", "cache_folder", "open_source"]

KINDS = (
    "a folder of class folders, a .csv or .parquet manifest, WebDataset shards "
    "(DIR, 'train-{000000..000007}.tar', 'shards/*.tar.gz', URLs), torchvision:NAME, coop:NAME with the root "
    "that holds the sets of the CoOp line of work, digits, emoji, or scenes"
)


def cache_folder(root: str | Path | None = None) -> Path:
    """Where downloads and indexed shards are kept: ``root``, else $VPT_CACHE, else ~/.cache/vpt."""
    return Path(root or os.environ.get("VPT_CACHE") or Path.home() / ".cache" / "vpt")


def open_source(data: str | Path, root: str | Path | None = None) -> Source:
    """The source that ``data`` names; raises DataError when there is none, or when it is empty.

    root: folder for downloads and indexed shards, see ``cache_folder``; for coop:NAME the folder that holds
    ``caltech-101/`` and the like.
    """
    text, path = str(data), Path(data)
    if text == "digits" and not path.exists():
        from vpt.data.bundled import Digits

        return Digits()
    if text.startswith("torchvision:"):
        from vpt.data.bundled import TorchVision

        return TorchVision(text.removeprefix("torchvision:"), cache_folder(root) / "torchvision")
    if text.startswith("coop:"):
        from vpt.data.coop import open_coop

        return open_coop(text.removeprefix("coop:"), root)
    if (text == "scenes" and not path.exists()) or text.startswith("scenes:"):
        from vpt.data.scene_source import open_scenes

        return open_scenes(text)
    if text == "emoji" and not path.exists():
        return open_source(Path(__file__).parent / "emoji")
    if path.suffix.lower() in (".csv", ".parquet"):
        from vpt.data.manifest import open_manifest

        return open_manifest(path)
    if shards := as_shards(data):
        from vpt.data.shards import open_shards

        return open_shards(shards, cache_folder(root) / "shards")
    if path.is_dir():
        from vpt.data.folder import open_folder

        return open_folder(path)
    raise DataError(f"no data at {text!r}. Wanted: {KINDS}.")


def as_shards(data: str | Path) -> str | list[str] | None:
    """The shards that ``data`` names: its own text where it is a pattern, the sorted files of a folder that holds
    SPLIT-NNNNNN.tar or SPLIT-NNNNNN.tar.gz (five digits at least), or None."""
    text, path = str(data), Path(data)
    if path.is_dir():
        names = [name for name in os.listdir(path) if re.fullmatch(r".+-\d{5,}\.tar(\.gz)?", name)]
        return sorted(str(path / name) for name in names) or None
    return text if ".tar" in text or "::" in text else None
