"""Gemma's RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467) for CPUs: few passes over memory, little kept.

What transformers writes as a chain of operations keeps several float32 copies of its input for the backward pass. This
keeps the input and one number per token, and calculates the rest again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        return wide.mul_(inverse).mul_(gain).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, gain, inverse = ctx.saved_tensors
        # With n = x · inverse and g = gain · grad: d x = inverse · (g - n · mean(g · n)).
        grad = grad_output.to(torch.float32, copy=True).mul_(gain)
        normed = x.to(torch.float32, copy=True).mul_(inverse)
        along = (grad * normed).mean(-1, keepdim=True)
        return grad.sub_(normed.mul_(along)).mul_(inverse).to(x.dtype), None, None


class CpuRMSNorm(Gemma3RMSNorm):
    """A frozen `Gemma3RMSNorm` that takes few passes on a CPU, and is the usual one elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] → [..., hidden] in the dtype of `x`; calculated in float32."""
        if x.device.type != "cpu":
            return super().forward(x)
        return _RmsNorm.apply(x, 1.0 + self.weight.float(), self.eps)


def use_lean_norms(model: nn.Module) -> None:
    """Let the norms of a model, whose weights must be frozen, take few passes; names and weights stay as they are."""
    for module in model.modules():
        if type(module) is Gemma3RMSNorm:
            module.__class__ = CpuRMSNorm
