"""The LoRA layer (Hu et al. 2021, arXiv:2106.09685) on which the training loop lives.

On a CPU a layer's small products cost little and what stands around them much, so that there it is one function with
its own gradient: the update is added by the product that makes it, and dropout is a mask of bits.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = {2: torch.int16, 4: torch.int32}
"""An integer as wide as a number of the dtype, by its bytes."""


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank update: `base(x) + scale · B(A(dropout(x)))`.

    Shapes: `lora_A` [r, in], `lora_B` [out, r], both float32; the products run in the dtype of the input. `lora_B`
    starts at zero, so a new adapter changes nothing.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.dropout = dropout
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        drops = self.dropout if self.training else 0.0
        if x.device.type == "cpu" and self.base.bias is None:
            return _CpuLora.apply(x, self.base.weight, self.lora_A, self.lora_B, self.scale, drops)
        low = F.linear(F.dropout(x, drops) if drops else x, self.lora_A.to(x.dtype))
        return self.base(x) + F.linear(low, (self.lora_B * self.scale).to(x.dtype))


def draw_mask(like: Tensor, p: float) -> tuple[Tensor, float]:
    """A mask for dropout with probability `p`, and the factor by which what is kept must grow.

    Torch's own dropout takes a number of its generator for each element, one after another, which costs more than LoRA
    itself. Here a 64-bit number serves four elements, `p` rounded to the next 1/65,536; torch's generator seeds a
    quicker one.

    Returns:
        An integer tensor of the shape of `like` and as wide as its dtype: all bits are set where an element is kept,
        none where it is dropped. The factor is 1 / (1 - p).
    """
    seed = int(torch.randint(2**62, ()))
    numbers = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-like.numel() // 4), dtype=np.uint64)
    drawn = torch.from_numpy(numbers.view(np.int16))[: like.numel()].view(like.shape)
    dropped = min(round(p * 2**16), 2**16 - 1)
    mask = torch.empty(like.shape, dtype=_BITS[like.element_size()])
    torch.ge(drawn, dropped - 2**15, out=mask)
    return mask.neg_(), 2**16 / (2**16 - dropped)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the bits of `mask` are set, and 0 where they are not."""
    return (x.view(mask.dtype) & mask).view(x.dtype)


class _CpuLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, drops: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        mask, growth = draw_mask(flat, drops) if drops else (None, 1.0)
        ctx.factor = scale * growth
        down, up = a.to(x.dtype), (b * ctx.factor).to(x.dtype)
        low = (flat if mask is None else masked(flat, mask)) @ down.T
        # A byte for an element until the backward pass, where a mask has two or four.
        ctx.save_for_backward(flat, weight, down, up, low, None if mask is None else mask.to(torch.int8))
        out = F.linear(flat, weight)
        return torch.addmm(out, low, up.T, out=out).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        flat, weight, down, up, low, narrow = ctx.saved_tensors
        mask = None if narrow is None else narrow.to(_BITS[flat.element_size()])
        grad = grad_output.reshape(-1, grad_output.shape[-1])
        grad_low = grad @ up
        grad_a = (grad_low.T @ (flat if mask is None else masked(flat, mask))).float()
        grad_b = (grad.T @ low).float().mul_(ctx.factor)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if mask is None:
                torch.addmm(grad_x, grad_low, down, out=grad_x)
            else:
                grad_x.add_(masked(grad_low @ down, mask))
            grad_x = grad_x.view(*grad_output.shape[:-1], -1)
        return grad_x, None, grad_a, grad_b, None, None
