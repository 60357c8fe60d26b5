"""Greedy generation for many prompts that start alike: the shared prefix is computed once and kept warm.

The same idea as in training, with a cache: the prefix's keys and values are stored once per layer, not per row; each
row has a small cache of its own behind it. On a plain device rows that have stopped leave the batch, and where a row's
constraint leaves no choice several tokens run at once; for a device that compiles, where nothing may change its shape,
see `compiled`.

A constraint forbids what is not declared, and what is left over then need not be what was meant. So the model is asked
at each token of a function's name, also where the constraint leaves no choice (tokens that ran at once are checked
afterwards, as in speculative decoding: Leviathan et al. 2023, arXiv:2211.17192): if it would write another name, the
row goes back to the end of its prompt and answers in words, or ends behind the calls that it has made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fitcoach_tune.errors import DeviceError
from fitcoach_tune.evaluate.cache import Layers, PrefixPass, RowCache
from fitcoach_tune.evaluate.compiled import AT_ONCE, STOP_IDS, CompiledRows, Shape, padded, zeros
from fitcoach_tune.evaluate.gemma import Gemma
from fitcoach_tune.functiongemma import CONTROL_TOKENS, START_FUNCTION_CALL, START_FUNCTION_RESPONSE
from fitcoach_tune.training.batches import common_length
from fitcoach_tune.training.prefix import hidden_states, sliding_mask, use_layouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.evaluate.constrain import Constraint, Guide
    from fitcoach_tune.tokenizer import AnyTokenizer

Model: TypeAlias = "Gemma | PreTrainedModel"
_START, _STOP = (CONTROL_TOKENS[token] for token in (START_FUNCTION_CALL, START_FUNCTION_RESPONSE))
# Hidden states whose logits are made at a time.
_LOGITS_AT_ONCE = 64
_numbers = itertools.count(1)


@dataclass
class _Row:
    """A prompt on its way to its answer.

    Attributes:
        index: its place among the prompts.
        slot: where in its cache the next token will stand.
        guide: what holds the answer to a grammar, if something does.
        prompt: the hidden state [hidden] of the prompt's last token.
        answer: the tokens so far.
        pending: those of them that have not run yet.
        unasked: of the pending tokens those behind which the constraint chose a part of a name, with the state there.
        ends: nothing may come but the end of the answer.
    """

    index: int
    slot: int
    guide: Guide | None
    prompt: Tensor
    answer: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    unasked: list[tuple[int, Guide]] = field(default_factory=list)
    ends: bool = False

    def take(self, token: int, limit: int) -> bool:
        """Add the chosen token and those that must follow it; says whether the answer has come to its end."""
        self.pending, self.unasked = [token], []
        if self.guide:
            self.guide.advance(token)
            room = limit - len(self.answer) - 1
            for forced in self.guide.forced()[:room]:
                if self.guide.naming:
                    self.unasked.append((len(self.pending) - 1, self.guide.copy()))
                self.guide.advance(forced)
                self.pending.append(forced)
        self.answer += self.pending
        return self.answer[-1] in STOP_IDS or len(self.answer) >= limit

    def turn_back(self) -> None:
        """The function that the model would call is not declared: take back what it has said of this call."""
        begun = len(self.answer) - self.answer[::-1].index(_START) - 1
        self.slot -= len(self.answer) - begun
        del self.answer[begun:]
        self.ends = begun > 0
        self.guide = None if self.ends else self.guide.in_words()


class Generator:
    """A model with the prefix of its prompts kept warm.

    Args:
        model: on its device already.
        backend: the one that placed it there; without one, the model's device is taken for a plain one.

    Raises:
        DeviceError: the backend compiles, and this is one of several hosts.
    """

    def __init__(self, model: Model, backend: Backend | None = None):
        if not isinstance(model, Gemma):
            use_layouts(model)
        self.model = model
        self.device = model.lm_head.weight.device
        self._backend = backend if backend is not None and backend.compiled else None
        if self._backend and self._backend.world_size > 1:
            raise DeviceError(
                f"this is one of {self._backend.world_size} hosts, and answers are made on one",
                where=f"--device {self._backend.name}",
                hint="run it on one host",
            )
        self._name = f"model {next(_numbers)}"  # another model has other graphs, and may compile
        self._rows: CompiledRows | None = None
        self._warm: tuple[tuple[int, ...], Layers] = ((), self._empty())

    def warm(self, prefix: Sequence[int]) -> None:
        """Compute the keys and values of `prefix` unless they are at hand."""
        tokens = tuple(int(i) for i in prefix)
        if tokens == self._warm[0]:
            return
        self._rows = None
        with self._without_gradients():
            self._warm = (tokens, self._prefix_pass(tokens) if tokens else self._empty())

    def _prefix_pass(self, tokens: tuple[int, ...]) -> Layers:
        length, backend = len(tokens), self._backend
        layout = PrefixPass(sliding_mask(length, self.model.config.sliding_window, self.device))
        positions = torch.arange(length, device=self.device)[None]
        if not backend:
            hidden_states(self.model, torch.tensor([tokens], device=self.device), positions, layout)
            return layout.layers
        # Each device computes it for itself.
        ids = np.array([tokens] * backend.groups)
        with backend.graph(f"prefix of {length} tokens, {self._name}", "the prefix", {"ids": ids.shape}):
            hidden_states(self.model, backend.put(ids), positions.expand(backend.groups, -1), layout)
            backend.end_step()
        return layout.layers

    def _empty(self) -> Layers:
        config, weight = self.model.config, self.model.lm_head.weight
        if self._backend:
            nothing = zeros(self.model, self._backend, self._backend.groups, 0)
            self._backend.end_step()
        else:
            nothing = weight.new_zeros(1, config.num_key_value_heads, 0, config.head_dim)
        return dict.fromkeys(range(config.num_hidden_layers), (nothing, nothing))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        on_answer: Callable[[int, list[int]], None] = lambda *_: None,
        batch_size: int | None = None,
        constraints: Sequence[Constraint | None] | None = None,
    ) -> list[list[int]]:
        """The greedy continuation of each prompt.

        Args:
            prompts: token ids, at least one token behind the warm prefix; those that do not start with it are refused.
            max_new_tokens: most tokens to add, at least 1.
            on_answer: told a prompt's index and its new tokens as soon as it stops.
            batch_size: prompts at a time, by default all. A backend that compiles pads all batches alike.
            constraints: what holds each prompt's answer to a grammar, or None.

        Returns:
            New token ids per prompt, the stop token included if one came.

        Raises:
            ValueError: a prompt does not start with the warm prefix.
            DeviceError: a graph was compiled that had been compiled before, or answers of a backend that compiles are
                to be constrained.
        """
        head, _ = self._warm
        tails = [list(p[len(head) :]) for p in prompts]
        if any(tuple(p[: len(head)]) != head or not tail for p, tail in zip(prompts, tails, strict=True)):
            raise ValueError("every prompt must be longer than the warm prefix and start with it")
        constraints = constraints or [None] * len(tails)
        self._check_constraints(constraints)
        if not tails:
            return []
        size = min(batch_size or len(tails), len(tails))
        answers: dict[int, list[int]] = {}

        def answered(index: int, answer: list[int]) -> None:
            answers[index] = answer
            on_answer(index, answer)

        with self._without_gradients():
            compiled = self._compiled_rows(max(map(len, tails)), size, max_new_tokens)
            for start in range(0, len(tails), size):
                batch = range(start, min(start + size, len(tails)))
                if compiled:
                    compiled.answer({i: tails[i] for i in batch}, answered)
                else:
                    guides = {i: constraint.start() for i in batch if (constraint := constraints[i])}
                    cache, last = self._prefill([tails[i] for i in batch])
                    rows = [_Row(i, len(tails[i]), guides.get(i), state) for i, state in zip(batch, last, strict=True)]
                    self._decode(cache, last, rows, max_new_tokens, answered)
        return [answers[i] for i in range(len(tails))]

    def _check_constraints(self, constraints: Sequence[Constraint | None]) -> None:
        if self._backend and any(constraints):
            raise DeviceError(
                "answers cannot be constrained on a device that compiles what it does",
                where=f"--device {self._backend.name}",
                hint="use --unconstrained, or another device",
            )

    def _compiled_rows(self, longest: int, size: int, limit: int) -> CompiledRows | None:
        if not self._backend:
            return None
        shape = Shape.of(longest, size, limit, self._backend.groups)
        if self._rows is None or self._rows.shape != shape:
            head, layers = self._warm
            self._rows = CompiledRows(self.model, self._backend, (len(head), layers), shape, self._name)
        return self._rows

    def _prefill(self, tails: list[list[int]]) -> tuple[RowCache, Tensor]:
        """Run the prompts; returns their cache and the hidden state of each one's last token, [B, hidden]."""
        config, device, rows = self.model.config, self.device, len(tails)
        cache = RowCache(self._warm[1], len(self._warm[0]), config.sliding_window)
        lengths = torch.tensor([len(tail) for tail in tails], device=device)
        ids = torch.from_numpy(padded(tails, max(map(len, tails)))).to(device)
        slots = torch.arange(ids.shape[1], device=device).expand(rows, -1)
        last = self.model.lm_head.weight.new_zeros(rows, config.hidden_size)
        for start in range(0, ids.shape[1], AT_ONCE):
            part = slice(start, min(start + AT_ONCE, ids.shape[1]))
            cache.reserve(part.stop)
            hidden = hidden_states(self.model, ids[:, part], cache.at(slots[:, part]), cache)
            ends = lengths - 1 - start  # where a row's last token stands in this part, if it does
            found = hidden[torch.arange(rows, device=device), ends.clamp(0, hidden.shape[1] - 1)]
            last = torch.where(((ends >= 0) & (ends < hidden.shape[1]))[:, None], found, last)
        return cache, last

    def _decode(
        self,
        cache: RowCache,
        last: Tensor,
        rows: list[_Row],
        limit: int,
        on_answer: Callable[[int, list[int]], None],
    ) -> None:
        """Go on from the hidden states [B, hidden] of the prompts' last tokens until every row has stopped."""
        asked = last[:0]
        while rows:
            logits, wanted = self._logits(last, asked)
            guides = [(i, guide) for i, row in enumerate(rows) for _, guide in row.unasked]
            unmeant = {i for (i, guide), token in zip(guides, wanted, strict=True) if not guide.names(token)}
            for i, row in enumerate(rows):
                is_naming = row.guide and row.guide.naming
                if i in unmeant or (is_naming and not row.guide.names(_best(logits[i]))):
                    row.turn_back()
                    logits[i] = row.prompt @ self.model.lm_head.weight.T
                if row.guide:
                    logits[i] = row.guide.allow(logits[i], limit - len(row.answer))
                if row.ends:
                    logits[i, _STOP] = torch.inf
            stopped = [row.take(token, limit) for row, token in zip(rows, _best(logits), strict=True)]
            if any(stopped):
                for row, has_stopped in zip(rows, stopped, strict=True):
                    if has_stopped:
                        on_answer(row.index, row.answer)
                going = [i for i, has_stopped in enumerate(stopped) if not has_stopped]
                cache.keep(torch.tensor(going, dtype=torch.long, device=self.device))
                rows = [rows[i] for i in going]
            if rows:
                last, asked = self._run_pending(cache, rows)

    def _logits(self, last: Tensor, asked: Tensor) -> tuple[Tensor, list[int]]:
        """Logits [B, V] of the hidden states from which rows go on, and the likeliest token of each other one."""
        head = self.model.lm_head.weight
        if len(asked) and len(last) + len(asked) <= _LOGITS_AT_ONCE:
            # Reading the head's weights is what takes the time. This way round a CPU does not bring them into another
            # order for a product of so few rows.
            logits = (head @ torch.cat([last, asked]).T).T.contiguous()
            return logits[: len(last)], _best(logits[len(last) :])
        return last @ head.T, [token for part in asked.split(_LOGITS_AT_ONCE) for token in _best(part @ head.T)]

    def _run_pending(self, cache: RowCache, rows: list[_Row]) -> tuple[Tensor, Tensor]:
        """Run each row's new tokens; returns the hidden states of each row's last one [B, hidden], and of those behind
        which its model is to be asked.
        """
        counts = [len(row.pending) for row in rows]
        width = max(counts)
        ids = torch.from_numpy(padded([row.pending for row in rows], width)).to(self.device)
        first = torch.tensor([[row.slot] for row in rows], device=self.device)
        cache.reserve(max(row.slot for row in rows) + width)
        slots = first + torch.arange(width, device=self.device)
        hidden = hidden_states(self.model, ids, cache.at(slots), cache)
        for row in rows:
            row.slot += len(row.pending)
        ends = torch.tensor(counts, device=self.device) - 1
        asked = [(i, place) for i, row in enumerate(rows) for place, _ in row.unasked]
        numbers, places = torch.tensor(asked, dtype=torch.long, device=self.device).view(-1, 2).T
        return hidden[torch.arange(len(rows), device=self.device), ends], hidden[numbers, places]

    def _without_gradients(self) -> AbstractContextManager:
        # XLA's tensors are written in place later on, which inference tensors are not meant for.
        return torch.no_grad() if self._backend else torch.inference_mode()


def _best(logits: Tensor) -> Any:
    """The likeliest token of logits [V], or a list of those of [N, V]."""
    return logits.max(-1).indices.tolist()  # torch's argmax gives the same, and takes six times as long in bf16


def encode_literally(tokenizer: AnyTokenizer, text: str) -> list[int]:
    """Tokenize text of a user such that it can never give a control token.

    A control token that the text spells is tokenized as any other letters; the ids decode to the same text.
    """
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The longest common token prefix that leaves each prompt at least one token."""
    first = prompts[0]
    return list(first[: common_length(prompts, min(len(p) for p in prompts) - 1)])
