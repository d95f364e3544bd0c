"""Where and in which precision: what "auto" means, and what it costs in memory."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vpt.attention import bf16_supported

__all__ = ["Machine", "PeakMemory", "autocast", "resolve_device", "resolve_precision"]

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Machine:
    """Where and how a run happens, apart from what it computes.

    out: folder for the prompt file, logs and checkpoints; None keeps everything in memory.
    device: auto, cpu, cuda, cuda:N, mps.  precision: auto, float32, bf16.
    progress: show bars and what was found.  resume: go on where a killed run in ``out`` stopped.
    cache: folder where static parts of pictures (features of a tower without rows) are kept for other runs too.
    sample_every: epochs between pictures that text to image draws in ``out``/samples, 0 for none.  sample_prompts: what
        they show; by default two sentences with the placeholder.
    checkpoint_every: steps between checkpoints.  trainer: further options of Lightning's Trainer (devices, strategy).
    """

    out: str | None = None
    device: str = "auto"
    precision: str = "auto"
    progress: bool = True
    resume: bool = True
    cache: str | None = None
    checkpoint_every: int = 50
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    trainer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.sample_every < 0 or (self.sample_every and self.out is None):
            raise ValueError(
                f"sample_every={self.sample_every} draws into the folder of the run, out={self.out}. Give 0 or more, "
                "and a folder."
            )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA, then Apple's MPS, then the CPU. Raises ValueError for a device that is not there."""
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"no device {device!r}. Choose auto, cpu, cuda, cuda:N or mps.") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(found.type, False):
        raise ValueError(f"device {device!r} is not available on this machine. Choose auto or cpu.")
    return found


def resolve_precision(precision: str, device: torch.device) -> str:
    """Lightning's name: "auto" is bf16 where the hardware computes in it, else float32; rows stay float32 in both."""
    if precision == "auto":
        return PRECISIONS["bf16" if bf16_supported(device)[0] else "float32"]
    if precision not in PRECISIONS:
        raise ValueError(f"no precision {precision!r}. Choose auto, float32 or bf16.")
    supported, why = bf16_supported(device)
    if precision == "bf16" and not supported:
        warnings.warn(f"bf16 will be slow here: {why}. float32 is the better choice.", stacklevel=2)
    return PRECISIONS[precision]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context that a pass at this precision runs in."""
    return torch.autocast(device.type, torch.bfloat16) if precision.startswith("bf16") else nullcontext()


class PeakMemory:
    """Highest memory since it was made, in MB: the allocator's on CUDA, else the resident set of this process.

    What earlier runs in this process freed is given back to the system first, where the C library can (glibc).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resettable = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            gc.collect()
            with suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            try:  # Linux forgets the high-water mark when 5 is written here (proc(5))
                Path("/proc/self/clear_refs").write_text("5")
                self.resettable = True
            except OSError:
                pass

    def mb(self) -> float:
        """Peak in MB (10^6 bytes)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if self.resettable:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
