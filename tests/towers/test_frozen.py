"""Frozen convolutions that keep no input: the same results to the bit, and less that is kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from pipelines import shared
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vpt.towers.frozen import forgetful

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": (1, 0), "bias": False},
    {"kernel_size": 2, "dilation": 2, "groups": 4},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


def _through(
    network: Callable[[Tensor], Tensor], x: Tensor, around: AbstractContextManager[None]
) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    """The output, the gradient of x, and the shapes of what was kept in between."""
    kept: list[tuple[int, ...]] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(tuple(t.shape))
        return t

    x = x.detach().requires_grad_()
    with around, saved_tensors_hooks(keep, lambda t: t):
        y = network(x)
    (grad,) = torch.autograd.grad(y.float().square().sum(), x)
    return y, grad, kept


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_frozen_convolution_is_the_library_s(options: dict[str, Any], layout: torch.memory_format) -> None:
    conv = nn.Conv2d(4, 8, **options).requires_grad_(False)
    x = torch.randn(2, 4, 9, 9).to(memory_format=layout)
    want, mine = _through(conv, x, nullcontext()), _through(conv, x, forgetful(conv))
    assert torch.equal(mine[0], want[0])
    assert torch.equal(mine[1], want[1])
    if options.get("padding") != "same" and "padding_mode" not in options:
        assert tuple(x.shape) in want[2]
        assert tuple(x.shape) not in mine[2]


def test_bfloat16_is_that_of_autocast() -> None:
    conv = nn.Conv2d(4, 8, 3).requires_grad_(False)
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        want, mine = _through(conv, x, nullcontext()), _through(conv, x, forgetful(conv))
    assert mine[0].dtype == torch.bfloat16
    assert mine[1].dtype == torch.float32
    assert torch.equal(mine[0], want[0])
    assert torch.equal(mine[1], want[1])


def test_a_convolution_that_learns_keeps_what_it_reads() -> None:
    conv, x = nn.Conv2d(4, 8, 3), torch.randn(2, 4, 9, 9)
    grads = []
    for around in (nullcontext(), forgetful(conv)):
        with around:
            y = conv(x.clone().requires_grad_())
        grads.append(torch.autograd.grad(y.square().sum(), list(conv.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_network_that_computes_anew_is_left_alone() -> None:
    unet = shared("sd").unet
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([7])

    def told(context: Tensor) -> Tensor:
        return unet(latents, t, context).sample

    context = torch.randn(1, 77, 32)
    want, mine = _through(told, context, nullcontext()), _through(told, context, forgetful(unet))
    assert len(mine[2]) < len(want[2])
    unet.enable_gradient_checkpointing()
    try:
        anew = _through(told, context, forgetful(unet))
    finally:
        unet.disable_gradient_checkpointing()
    for found in (mine, anew):
        assert torch.equal(found[0], want[0])
        assert torch.equal(found[1], want[1])
