"""What "auto" means, and refusals."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch

from vpt.tasks.device import PeakMemory, autocast, resolve_device, resolve_precision


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="no device 'gpu7'"):
        resolve_device("gpu7")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not available"):
            resolve_device("cuda")
        assert resolve_device("auto").type in ("cpu", "mps")


def test_precision_on_the_cpu(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == "32-true"
    with pytest.raises(ValueError, match="Choose auto, float32 or bf16"):
        resolve_precision("fp8", cpu)
    monkeypatch.setattr("vpt.tasks.device.bf16_supported", lambda device: (False, "no AVX512-BF16"))
    assert resolve_precision("auto", cpu) == "32-true"
    with pytest.warns(UserWarning, match="no AVX512-BF16"):
        assert resolve_precision("bf16", cpu) == "bf16-mixed"


def test_autocast_casts_or_not():
    linear, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert linear(x).dtype == dtype


def test_peak_memory_sees_an_allocation():
    memory = PeakMemory(torch.device("cpu"))
    before = memory.mb()
    block = np.ones(30_000_000)  # 240 MB
    assert memory.mb() > before + 200
    del block


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library gives nothing back on demand"
)
def test_what_earlier_runs_freed_is_not_counted():
    first = PeakMemory(torch.device("cpu"))
    blocks = [bytes(2000) for _ in range(150_000)]  # 300 MB in small pieces
    last = blocks[-1]  # holds the heap's end where it is
    high = first.mb()
    del blocks
    assert PeakMemory(torch.device("cpu")).mb() < high - 200
    assert last
