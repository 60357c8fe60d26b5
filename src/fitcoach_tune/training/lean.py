"""Gemma's small operations for CPUs: few passes over memory, little kept for the backward pass.

What transformers writes as chains of operations goes through memory for each of them, and keeps several float32 copies
of their input. Between them, matrix products take no longer than that. Here each chain is one function that keeps its
input, takes what it needs again, and has its own gradient:

- the RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467);
- the norm of queries and keys with the rotation by position that follows it (RoPE: Su et al. 2021, arXiv:2104.09864).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3RMSNorm

from fitcoach_tune.training.prefix import Layout


def use_lean_operations(model: nn.Module) -> None:
    """Let a model whose norms are frozen take few passes; its weights stay as they are."""
    kinds = {Gemma3RMSNorm: CpuRMSNorm, Gemma3Attention: CpuAttention}
    for module in model.modules():
        module.__class__ = kinds.get(type(module), type(module))


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x` in float32 over its root mean square, and that number's inverse [..., 1]."""
    wide = x.to(torch.float32, copy=True)
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse), inverse


def _through_norm(grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """The gradient to `x` of the norm without its gain, of that to what it gave (float32, which is written over)."""
    # With n = x · inverse: d x = inverse · (grad - n · mean(grad · n)).
    normed = x.to(torch.float32, copy=True).mul_(inverse)
    along = (grad * normed).mean(-1, keepdim=True)
    return grad.sub_(normed.mul_(along)).mul_(inverse).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        normed, inverse = _normed(x, eps)
        ctx.save_for_backward(x, gain, inverse)
        return normed.mul_(gain).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, gain, inverse = ctx.saved_tensors
        return _through_norm(grad_output.to(torch.float32, copy=True).mul_(gain), x, inverse), None, None


class CpuRMSNorm(Gemma3RMSNorm):
    """A frozen `Gemma3RMSNorm`, lean on a CPU and the usual one elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] → [..., hidden] in the dtype of `x`; calculated in float32."""
        if x.device.type != "cpu":
            return super().forward(x)
        return _RmsNorm.apply(x, 1.0 + self.weight.float(), self.eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle: x float32 [..., D], cos and sin broadcast to it."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        normed, inverse = _normed(x, eps)
        ctx.save_for_backward(x, gain, inverse, cos, sin)
        return _rotate(normed.mul_(gain), cos.float(), sin.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, gain, inverse, cos, sin = ctx.saved_tensors
        # Both halves have the same angles, so that the rotation's transpose is the one by their negatives.
        grad = _rotate(grad_output.float(), cos.float(), -sin.float())
        return _through_norm(grad.mul_(gain), x, inverse), None, None, None, None


class CpuAttention(Gemma3Attention):
    """A `Gemma3Attention` that is lean on a CPU when it attends by layout, and the usual one elsewhere."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: None = None,
        *,
        layout: Layout | None = None,
        **options: object,
    ) -> tuple[Tensor, None]:
        """hidden_states [G, L, hidden] → [G, L, hidden]; position_embeddings: cosines and sines [G, L, D]."""
        if layout is None or hidden_states.device.type != "cpu":
            given = options if layout is None else {**options, "layout": layout}
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **given)
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        cos, sin = (angles[..., None, :] for angles in position_embeddings)

        def placed(x: Tensor, norm: Gemma3RMSNorm) -> Tensor:
            turned = _NormAndRotate.apply(x.view(by_head), 1.0 + norm.weight.float(), norm.eps, cos, sin)
            return turned.transpose(1, 2)

        query = placed(self.q_proj(hidden_states), self.q_norm)
        key = placed(self.k_proj(hidden_states), self.k_norm)
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)
        attended = layout.attend(
            query, key, value, layer=self.layer_idx, scale=self.scaling, sliding=self.sliding_window is not None
        )
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1)), None
