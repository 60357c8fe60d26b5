"""What a training step costs in arithmetic and in memory, counted from shapes alone: nothing is loaded or run.

A product of [m, k] and [k, n] counts 2·m·k·n FLOPs, a multiplication and an addition each. Everything else (norms,
softmax, rotary embedding, optimizer) is left out: together well under 1 % of a step of this program's models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitcoach_tune.backends.base import partition

if TYPE_CHECKING:
    from transformers import Gemma3TextConfig


@dataclass(frozen=True)
class Flops:
    """The FLOPs of an optimizer step over all devices.

    `forward`, `backward` and `recomputed` (a second forward pass, for gradient checkpointing) add up to `total`; so do
    `linear` (the frozen layers), `lora`, `attention` and `head`.
    """

    forward: int
    backward: int
    recomputed: int
    linear: int
    lora: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed


def linear_shapes(config: Gemma3TextConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of a decoder layer's linear layers by name. Heads need not add up to the hidden size."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def flops_per_step(
    config: Gemma3TextConfig,
    *,
    prefix: int,
    width: int,
    rows: int,
    targets: int,
    groups: int = 1,
    micros: int = 1,
    lora: Collection[str],
    rank: int,
    grad_ckpt: bool,
) -> Flops:
    """Forward and backward pass of a packed step, as `PackedLoss` computes it; padding is computed like the rest.

    With T = prefix + rows · width tokens in a group:

    - A frozen layer of i inputs and o outputs takes one product of 2·T·i·o forward, and backward one for the gradient
      to its input, where that is wanted; there is none to its weight. (The first layer's input is the frozen embedding,
      which wants none.)
    - LoRA of rank r (Hu et al. 2021, arXiv:2106.09685) takes 2·T·r·(i + o) forward, and backward twice that: to its
      weights and to its input.
    - Attention multiplies queries with keys, and weights with values. The prefix meets itself; each suffix the prefix
      and itself. What a mask hides is computed too. Backward, each of the two takes a product for each factor.
    - The head takes one product over the supervised tokens alone for logits, and one back to the hidden states.
    - Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) computes a decoder layer's forward pass twice, save
      that of a layer whose input wants no gradient.

    Args:
        prefix: P, tokens of the shared prefix; width: S, of each row's suffix; rows: R, rows in a group.
        targets: supervised tokens per row, padding included.
        groups: packed groups in a micro-batch, over all devices; micros: micro-batches in the step.
        lora: names of the linear layers that have LoRA.
        rank: r.
        grad_ckpt: activations are computed again in the backward pass.

    Raises:
        ValueError: a name in `lora` is none of the model's; `all-linear` is none.
    """
    shapes, layers, tokens = linear_shapes(config), config.num_hidden_layers, prefix + rows * width
    if unknown := set(lora) - set(shapes):
        raise ValueError(f"no linear layer is called {', '.join(sorted(unknown))}")
    pairs = prefix * prefix + rows * width * (prefix + width)
    scores = 2 * config.num_attention_heads * config.head_dim * pairs
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()

    def linear(name: str, wanted: bool) -> bool:
        """Count a layer whose input wants a gradient or not, and say whether its output does."""
        inputs, outputs = shapes[name]
        forward["linear"] += 2 * tokens * inputs * outputs
        backward["linear"] += wanted * 2 * tokens * inputs * outputs
        if name not in lora:
            return wanted
        forward["lora"] += 2 * tokens * rank * (inputs + outputs)
        backward["lora"] += 2 * tokens * rank * (inputs + 2 * outputs + wanted * inputs)
        return True

    wanted, repeated = False, 0
    for _ in range(layers):
        repeated += grad_ckpt and wanted
        query, key, value = (linear(name, wanted) for name in ("q_proj", "k_proj", "v_proj"))
        forward["attention"] += 2 * scores
        backward["attention"] += (query + key + (query or key) + value) * scores
        wanted = linear("o_proj", query or key or value) or wanted
        gate, up = linear("gate_proj", wanted), linear("up_proj", wanted)
        wanted = linear("down_proj", gate or up) or wanted
    recomputed = {part: count // layers * repeated for part, count in forward.items()}  # all layers are alike
    forward["head"] = backward["head"] = 2 * rows * targets * config.hidden_size * config.vocab_size

    times = groups * micros
    phases = (forward, backward, Counter(recomputed))
    parts = {part: times * sum(phase[part] for phase in phases) for part in ("linear", "lora", "attention", "head")}
    return Flops(*(times * sum(phase.values()) for phase in phases), **parts)


def padded_flops_per_step(
    config: Gemma3TextConfig, *, length: int, rows: int, lora: Collection[str], rank: int, grad_ckpt: bool
) -> Flops:
    """The same of what a usual trainer computes: `rows` rows padded to `length` tokens, logits at every position."""
    return flops_per_step(
        config, prefix=0, width=length, rows=rows, targets=length, lora=lora, rank=rank, grad_ckpt=grad_ckpt
    )


@dataclass(frozen=True)
class Shards:
    """Where the bytes of a set of tensors lie.

    Attributes:
        bytes: of all tensors, each counted once.
        bytes_per_device: what one device holds, its padding included.
        tensors_sharded, tensors_replicated: how many are cut into pieces, and how many every device holds whole.
    """

    bytes: int
    bytes_per_device: int
    tensors_sharded: int
    tensors_replicated: int


def sharded_bytes(tensors: Iterable[tuple[tuple[int, ...], int]], devices: int, *, uneven: bool) -> Shards:
    """Lay tensors, given as (shape, bytes of an element), out over `devices`, each along its longest axis.

    Args:
        devices: 1 if nothing is sharded.
        uneven: an axis that does not divide is padded up, as FSDPv2 does to parameters; else such a tensor is
            replicated, as `partition` says of the optimizer's state.
    """
    total = held = cut = whole = 0
    for shape, size in tensors:
        count, longest = math.prod(shape), max(shape, default=0)
        sharded = bool(longest) and devices > 1 if uneven else any(partition(shape, devices))
        total += size * count
        held += size * (count // longest * math.ceil(longest / devices) if sharded else count)
        cut, whole = cut + sharded, whole + (not sharded)
    return Shards(total, held, cut, whole)


def exchanged_bytes(layers: int, gradients: int, devices: int, *, micros: int, grad_ckpt: bool, sharded: bool) -> int:
    """Bytes that each device receives in an optimizer step (ZeRO stage 3: Rajbhandari et al. 2019, arXiv:1910.02054).

    Where weights are sharded, each decoder layer's are gathered for every pass through it: forward, backward, and once
    more where it is computed twice. LoRA's gradients are summed over the devices: reduced to shards, or to all. The
    embedding and the head stay where they are. For a step of few tokens XLA may send activations in place of weights:
    then this is the right order of magnitude, and no more.

    Args:
        layers: bytes of the decoder layers' weights in the dtype of the products, LoRA included.
        gradients: bytes of the LoRA gradients.
        sharded: weights are sharded over the devices; else every device has them all.
    """
    passes = 2 + grad_ckpt if sharded else 0
    received = passes * layers + (1 if sharded else 2) * gradients
    return micros * received * (devices - 1) // devices
