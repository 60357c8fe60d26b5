"""Greedy generation for many prompts that start alike: the shared prefix is computed once and kept warm.

The same idea as in training, with a cache: the prefix's keys and values are stored once per layer, not per row; each
row has a small cache of its own behind it. Rows that have stopped leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fitcoach_tune import functiongemma
from fitcoach_tune.training.batches import common_length
from fitcoach_tune.training.prefix import attend, causal_attention, hidden_states, sliding_mask, use_layouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STOP_IDS = frozenset(functiongemma.CONTROL_TOKENS[token] for token in functiongemma.STOP_TOKENS)
_GROW = 32
# Prompt tokens behind the prefix that run at once: what bounds the memory of attention over a very long prompt.
_AT_ONCE = 512


@dataclass
class PrefixPass:
    """Layout of the prefix alone: plain causal attention that keeps keys and values, [1, K, P, D] for each layer."""

    mask: Tensor | None
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool) -> Tensor:
        self.layers[layer] = (key, value)
        return causal_attention(query, key, value, self.mask if sliding else None, scale).transpose(1, 2)


class RowCache:
    """Layout of B rows behind a computed prefix: each row's own keys and values, [B, K, T, D] for each layer.

    A row's tokens stand in slots 0, 1, … in their order, whatever the other rows' lengths; what a padding token leaves
    in a slot is hidden by the causal mask until it is overwritten.
    """

    def __init__(self, prefix: dict[int, tuple[Tensor, Tensor]], length: int, window: int):
        self.prefix, self.length, self.window = prefix, length, window
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.capacity = 0
        self.slots: Tensor
        self.causal: Tensor
        self.sliding: Tensor

    def at(self, slots: Tensor) -> Tensor:
        """Say in which slots [B, t] the next tokens of each row stand; returns their position ids [B, t]."""
        self.slots = slots
        needed = int(slots.max()) + 1
        if needed > self.capacity:
            self.capacity = needed + _GROW
        positions = slots + self.length
        keys = torch.arange(self.length + self.capacity, device=slots.device)
        query = positions[None, None, :, None, :, None]
        self.causal = keys <= query
        self.sliding = self.causal & (keys > query - self.window)
        return positions

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.own = {layer: (k[rows], v[rows]) for layer, (k, v) in self.own.items()}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float, sliding: bool) -> Tensor:
        rows, heads, length, dim = query.shape
        key_heads = key.shape[1]
        keys, values = (self._store(layer, side, new) for side, new in enumerate((key, value)))
        self.own[layer] = (keys, values)
        grouped = query.reshape(rows, key_heads, heads // key_heads, length, dim).transpose(0, 1)[None]
        own = (keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
        out = attend(grouped, self.prefix[layer], own, self.sliding if sliding else self.causal, scale)
        return out[0].permute(1, 3, 0, 2, 4).reshape(rows, length, heads, dim)

    def _store(self, layer: int, side: int, new: Tensor) -> Tensor:
        rows, heads, _, dim = new.shape
        old = self.own[layer][side] if layer in self.own else new.new_zeros(rows, heads, 0, dim)
        if missing := self.capacity - old.shape[2]:
            old = torch.cat([old, new.new_zeros(rows, heads, missing, dim)], dim=2)
        return old.scatter(2, self.slots[:, None, :, None].expand_as(new), new)


class Generator:
    """A model with the prefix of its prompts kept warm."""

    def __init__(self, model: PreTrainedModel):
        use_layouts(model)
        self.model = model
        self.device = model.lm_head.weight.device
        self._warm: tuple[tuple[int, ...], dict[int, tuple[Tensor, Tensor]]] = ((), self._empty())

    @torch.inference_mode()
    def warm(self, prefix: Sequence[int]) -> None:
        """Compute the keys and values of `prefix` unless they are at hand."""
        tokens = tuple(int(i) for i in prefix)
        if tokens == self._warm[0]:
            return
        layout = PrefixPass(sliding_mask(len(tokens), self.model.config.sliding_window, self.device))
        ids = torch.tensor([tokens], device=self.device)
        if len(tokens):
            hidden_states(self.model, ids, torch.arange(len(tokens), device=self.device)[None], layout)
        self._warm = (tokens, layout.layers if len(tokens) else self._empty())

    def _empty(self) -> dict[int, tuple[Tensor, Tensor]]:
        config = self.model.config
        weight = self.model.lm_head.weight
        nothing = weight.new_zeros(1, config.num_key_value_heads, 0, config.head_dim)
        return dict.fromkeys(range(config.num_hidden_layers), (nothing, nothing))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        on_finished: Callable[[int], None] = lambda _: None,
    ) -> list[list[int]]:
        """The greedy continuation of each prompt.

        Args:
            prompts: token ids, at least one token behind the warm prefix; those that do not start with it are refused.
            max_new_tokens: most tokens to add.
            on_finished: told how many rows have just stopped.

        Returns:
            New token ids per prompt, the stop token included if one came.

        Raises:
            ValueError: a prompt does not start with the warm prefix.
        """
        head, shared = self._warm
        tails = [list(p[len(head) :]) for p in prompts]
        if any(tuple(p[: len(head)]) != head or not tail for p, tail in zip(prompts, tails, strict=True)):
            raise ValueError("every prompt must be longer than the warm prefix and start with it")
        if not tails:
            return []
        cache = RowCache(shared, len(head), self.model.config.sliding_window)
        lengths = torch.tensor([len(t) for t in tails], device=self.device)
        ids = torch.zeros(len(tails), int(lengths.max()), dtype=torch.long)
        for i, tail in enumerate(tails):
            ids[i, : len(tail)] = torch.tensor(tail)
        ids = ids.to(self.device)
        slots = torch.arange(ids.shape[1], device=self.device).expand(len(tails), -1)
        last = self.model.lm_head.weight.new_zeros(len(tails), self.model.config.hidden_size)
        for start in range(0, ids.shape[1], _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            hidden = hidden_states(self.model, ids[:, part], cache.at(slots[:, part]), cache)
            ends = lengths - 1 - start  # where a row's last token stands in this part, if it does
            found = hidden[torch.arange(len(tails), device=self.device), ends.clamp(0, hidden.shape[1] - 1)]
            last = torch.where(((ends >= 0) & (ends < hidden.shape[1]))[:, None], found, last)
        return self._decode(cache, last, lengths, max_new_tokens, on_finished)

    def _decode(
        self, cache: RowCache, last: Tensor, lengths: Tensor, limit: int, on_finished: Callable[[int], None]
    ) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(len(last))]
        active = list(range(len(last)))
        for step in range(limit):
            chosen = (last @ self.model.lm_head.weight.T).argmax(-1)
            for row, token in zip(active, chosen.tolist(), strict=True):
                answers[row].append(token)
            going = [i for i, row in enumerate(active) if answers[row][-1] not in STOP_IDS]
            if len(going) < len(active):
                on_finished(len(active) - len(going))
                active = [active[i] for i in going]
                keep = torch.tensor(going, dtype=torch.long, device=self.device)
                chosen, lengths = chosen[keep], lengths[keep]
                cache.keep(keep)
            if not active or step + 1 == limit:
                break
            positions = cache.at(lengths[:, None])
            last = hidden_states(self.model, chosen[:, None], positions, cache)[:, 0]
            lengths = lengths + 1
        if active:
            on_finished(len(active))
        return answers


def encode_literally(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize text of a user such that it can never give a control token.

    A control token that the text spells is tokenized as any other letters; the ids decode to the same text.
    """
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The longest common token prefix that leaves each prompt at least one token."""
    first = prompts[0]
    return list(first[: common_length(prompts, min(len(p) for p in prompts) - 1)])
