"""``vpt methods`` and ``vpt models``: what there is."""

from __future__ import annotations

import argparse

from vpt.methods import METHODS

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Print one of the lists."""
    parser = argparse.ArgumentParser(prog=f"vpt {command}")
    if command == "models":
        parser.add_argument("pattern", nargs="?", default="", help="of timm's names, such as '*dinov2*'")
        parser.add_argument("--all", action="store_true", help="every architecture, with weights or without")
    args = parser.parse_args(argv)
    if command == "methods":
        for name, entry in METHODS.items():
            kind = "baseline" if entry.baseline else entry.sites
            paper = f"arXiv {entry.paper}" if entry.paper else ""
            print(f"{name:<14}{kind:<20}{paper:<18}{entry.summary}")
        return
    import timm

    names = timm.list_models(args.pattern, pretrained=not args.all)
    if not names:
        raise ValueError(f"timm has no model like {args.pattern!r}. Try --all, or a pattern such as '*vit*'.")
    if not args.pattern:
        print("starter/vit-mini    comes with this package, 96 px, 3.4 M parameters, no network needed")
    for name in names:
        print(f"timm/{name}")
