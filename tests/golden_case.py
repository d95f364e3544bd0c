"""Cases recorded from the original authors' code: the folder, the tensors of a case, the tolerances.

The folder is the one that the environment variable ``VPT_GOLDEN`` names, else ``tests/golden``.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("VPT_GOLDEN") or Path(__file__).parent / "golden")
FILES = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}
CASES = {name: case for name, case in FILES.items() if "case" in case}
SCHEDULES = FILES.get("lr-schedules", {}).get("schedules", [])

# the tolerances of the recording: absolute, for gradients times the largest value of the tensor
OUT, STEP1, LOSSES, FINAL, FINAL_LOGITS = 5e-5, 1e-6, 5e-5, 2e-5, 3e-4

VIT = ("ViT, no prompts (check this first)", "VPT")


class Golden:
    """The tensors of a case by key."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.entries = case["tensors"]
        self.files = {e["file"]: load_file(FOLDER / e["file"]) for e in self.entries.values()}

    def __getitem__(self, key: str) -> Tensor:
        entry = self.entries[key]
        return self.files[entry["file"]][entry["name"]]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): self[k] for k in self.entries if k.startswith(prefix)}


def close(got: Tensor, wanted: Tensor, atol: float, what: str) -> None:
    torch.testing.assert_close(got.detach(), wanted, rtol=0, atol=atol, msg=lambda m: f"{what}: {m}")
