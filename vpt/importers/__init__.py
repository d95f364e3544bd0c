"""Other tools' prompt files become prompt sets. Nothing in them is executed."""

from vpt.importers.checkpoint import read_checkpoint
from vpt.importers.kmnp import import_prompts, read_vpt_checkpoint

__all__ = ["import_prompts", "read_checkpoint", "read_vpt_checkpoint"]
