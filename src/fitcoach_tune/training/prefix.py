"""The shared-prefix forward pass: the tokens that all rows have in common are computed once per step, with gradients.

A packed batch holds G groups (one per device). A group is one sequence that starts with the P tokens of the shared
prefix and goes on with row suffixes, in blocks of R rows that are padded to S tokens each:

    [ prefix: 0 … P-1 | row 0: P … P+S-1 | row 1: P … P+S-1 | … ]        (the numbers are position ids)

Every linear layer sees one long matrix product. Only attention knows the structure: causal inside the prefix; each
suffix attends to the whole prefix (one product for all rows and all query heads that share a key head) and causally to
itself, under one softmax. This computes what R separate rows of P+S tokens would, because a causal model's prefix
states do not depend on what follows them. LoRA changes the prefix's keys and values, so they are never kept from step
to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_NAME = "fitcoach_shared_prefix"

# On a CPU, up to this many tokens attend faster as one product over all heads than in torch's blockwise kernel.
CPU_PRODUCT = 1024


class _MaskedSoftmax(torch.autograd.Function):
    """The softmax of scores where `mask` is True, taken in float32 and kept in the dtype of the scores alone."""

    @staticmethod
    def forward(ctx, scores: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~mask, lowest).softmax(-1, dtype=torch.float32).to(scores.dtype)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (weights,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(grad_output, weights, -1, weights.dtype), None


def attend(
    query: Tensor, shared: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor, scale: float
) -> Tensor:
    """Attention of many rows over keys that all share and keys of their own, under one softmax.

    Args:
        query: [G, K, R, H, S, D]; K key heads, each serving H query heads; R rows of S tokens.
        shared: keys and values [G, K, P, D] that every row sees.
        own: keys and values [G, K, R, T, D] of each row.
        mask: bool, broadcastable to [G, K, R, H, S, P+T]; True where a token may look.
        scale: factor on the scores.

    Returns:
        [G, K, R, H, S, D] in the dtype of `query`. The softmax is taken in float32, as Gemma's reference code does.
    """
    groups, heads, rows, per_key, width, dim = query.shape
    keys, values = shared
    own_keys, own_values = own
    prefix, length = keys.shape[2], own_keys.shape[3]
    query = query * scale
    flat = query.reshape(groups, heads, rows * per_key * width, dim)
    by_row = query.reshape(groups, heads, rows, per_key * width, dim)
    to_shared = (flat @ keys.transpose(-1, -2)).view(groups, heads, rows, per_key, width, prefix)
    to_own = (by_row @ own_keys.transpose(-1, -2)).view(groups, heads, rows, per_key, width, length)
    scores = torch.cat([to_shared, to_own], dim=-1)
    weights = _MaskedSoftmax.apply(scores, mask)
    on_shared, on_own = weights.split([prefix, length], dim=-1)
    out = on_shared.reshape(groups, heads, rows * per_key * width, prefix) @ values
    own_out = on_own.reshape(groups, heads, rows, per_key * width, length) @ own_values
    return out.view_as(query) + own_out.view_as(query)


@dataclass(frozen=True)
class Block:
    """R rows of a packed batch whose suffixes have the same width of S tokens, with the masks that they need.

    Attributes:
        rows: R; width: S, padding included.
        causal: bool [S, P+S], what a suffix token sees in full-attention layers (prefix first, then its own row).
        sliding: the same for sliding-window layers.
    """

    rows: int
    width: int
    causal: Tensor
    sliding: Tensor


@dataclass(frozen=True)
class Packing:
    """The shape of a packed batch, with the masks that it needs.

    Attributes:
        prefix: P, tokens of the shared prefix; may be 0.
        blocks: the rows behind it.
        sliding_prefix: bool [P, P] for sliding-window layers, or None while the prefix fits the window.
    """

    prefix: int
    blocks: tuple[Block, ...]
    sliding_prefix: Tensor | None

    @classmethod
    def build(
        cls, prefix: int, blocks: Sequence[tuple[int, int]], window: int, device: torch.device | str = "cpu"
    ) -> Packing:
        """Make the masks for blocks of (rows, width). `window` is the model's sliding window in tokens, the own token
        included.
        """
        made = []
        for rows, width in blocks:
            keys = torch.arange(prefix + width, device=device)
            suffix = keys[prefix:, None]
            causal = keys <= suffix
            made.append(Block(rows, width, causal, causal & (keys > suffix - window)))
        return cls(prefix, tuple(made), sliding_mask(prefix, window, device))

    def position_ids(self, groups: int, device: torch.device | str = "cpu") -> Tensor:
        """Position ids [G, P + T]: those of the prefix once, then P … P+S-1 for every row."""
        prefix = self.prefix
        own = [torch.arange(prefix, prefix + b.width, device=device).repeat(b.rows) for b in self.blocks]
        return torch.cat([torch.arange(prefix, device=device), *own]).expand(groups, -1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool) -> Tensor:
        """Attention over a packed batch: query [G, heads, P + T, D], key and value with the number of key heads.

        Returns [G, P + T, heads, D].
        """
        groups, heads, _, dim = query.shape
        key_heads, prefix = key.shape[1], self.prefix
        shared = key[:, :, :prefix], value[:, :, :prefix]
        outs = []
        if prefix:
            mask = self.sliding_prefix if sliding else None
            outs.append(causal_attention(query[:, :, :prefix], *shared, mask, scale).transpose(1, 2))
        sizes = [prefix, *(block.rows * block.width for block in self.blocks)]
        parts = zip(*(tensor.split(sizes, 2)[1:] for tensor in (query, key, value)), strict=True)
        for block, (q, k, v) in zip(self.blocks, parts, strict=True):
            rows, width = block.rows, block.width
            out = attend(
                q.reshape(groups, key_heads, heads // key_heads, rows, width, dim).transpose(2, 3),
                shared,
                (k.reshape(groups, key_heads, rows, width, dim), v.reshape(groups, key_heads, rows, width, dim)),
                block.sliding if sliding else block.causal,
                scale,
            )
            outs.append(out.permute(0, 2, 4, 1, 3, 5).reshape(groups, rows * width, heads, dim))
        return torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Plain causal attention of a sequence to itself: query [G, heads, P, D] → [G, heads, P, D]; `mask` bool [P, P]."""
    if query.device.type == "cpu" and query.shape[2] <= CPU_PRODUCT:
        groups, heads, length, dim = query.shape
        by_row = query.reshape(groups, key.shape[1], 1, heads // key.shape[1], length, dim)
        mask = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
        nothing = key[:, :, :0], value[:, :, :0]
        return attend(by_row, nothing, (key[:, :, None], value[:, :, None]), mask, scale).view(query.shape)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def sliding_mask(length: int, window: int, device: torch.device | str) -> Tensor | None:
    """Bool [length, length] of a sliding-window layer, or None while the sequence fits the window."""
    if length <= window:
        return None
    keys = torch.arange(length, device=device)
    return (keys <= keys[:, None]) & (keys > keys[:, None] - window)


class Layout(Protocol):
    """How a batch's tokens attend: what a forward pass is given as `layout`."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool
    ) -> Tensor: ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The form in which transformers' `AttentionInterface` calls an attention function."""
    sliding = sliding_window is not None
    return layout.attend(query, key, value, layer=module.layer_idx, scale=scaling, sliding=sliding), None


def use_layouts(model: nn.Module) -> None:
    """Switch a model to attention by layout, for `hidden_states`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attention)
    model.set_attn_implementation(ATTENTION_NAME)


def hidden_states(model: nn.Module, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    """Last hidden states [G, L, hidden] of `input_ids` [G, L] at `position_ids` [G, L], attending by `layout`."""
    output = model.model(
        input_ids=input_ids,
        position_ids=position_ids,
        # The structure is in `layout`; a mask made by transformers would read the batch on the host.
        attention_mask={"full_attention": None, "sliding_attention": None},
        use_cache=False,
        layout=layout,
    )
    return output.last_hidden_state
