"""Other tools' prompt files become prompt sets, and embeddings files the other way. Nothing in them is executed."""

from vpt.importers.checkpoint import read_checkpoint
from vpt.importers.clip import import_clip_prompts
from vpt.importers.dassl import read_dassl
from vpt.importers.embeddings import read_embeddings
from vpt.importers.embeddings_out import write_embeddings
from vpt.importers.kmnp import import_prompts, read_vpt_checkpoint
from vpt.importers.lora_out import write_lora

__all__ = ["import_clip_prompts", "import_prompts", "read_checkpoint", "read_dassl", "read_embeddings"]
__all__ += ["read_vpt_checkpoint", "write_embeddings", "write_lora"]
