"""How the tokens of a generation attend: the shared prefix alone, and many rows behind it, each with its own cache.

Rows come in G equal groups, one for each device that computes them. Each group has a copy of the prefix's keys and
values, so that no device needs anything of another; a plain device is one group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fitcoach_tune.training.prefix import attend, causal_attention

_GROW = 32
Layers = dict[int, tuple[Tensor, Tensor]]


@dataclass
class PrefixPass:
    """Layout of the prefix alone: plain causal attention that keeps keys and values, [G, K, P, D] for each layer."""

    mask: Tensor | None
    layers: Layers = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool) -> Tensor:
        self.layers[layer] = (key, value)
        return causal_attention(query, key, value, self.mask if sliding else None, scale).transpose(1, 2)


class RowCache:
    """Layout of B rows behind a computed prefix: each row's own keys and values, [B, K, T, D] for each layer.

    A row's tokens stand in slots 0, 1, … in their order, whatever the other rows' lengths; what a padding token leaves
    in a slot is hidden by the causal mask until it is overwritten. The capacity T grows when it must.
    """

    def __init__(self, prefix: Layers, length: int, window: int):
        self.prefix, self.length, self.window = prefix, length, window
        self.own: Layers = {}
        self.capacity = 0
        self.slots: Tensor
        self.causal: Tensor
        self.sliding: Tensor

    def reserve(self, slots: int) -> None:
        """Make room for this many tokens of a row."""
        if slots > self.capacity:
            self.capacity = slots + _GROW

    def at(self, slots: Tensor) -> Tensor:
        """Say in which slots [B, t] the next tokens of each row stand; returns their position ids [B, t].

        Slots that are the same for all rows may be [1, t], and so are the position ids then. There must be room for
        them: to ask the device for the largest would make the host wait.
        """
        self.slots = slots
        positions = slots + self.length
        keys = torch.arange(self.length + self.capacity, device=slots.device)
        groups = min(self.prefix[0][0].shape[0], len(positions))
        query = positions.view(groups, 1, -1, 1, positions.shape[1], 1)
        self.causal = keys <= query
        self.sliding = self.causal & (keys > query - self.window)
        return positions

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.own = {layer: (k[rows], v[rows]) for layer, (k, v) in self.own.items()}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool) -> Tensor:
        rows, heads, length, dim = query.shape
        key_heads = key.shape[1]
        keys, values = (self.store(layer, side, new) for side, new in enumerate((key, value)))
        self.own[layer] = (keys, values)
        shared = self.prefix[layer]
        groups = shared[0].shape[0]

        def grouped(tensor: Tensor) -> Tensor:
            """[B, K, …] → [G, K, B/G, …]"""
            return tensor.reshape(groups, rows // groups, *tensor.shape[1:]).transpose(1, 2)

        by_key_head = query.reshape(rows, key_heads, heads // key_heads, length, dim)
        mask = self.sliding if sliding else self.causal
        out = attend(grouped(by_key_head), shared, (grouped(keys), grouped(values)), mask, scale)
        return out.permute(0, 2, 4, 1, 3, 5).reshape(rows, length, heads, dim)

    def store(self, layer: int, side: int, new: Tensor) -> Tensor:
        """Put new keys (side 0) or values (side 1) [B, K, t, D] into their slots; returns all of them."""
        rows, heads, _, dim = new.shape
        old = self.own[layer][side] if layer in self.own else new.new_zeros(rows, heads, 0, dim)
        if missing := self.capacity - old.shape[2]:
            old = torch.cat([old, new.new_zeros(rows, heads, missing, dim)], dim=2)
        # Written in place: nothing else has these tensors, for what grows or keeps fewer rows makes new ones.
        if new.shape[2] == 1 and len(self.slots) == rows:
            old[torch.arange(rows, device=old.device), :, self.slots[:, 0]] = new[:, :, 0]
            return old
        return old.scatter_(2, self.slots[:, None, :, None].expand_as(new), new)


class FixedCache(RowCache):
    """A cache of a size that never changes, written in place, for a backend that compiles what it does.

    What the rows before have left is hidden like what padding leaves, so it need not be cleared. Written in place, the
    tensors keep how they are sharded, and a step can write where it read.
    """

    def __init__(self, prefix: Layers, length: int, window: int, own: Layers):
        super().__init__(prefix, length, window)
        self.own = own
        self.capacity = own[0][0].shape[2]

    def store(self, layer: int, side: int, new: Tensor) -> Tensor:
        kept = self.own[layer][side]
        if new.shape[2] == 1:
            # A choice for each slot, where a scatter would write value by value on a TPU.
            here = torch.arange(self.capacity, device=new.device) == self.slots
            kept.copy_(torch.where(here[:, None, :, None], new, kept))
        else:
            kept.index_copy_(2, self.slots[0], new)
        return kept
