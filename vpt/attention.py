"""What the machine at hand computes fastest: the attention path, bfloat16, and weights kept in it.

PyTorch's fused attention is the right default in float32. In bfloat16 its backward on a CPU takes several
times as long as plain matrix products, on other machines it is the other way round, so the path is chosen by
measurement.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpt.tower import Tower

__all__ = ["attention_path", "bf16_supported", "cast_frozen", "fastest_attention", "fastest_for"]

Path = Literal["default", "math"]
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose weights autocast casts at every use
WORTH = 1.2  # bfloat16 must multiply so many times as fast as float32: casts and attention eat the rest


@contextmanager
def fastest_attention(
    dtype: torch.dtype, device: torch.device | str, *, batch: int, heads: int, length: int, head_width: int
) -> Iterator[Path]:
    """Inside, ``scaled_dot_product_attention`` takes the path that :func:`attention_path` found.

    dtype: what attention computes in; under autocast that is autocast's dtype.
    Yields the path's name. Results agree within the rounding of ``dtype``; nothing stays changed afterwards.
    """
    path = attention_path(dtype, device, batch=batch, heads=heads, length=length, head_width=head_width)
    with _taking(path):
        yield path


def fastest_for(tower: Tower, x: Tensor, dtype: torch.dtype) -> AbstractContextManager[object]:
    """:func:`fastest_attention` for what a tower makes of x: pixels, ids [batch, length], or a sequence on its way up.

    Where nothing is attended to (a closed tower, pooled features) and in float32 it does nothing.
    """
    sequence = x.ndim == 3 or (x.ndim == 2 and not x.is_floating_point())
    if tower.closed or not (sequence or x.ndim == 4):
        return nullcontext()
    length = x.shape[1] if sequence else x.shape[-1] * x.shape[-2] // (tower.patch[0] * tower.patch[1])
    heads = int(tower.traits.get("heads") or 1)
    shape = {"batch": len(x), "heads": heads, "length": length, "head_width": tower.width // heads}
    return fastest_attention(dtype, x.device, **shape)


def attention_path(
    dtype: torch.dtype, device: torch.device | str, *, batch: int, heads: int, length: int, head_width: int
) -> Path:
    """ "default", PyTorch's own choice, or "math", plain matrix products: whichever is faster here.

    Measured once a process for each device, dtype and class of shapes, in a fraction of a second; with the
    backward pass where gradients are enabled. float32 and float64 always take the default.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return "default"
    device = torch.device(device)
    length = -(-length // 64) * 64
    most = max((1 << (19 if device.type == "cpu" else 26)) // length**2, 8)  # keeps the measurement short
    samples = min(1 << (batch * heads - 1).bit_length(), most)
    return _faster_path(str(device), dtype, samples, length, head_width, torch.is_grad_enabled())


@contextmanager
def _taking(path: Path) -> Iterator[None]:
    if path == "default":
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # holds on the CPU too, whatever its name
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


@cache
def _faster_path(
    device: str, dtype: torch.dtype, samples: int, length: int, head_width: int, backward: bool
) -> Path:
    with torch.inference_mode(False), torch.set_grad_enabled(backward), _no_autocast(device):
        # ones, not random numbers: measuring must not move the random state of a run
        shape = (samples, 1, length, head_width)
        q, k, v = (torch.ones(shape, dtype=dtype, device=device, requires_grad=backward) for _ in range(3))

        def attend(path: Path) -> Callable[[], object]:
            def once() -> object:
                with _taking(path):
                    out = F.scaled_dot_product_attention(q, k, v)
                return torch.autograd.grad(out.sum(), (q, k, v)) if backward else out

            return once

        default, math = _seconds([attend("default"), attend("math")], device)
    return "math" if math < default else "default"


def _no_autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(torch.device(device).type, enabled=False)


def _seconds(works: list[Callable[[], object]], device: str, repeats: int = 4) -> list[float]:
    """Least seconds of each work, in turns, so that other load disturbs all alike; the first is warm-up."""
    wait = torch.accelerator.synchronize if torch.device(device).type != "cpu" else nullcontext
    least = [float("inf")] * len(works)
    for turn in range(repeats):
        for i, work in enumerate(works):
            wait()
            start = time.perf_counter()
            work()
            wait()
            if turn:
                least[i] = min(least[i], time.perf_counter() - start)
    return least


def bf16_supported(device: torch.device | str) -> tuple[bool, str]:
    """Does bfloat16 pay on this device, and why or why not (a clause without a full stop).

    On a CPU it must have the instructions and also multiply faster in them than in float32, which some
    processors with AVX512-BF16 do not; that is measured once a process.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, f"{name} computes in bfloat16"
        return False, f"{name} has no bfloat16 units and only emulates it"
    if device.type == "mps":
        if torch.backends.mps.is_macos_or_newer(14, 0):
            return True, "Apple's Metal takes bfloat16 from macOS 14 on"
        return False, "Apple's Metal takes bfloat16 from macOS 14 on, and this one is older"
    if device.type != "cpu":
        return False, f"bfloat16 was never tried on {device.type!r}"
    return _bf16_on_cpu()


def _has_bf16_instructions() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a PyTorch built without oneDNN
        return False


@cache
def _bf16_on_cpu() -> tuple[bool, str]:
    capability = torch.backends.cpu.get_cpu_capability()
    if not _has_bf16_instructions():
        return False, f"this processor ({capability}) has no bfloat16 instructions and only emulates them"
    times = _bf16_speed()
    said = f"this processor ({capability}) multiplies {times:.1f}x as fast in bfloat16 as in float32"
    return times >= WORTH, said


def _bf16_speed() -> float:
    """How many times as fast as in float32 a product of a transformer's size is."""
    x, w = torch.ones(1024, 384), torch.ones(768, 384)

    def product(x: Tensor, w: Tensor) -> Callable[[], object]:
        return lambda: F.linear(x, w)

    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # on a busy machine several threads would measure how long they wait for each other
    try:
        with torch.inference_mode(), _no_autocast("cpu"):
            full, half = _seconds([product(x, w), product(x.bfloat16(), w.bfloat16())], "cpu", repeats=8)
    finally:
        torch.set_num_threads(threads)
    return full / half


def cast_frozen(tower: Tower, dtype: torch.dtype = torch.bfloat16) -> Tower:
    """A twin of a frozen tower, on a copy of its model, with linear and convolution weights in ``dtype``.

    For use under autocast to ``dtype`` only: autocast would cast these weights at every use, and the results
    are equal to the bit. Norms, positions, class tokens and layer scales stay. Take fingerprints of
    the original.
    Raises ValueError for a tower that learns, cannot be opened again, or was given another pooling.
    """
    if tower.learns_from is not None:
        raise ValueError(f"the {tower.name!r} tower learns: weights that learn stay in float32.")
    if tower.reopen is None:
        raise ValueError(f"the {tower.name!r} tower cannot be opened again on a copy of its model.")
    model = copy.deepcopy(tower.model)
    for module in model.modules():
        if isinstance(module, CAST):
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)
    twin = tower.reopen(model)
    if type(twin.steps[-1]) is not type(tower.steps[-1]):
        raise ValueError("cast the tower first, then choose its pooling: cast_frozen(tower).pooling(how).")
    return twin
