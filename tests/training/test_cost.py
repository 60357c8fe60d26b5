"""The counted step against torch's own counter on the real step, and against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fitcoach_tune.training import adapter, batches, cost
from fitcoach_tune.training.step import PackedLoss, inputs

from .test_prefix import make_rows

ORIGINAL = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ORIGINAL, "gate_proj", "up_proj", "down_proj")


def recompute(layer: torch.nn.Module) -> None:
    """Gradient checkpointing by the rule of torch_xla's: not of a layer whose input wants no gradient."""
    forward = layer.forward

    def wrapped(hidden, **options):
        if not hidden.requires_grad:
            return forward(hidden, **options)
        return checkpoint(lambda x: forward(x, **options), hidden, use_reentrant=True)

    layer.forward = wrapped


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize(
    ("lora", "grad_ckpt"),
    [(ORIGINAL, False), (ORIGINAL, True), (ALL, True), (("down_proj",), True), (("q_proj",), False)],
)
def test_equals_what_torch_counts_of_a_real_step(make_tiny, prefix, lora, grad_ckpt):
    """FlopCounterMode sees every matrix product of both passes, and arrives at the very same number."""
    model = make_tiny()
    adapter.attach(model, rank=4, alpha=8, dropout=0.0, target_modules=list(lora), seed=0)
    model.train()
    if grad_ckpt:
        for layer in model.model.layers:
            recompute(layer)
    head, rows = make_rows(np.random.default_rng(0), prefix, rows=6)
    width, targets = batches.suffix_width(rows, prefix), batches.target_width(rows)
    batch = batches.pack(rows, np.arange(6), head, groups=2, static=(width, targets))
    # The fused kernels of a CPU are no products to the counter; XLA has none, and multiplies as the plain one does.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        PackedLoss(model)(*inputs(batch, 512, torch.from_numpy)).backward()
    counted = cost.flops_per_step(
        model.config, prefix=prefix, width=width, rows=3, targets=targets, groups=2, lora=lora, rank=4,
        grad_ckpt=grad_ckpt,
    )  # fmt: skip
    assert counter.get_total_flops() == counted.total
    assert counted.total == counted.linear + counted.lora + counted.attention + counted.head
    assert (counted.recomputed > 0) == grad_ckpt


