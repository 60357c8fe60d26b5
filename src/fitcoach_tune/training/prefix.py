"""The shared-prefix forward pass: the tokens that all rows have in common are computed once per step, with gradients.

A packed batch holds G groups (one per device). A group is one sequence that starts with the P tokens of the shared
prefix and goes on with R row suffixes of S tokens each:

    [ prefix: 0 … P-1 | row 0: P … P+S-1 | row 1: P … P+S-1 | … ]        (the numbers are position ids)

Every linear layer sees one long matrix product. Only attention knows the structure: causal inside the prefix; each
suffix attends to the whole prefix (one product for all rows and all query heads that share a key head) and causally to
itself, under one softmax. This computes what R separate rows of P+S tokens would, because a causal model's prefix
states do not depend on what follows them. LoRA changes the prefix's keys and values, so they are never kept from step
to step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_NAME = "fitcoach_shared_prefix"


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
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32).to(values.dtype)
    on_shared, on_own = weights.split([prefix, length], dim=-1)
    out = on_shared.reshape(groups, heads, rows * per_key * width, prefix) @ values
    own_out = on_own.reshape(groups, heads, rows, per_key * width, length) @ own_values
    return out.view_as(query) + own_out.view_as(query)


@dataclass(frozen=True)
class Packing:
    """The shape of a packed batch, with the masks that it needs.

    Attributes:
        prefix: P, tokens of the shared prefix; may be 0.
        rows: R, row suffixes per group.
        width: S, tokens per suffix, padding included.
        causal: bool [S, P+S], what a suffix token sees in full-attention layers (prefix first, then its own row).
        sliding: the same for sliding-window layers.
        sliding_prefix: bool [P, P] for sliding-window layers, or None while the prefix fits the window.
    """

    prefix: int
    rows: int
    width: int
    causal: Tensor
    sliding: Tensor
    sliding_prefix: Tensor | None

    @classmethod
    def build(cls, prefix: int, rows: int, width: int, window: int, device: torch.device | str = "cpu") -> Packing:
        """Make the masks for these sizes. `window` is the model's sliding window in tokens, the own token included."""
        keys = torch.arange(prefix + width, device=device)
        suffix = keys[prefix:, None]
        causal = keys <= suffix
        sliding = causal & (keys > suffix - window)
        return cls(prefix, rows, width, causal, sliding, sliding_mask(prefix, window, device))

    def position_ids(self, groups: int) -> Tensor:
        """Position ids [G, P + R·S]: those of the prefix once, then P … P+S-1 for every row."""
        device = self.causal.device
        own = torch.arange(self.prefix, self.prefix + self.width, device=device).repeat(self.rows)
        return torch.cat([torch.arange(self.prefix, device=device), own]).expand(groups, -1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool) -> Tensor:
        """Attention over a packed batch: query [G, heads, P + R·S, D], key and value with the number of key heads.

        Returns [G, P + R·S, heads, D].
        """
        groups, heads, length, dim = query.shape
        key_heads, prefix = key.shape[1], self.prefix
        by_row = (groups, key_heads, heads // key_heads, self.rows, self.width, dim)
        suffix_query = query[:, :, prefix:].reshape(by_row).transpose(2, 3)
        own_shape = (groups, key_heads, self.rows, self.width, dim)
        suffix = attend(
            suffix_query,
            (key[:, :, :prefix], value[:, :, :prefix]),
            (key[:, :, prefix:].reshape(own_shape), value[:, :, prefix:].reshape(own_shape)),
            self.sliding if sliding else self.causal,
            scale,
        )
        suffix = suffix.permute(0, 2, 4, 1, 3, 5).reshape(groups, length - prefix, heads, dim)
        if not prefix:
            return suffix
        mask = self.sliding_prefix if sliding else None
        head = causal_attention(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], mask, scale)
        return torch.cat([head.transpose(1, 2), suffix], dim=1)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Plain causal attention of a sequence to itself: query [G, heads, P, D] → [G, heads, P, D]; `mask` bool [P, P]."""
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
