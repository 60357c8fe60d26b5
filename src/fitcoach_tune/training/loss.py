"""Cross-entropy at the supervised positions alone, with the frozen head's gradient taken in the same pass.

The vocabulary has 262,144 entries, so the logits of one position in float32 are 1 MB. They are made for a chunk of
positions at a time, turned in place into their own gradient, multiplied back into the hidden states' gradient and
thrown away: no [positions, vocabulary] tensor outlives its chunk. (The idea of fusing head and loss is that of Liger
Kernel, Hsu et al. 2024, arXiv:2410.10989; no weight gradient is needed here because the head is frozen.)

On a CPU a chunk's logits are taken to float32 a few rows at a time: what a tile needs then stays in the cache over all
the passes of a softmax, where a whole chunk would go through memory for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Positions of a group per chunk: enough that reading the head's weights for it costs less than multiplying by them.
CHUNK = 128

# Positions per tile on a CPU: 2 MB of float32 logits, about a second-level cache.
CPU_TILE = 2

# Vocabulary entries per product of a chunk with the head, in float32 on a CPU. MKL takes the whole vocabulary at once
# at half the rate of its blocks, on the processors that have no bf16 of their own.
CPU_ENTRIES = 512


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        wants_grad = ctx.needs_input_grad[0]
        tile = CPU_TILE if hidden.device.type == "cpu" else CHUNK
        losses, grads = [], []
        # One buffer for all chunks: the pages of a new one would cost a fifth of the product that fills it.
        buffer = head.new_empty(min(CHUNK, len(hidden)), len(head)) if hidden.dim() == 2 else None
        for h, t, w in zip(hidden.split(CHUNK, -2), targets.split(CHUNK, -1), weights.split(CHUNK, -1), strict=True):
            logits = h @ head.T if buffer is None else head_product(h, head, buffer[: len(h)])
            for part, at, weight in zip(logits.split(tile, -2), t.split(tile, -1), w.split(tile, -1), strict=True):
                losses.append(_turn_into_gradient(part, at[..., None], weight[..., None], wants_grad))
            if wants_grad:
                grads.append(logits @ head)
        if wants_grad:
            ctx.save_for_backward(torch.cat(grads, -2))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None, None, None


def head_product(hidden: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """`hidden @ head.T`, written into `out` [n, vocabulary]."""
    blocks = out.device.type == "cpu" and out.dtype == torch.float32
    size = CPU_ENTRIES if blocks else len(head)
    for part, entries in zip(out.split(size, -1), head.split(size), strict=True):
        torch.mm(hidden, entries.T, out=part)
    return out


def _turn_into_gradient(logits: Tensor, targets: Tensor, weights: Tensor, wants_grad: bool) -> Tensor:
    """The weighted loss of a tile of logits [G, n, vocabulary], in whose place its gradient is, if that is wanted.

    `targets` and `weights` are [G, n, 1]. All is calculated in float32.
    """
    exps = logits.float()  # float32 logits are written over
    top = exps.amax(-1, keepdim=True)
    at_target = exps.gather(-1, targets) - top
    exps.sub_(top).exp_()
    norm = exps.sum(-1, keepdim=True)
    if wants_grad:
        # d loss / d logits = w · (softmax - one_hot), written over the exponentials.
        logits.copy_(exps.mul_(weights / norm).scatter_add_(-1, targets, -weights))
    return ((norm.log() - at_target) * weights).sum()


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
    if hidden.dim() == 3 and len(hidden) == 1:
        # Torch multiplies a chunk of a batch as a batch, for which it copies the head; one of a matrix, as it is.
        hidden, targets, weights = hidden[0], targets[0], weights[0]
    return _HeadLoss.apply(hidden, head, targets, weights)