def test_the_padded_step_is_the_usual_trainer_s(make_tiny):
    """The model's own forward pass over padded rows, with all logits."""
    model = make_tiny()
    adapter.attach(model, rank=4, alpha=8, dropout=0.0, target_modules=list(ORIGINAL), seed=0)
    ids = torch.ones(3, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    counted = cost.padded_flops_per_step(model.config, length=64, rows=3, lora=ORIGINAL, rank=4, grad_ckpt=False)
    assert counter.get_total_flops() == counted.total


def test_by_hand():
    """One layer, hidden 2, two query heads and one key head of 3, inner 5, vocabulary 7; a prefix of 2 tokens and one
    row of 1, of which 1 is trained; LoRA of rank 1 on q_proj.
    """
    config = SimpleNamespace(
        hidden_size=2, intermediate_size=5, num_attention_heads=2, num_key_value_heads=1, head_dim=3,
        num_hidden_layers=1, vocab_size=7,
    )  # fmt: skip
    found = cost.flops_per_step(config, prefix=2, width=1, rows=1, targets=1, lora=["q_proj"], rank=1, grad_ckpt=True)
    tokens = 3
    q, kv, o, mlp = 2 * 6, 2 * (2 * 3), 6 * 2, 3 * (2 * 5)
    linear_forward = 2 * tokens * (q + kv + o + mlp)
    linear_backward = 2 * tokens * (o + mlp)  # the embedding wants no gradient, so that q, k and v need not give it one
    lora_forward = 2 * tokens * (2 + 6)  # A: 2 → 1, B: 1 → 6
    lora_backward = 2 * tokens * (2 + 6 + 6)  # to A; to B and to what comes out of A
    pairs = 2 * 2 + 1 * 3  # the prefix with itself, the row with both
    scores = 2 * (2 * 3) * pairs
    attention_forward = 2 * scores
    attention_backward = 2 * scores  # to the queries, and to the weights; keys and values want none
    head = 2 * 2 * 7
    assert found == cost.Flops(
        forward=linear_forward + lora_forward + attention_forward + head,
        backward=linear_backward + lora_backward + attention_backward + head,
        recomputed=0,  # the only layer's input wants no gradient
        linear=linear_forward + linear_backward,
        lora=lora_forward + lora_backward,
        attention=attention_forward + attention_backward,
        head=2 * head,
    )
    assert found.total == 6 * 66 + 6 * 42 + 48 + 84 + 168 + 168 + 56 == 1172


def test_groups_and_micro_batches_multiply(make_tiny):
    config = make_tiny().config
    sizes = {"prefix": 9, "width": 5, "rows": 2, "targets": 3, "lora": ORIGINAL, "rank": 4, "grad_ckpt": True}
    one, many = cost.flops_per_step(config, **sizes), cost.flops_per_step(config, groups=4, micros=3, **sizes)
    assert many.total == 12 * one.total
    assert many.head == 12 * one.head == 12 * (2 * 2 * (2 * 3) * 32 * 320)


def test_linear_shapes_are_the_model_s(make_tiny):
    model = make_tiny(num_key_value_heads=2)
    found = {
        name.rsplit(".", 1)[-1]: (m.in_features, m.out_features)
        for name, m in model.model.layers[0].named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    assert cost.linear_shapes(model.config) == found


@pytest.mark.parametrize(
    ("tensor", "devices", "uneven", "expected"),
    [
        (((640, 10), 2), 8, True, cost.Shards(12800, 80 * 10 * 2, 1, 0)),
        (((640, 10), 2), 8, False, cost.Shards(12800, 80 * 10 * 2, 1, 0)),
        (((3, 10), 4), 8, True, cost.Shards(120, 3 * 2 * 4, 1, 0)),  # 10 over 8 is 2 each, padded up
        (((3, 10), 4), 8, False, cost.Shards(120, 120, 0, 1)),
        (((4, 4), 4), 2, True, cost.Shards(64, 32, 1, 0)),
        (((), 4), 8, True, cost.Shards(4, 4, 0, 1)),
        (((), 4), 8, False, cost.Shards(4, 4, 0, 1)),
        (((640, 10), 2), 1, True, cost.Shards(12800, 12800, 0, 1)),
        (((640, 10), 2), 1, False, cost.Shards(12800, 12800, 0, 1)),
    ],
)
def test_bytes_of_a_tensor(tensor, devices, uneven, expected):
    assert cost.sharded_bytes([tensor], devices, uneven=uneven) == expected


def test_bytes_add_up():
    tensors = [((16, 4), 2), ((3,), 4), ((), 4)]
    assert cost.sharded_bytes(tensors, 8, uneven=False) == cost.Shards(128 + 12 + 4, 16 + 12 + 4, 1, 2)


def test_exchanged_bytes():
    """Eight devices receive seven eighths of the layers' 800 bytes for each pass, and of the gradients' 80."""
    several = {"micros": 1, "devices": 8}
    assert cost.exchanged_bytes(800, 80, grad_ckpt=True, sharded=True, **several) == 3 * 700 + 70
    assert cost.exchanged_bytes(800, 80, grad_ckpt=False, sharded=True, **several) == 2 * 700 + 70
    assert cost.exchanged_bytes(800, 80, grad_ckpt=True, sharded=False, **several) == 2 * 70
    assert cost.exchanged_bytes(800, 80, 8, micros=3, grad_ckpt=True, sharded=True) == 3 * (3 * 700 + 70)
    assert cost.exchanged_bytes(800, 80, 1, micros=3, grad_ckpt=True, sharded=True) == 0
