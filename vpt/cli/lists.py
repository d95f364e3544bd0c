"""``vpt methods`` and ``vpt models``: what there is."""

from __future__ import annotations

import argparse
from fnmatch import fnmatch

from vpt.methods import METHODS

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Print one of the lists."""
    parser = argparse.ArgumentParser(prog=f"vpt {command}")
    if command == "models":
        parser.add_argument("pattern", nargs="?", default="", help="of names, such as '*dinov2*' or 'ViT-B*'")
        parser.add_argument("--all", action="store_true", help="every architecture, with weights or without")
    args = parser.parse_args(argv)
    if command == "methods":
        rows = [
            (
                name,
                "baseline" if e.baseline else e.sites.replace(" ", " + "),
                e.paper and f"arXiv {e.paper}",
                e.summary,
            )
            for name, e in METHODS.items()
        ]
        widths = [max(len(row[i]) for row in rows) + 2 for i in range(3)]
        for row in rows:
            print("".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)) + row[3])
        return
    import open_clip
    import timm

    pattern = args.pattern
    names = [f"timm/{name}" for name in timm.list_models(pattern, pretrained=not args.all)]
    pairs = [(name, "") for name in open_clip.list_models()] if args.all else open_clip.list_pretrained()
    clips = [f"open_clip/{name}{':' * bool(tag)}{tag}" for name, tag in pairs]
    names += [name for name in clips if not pattern or _fits(name.removeprefix("open_clip/"), pattern)]
    if not names:
        raise ValueError(
            f"neither timm nor open_clip has a model like {pattern!r}. Try --all, or a pattern such as '*vit*'."
        )
    if not pattern:
        print("starter/vit-mini    comes with this package, 96 px, 3.4 M parameters, no network needed")
        print("starter/clip-mini   comes with this package: the same with a small text tower")
        print("starter/sd-mini     comes with this package: draws pictures of 64 px from words")
        print("hf/REPO             transformers' ViT, DINOv2, CLIP and SigLIP")
        print("diffusers/REPO      text-to-image pipelines; a folder in diffusers' format, too")
    print("\n".join(names))


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name with its tag, or without."""
    return fnmatch(name, pattern) or fnmatch(name.partition(":")[0], pattern)
