"""A folder of class folders, with or without split folders above them."""

from __future__ import annotations

from pathlib import Path

from vpt.data.item import DataError, Files, Item, is_picture, some, split_name


def open_folder(root: Path) -> Files:
    """ROOT/CLASS/**/PICTURE or ROOT/SPLIT/CLASS/**/PICTURE; sorted classes, keys relative to ROOT."""
    found_splits = split_folders(root)
    others = [f.name for f in _folders(root) if split_name(f.name) is None]
    if "all" not in found_splits and others:
        raise DataError(
            f"{root} holds split folders ({some(f.name for f in found_splits.values())}) beside others "
            f"({some(others)}). Keep either splits or classes at the top."
        )
    found = {split: _classes(folder) for split, folder in found_splits.items()}
    _refuse_empty(root, found)
    classes = sorted({name for tree in found.values() for name in tree})
    index = {name: i for i, name in enumerate(classes)}
    parts = {
        split: [
            Item(path.relative_to(root).as_posix(), index[name], str(path))
            for name, paths in tree.items()
            for path in paths
        ]
        for split, tree in found.items()
    }
    return Files(root.resolve().name, tuple(classes), False, parts)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of ROOT named after a split, by split; {"all": ROOT} where there is none. Raises DataError."""
    found: dict[str, Path] = {}
    for folder in _folders(root):
        split = split_name(folder.name)
        if split in found:
            raise DataError(
                f"{root} has two folders for the split {split!r}: {found[split].name} and {folder.name}. "
                "Join them or rename one."
            )
        if split:
            found[split] = folder
    return found or {"all": root}


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _classes(root: Path) -> dict[str, list[Path]]:
    return {
        folder.name: sorted(p for p in folder.rglob("*") if is_picture(p) and p.is_file())
        for folder in _folders(root)
    }


def _refuse_empty(root: Path, found: dict[str, dict[str, list[Path]]]) -> None:
    if not any(paths for tree in found.values() for paths in tree.values()):
        loose = sum(is_picture(p) for p in root.iterdir())
        hint = f" ({loose} lie directly in it, without a class folder)" if loose else ""
        raise DataError(
            f"no pictures in class folders under {root}{hint}. Wanted: {root}/CLASS/PICTURE or "
            f"{root}/train/CLASS/PICTURE, with endings such as .jpg, .png, .webp."
        )
    for split, tree in found.items():
        if not any(tree.values()):
            raise DataError(
                f"the split folder {split!r} of {root} holds no pictures in class folders. Fill or remove it."
            )
        empty = [name for name, paths in tree.items() if not paths]
        if empty:
            raise DataError(
                f"{len(empty)} class folder(s) of {root} ({split}) hold no pictures: {some(empty)}. "
                "Add pictures, or remove the folders."
            )
