"""Cross-entropy at the supervised positions alone, with the frozen head's gradient taken in the same pass.

The vocabulary has 262,144 entries, so the logits of one position in float32 are 1 MB. They are made for a chunk of
positions at a time, turned in place into their own gradient, multiplied back into the hidden states' gradient and
thrown away: no [positions, vocabulary] tensor outlives its chunk. (The idea of fusing head and loss is that of Liger
Kernel, Hsu et al. 2024, arXiv:2410.10989; no weight gradient is needed here because the head is frozen.)
"""

from __future__ import annotations

import torch
from torch import Tensor

# Positions of a group per chunk: enough that reading the head's weights for it costs less than multiplying by them.
CHUNK = 128


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        wants_grad = ctx.needs_input_grad[0]
        losses, grads = [], []
        for h, t, w in zip(hidden.split(CHUNK, -2), targets.split(CHUNK, -1), weights.split(CHUNK, -1), strict=True):
            logits = (h @ head.T).float()
            top = logits.amax(-1, keepdim=True)
            at_target = logits.gather(-1, t[..., None]) - top
            exps = logits.sub_(top).exp_()
            norm = exps.sum(-1, keepdim=True)
            losses.append(((norm.log() - at_target)[..., 0] * w).sum())
            if wants_grad:
                # d loss / d logits = w · (softmax - one_hot), written over the exponentials.
                grad = exps.mul_(w[..., None] / norm).scatter_add_(-1, t[..., None], -w[..., None])
                grads.append(grad.to(head.dtype) @ head)
        if wants_grad:
            ctx.save_for_backward(torch.cat(grads, -2))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None, None, None


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the cross-entropies of `hidden @ head.T` against `targets`.

    Args:
        hidden: [G, N, hidden_size], the states that predict the targets; each of the G groups on a device of its own.
        head: [vocabulary, hidden_size], frozen; gets no gradient.
        targets: int64 [G, N].
        weights: float32 [G, N]; 0 for padding.

    Returns:
        A float32 scalar: the sum in nats, not divided by anything.
    """
    return _HeadLoss.apply(hidden, head, targets, weights)
