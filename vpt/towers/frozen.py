"""Convolutions whose weights do not learn keep nothing that they read.

For the gradient of its weight, autograd keeps a convolution's input even where nobody asks for that gradient: a sixth
of what a frozen U-Net keeps for the gradient of its context. The gradient of the input needs its shape alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

__all__ = ["forgetful"]


class _Convolution(torch.autograd.Function):
    """The library's convolution and its library gradient to the input, to the bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how, ctx.like = how, (x.shape, x.stride())
        return torch.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        (stride, padding, dilation, groups), (shape, strides) = ctx.how, ctx.like
        unread = torch.empty_strided(shape, strides, dtype=grad.dtype, device=grad.device)
        only_input = (True, False, False)
        found = torch.ops.aten.convolution_backward(
            grad, unread, weight, None, stride, padding, dilation, False, (0, 0), groups, only_input
        )
        return found[0], None, None, None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    if learns or not x.requires_grad or isinstance(padding, str) or x.ndim != 4:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(x.device.type):  # backward must see the weight as forward did
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    how = (_pair(stride), _pair(padding), _pair(dilation), groups)
    return _Convolution.apply(x, weight, bias, how)


class _Forgetful(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        call = _convolution if func is torch.conv2d and torch.is_grad_enabled() else func
        return call(*args, **(kwargs or {}))


@contextmanager
def forgetful(network: Any) -> Iterator[None]:
    """While it is open, frozen two-dimensional convolutions keep no input for backward; results are the same.

    A network that computes its activations anew in backward is left alone: what is computed then must be kept alike.
    """
    if getattr(network, "is_gradient_checkpointing", False):
        yield
        return
    with _Forgetful():
        yield
