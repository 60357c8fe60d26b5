"""The shared-prefix step is exact: loss and every LoRA gradient equal those of the plain padded computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fitcoach_tune.training import adapter, batches, loss
from fitcoach_tune.training.step import PackedLoss, inputs


def make_rows(rng, prefix_length, spans_per_row=1, rows=8, longest=24, vocab=320):
    head = rng.integers(3, vocab, prefix_length)
    made = []
    for _ in range(rows):
        length = int(rng.integers(8, longest + 1))
        ids = np.concatenate([head, rng.integers(3, vocab, length)]).astype(np.int32)
        cuts = np.sort(rng.choice(np.arange(1, length), 2 * spans_per_row - 1, replace=False)) + prefix_length
        edges = [*cuts.tolist(), len(ids)]
        made.append(batches.TokenizedRow(ids, tuple(zip(edges[::2], edges[1::2], strict=True))))
    return head, made


def plain_step(model, rows):
    """The reference: each row alone, the model's own eager attention, logits everywhere."""
    model.set_attn_implementation("eager")
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0].float()
        at = torch.from_numpy(row.supervised)
        total = total + F.cross_entropy(logits[at - 1], ids[0, at], reduction="sum")
    return total


def padded_step(model, rows):
    """The usual trainer's reference: one right-padded batch, labels -100 elsewhere."""
    model.set_attn_implementation("eager")
    longest = max(len(r.input_ids) for r in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids[i, :n], mask[i, :n] = torch.from_numpy(row.input_ids.astype(np.int64)), 1
        labels[i, row.supervised] = ids[i, row.supervised]
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def packed_step(model, rows, head, groups, static=None):
    batch = batches.pack(rows, np.arange(len(rows)), head, groups, static)
    return PackedLoss(model)(*inputs(batch, model.config.sliding_window, torch.from_numpy))


def gradients(model, total):
    parameters = adapter.trained_parameters(model)
    grads = torch.autograd.grad(total, list(parameters.values()))
    return dict(zip(parameters, grads, strict=True))


def with_lora(model):
    adapter.attach(model, rank=4, alpha=8, dropout=0.0, target_modules=["all-linear"], seed=3)
    generator = torch.Generator().manual_seed(5)
    for _, layer in adapter.lora_layers(model):  # B ≠ 0, so that A has gradients and the prefix depends on LoRA
        layer.lora_B.data.normal_(std=0.1, generator=generator)
    return model


def assert_same(reference, tested, tolerance=1e-5):
    (ref_loss, ref_grads), (loss_value, grads) = reference, tested
    assert loss_value.item() == pytest.approx(ref_loss.item(), rel=tolerance)
    assert ref_grads.keys() == grads.keys()
    for name, expected in ref_grads.items():
        assert expected.norm() > 0, name
        error = (grads[name] - expected).norm() / expected.norm()
        assert error < tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("reference", [plain_step, padded_step])
@pytest.mark.parametrize("prefix_length", [0, 1, 2, 40])
def test_equals_the_plain_computation(make_tiny, prefix_length, reference):
    model = with_lora(make_tiny())
    head, rows = make_rows(np.random.default_rng(prefix_length), prefix_length)
    expected = reference(model, rows)
    actual = packed_step(model, rows, head, groups=1)
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


@pytest.mark.parametrize(("prefix_length", "longest"), [(600, 24), (500, 60), (5, 700), (530, 600)])
def test_past_the_sliding_window(make_tiny, prefix_length, longest):
    """The window ends inside the prefix, at its edge, or inside the suffix; the model's own window of 512 tokens."""
    model = with_lora(make_tiny(window=512))
    head, rows = make_rows(np.random.default_rng(1), prefix_length, rows=3, longest=longest)
    expected = plain_step(model, rows)
    actual = packed_step(model, rows, head, groups=1)
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


def test_a_small_window_differs_from_full_attention(make_tiny):
    """Guards the tests above: if sliding layers ignored the window, this model would not notice, and they would be
    empty.
    """
    head, rows = make_rows(np.random.default_rng(2), 40)
    narrow, wide = with_lora(make_tiny(window=16)), with_lora(make_tiny(window=512))
    assert abs(plain_step(narrow, rows).item() / plain_step(wide, rows).item() - 1) > 1e-4
    assert packed_step(narrow, rows, head, 1).item() == pytest.approx(plain_step(narrow, rows).item(), rel=1e-5)


def test_several_spans_per_row(make_tiny):
    model = with_lora(make_tiny())
    head, rows = make_rows(np.random.default_rng(3), 20, spans_per_row=3, longest=50)
    expected = plain_step(model, rows)
    actual = packed_step(model, rows, head, groups=2)
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


@pytest.mark.parametrize(("prefix_length", "window"), [(0, 512), (40, 512), (40, 30)])
def test_several_blocks_of_rows(make_tiny, prefix_length, window):
    """Rows of unlike length stand in blocks of their own width, in and past the sliding window."""
    model = with_lora(make_tiny(window=window))
    rng = np.random.default_rng(6)
    head, short = make_rows(rng, prefix_length, rows=20, longest=12)
    rows = [*short[:10], *(batches.TokenizedRow(np.concatenate([head, r.input_ids[prefix_length:]]), r.spans)
                           for r in make_rows(rng, prefix_length, rows=3, longest=120)[1]), *short[10:]]  # fmt: skip
    assert len(batches.pack(rows, np.arange(len(rows)), head, groups=1).blocks) > 1
    expected = plain_step(model, rows)
    actual = packed_step(model, rows, head, groups=1)
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


@pytest.mark.parametrize(("prefix_length", "window"), [(0, 512), (40, 512), (40, 16), (1100, 512)])
def test_a_row_alone(make_tiny, prefix_length, window):
    """Computed as one sequence, in and past the sliding window, with either kernel."""
    model = with_lora(make_tiny(window=window))
    head, rows = make_rows(np.random.default_rng(7), prefix_length, rows=1)
    expected = plain_step(model, rows)
    actual = packed_step(model, rows, head, groups=1)
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_and_static_padding_change_nothing(make_tiny, groups):
    model = with_lora(make_tiny())
    head, rows = make_rows(np.random.default_rng(4), 40)
    expected = packed_step(model, rows, head, groups=1)
    actual = packed_step(model, rows, head, groups, static=(31, 29))
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


def test_padding_rows_change_nothing(make_tiny):
    model = with_lora(make_tiny())
    head, rows = make_rows(np.random.default_rng(5), 10, rows=3)
    expected = packed_step(model, rows, head, groups=1)
    batch = batches.pack(rows, np.array([0, -1, 1, 2]), head, 2, static=(25, 24))
    actual = PackedLoss(model)(*inputs(batch, 512, torch.from_numpy))
    assert_same((expected, gradients(model, expected)), (actual, gradients(model, actual)))


@pytest.mark.parametrize("count", [1, 127, 128, 300])
def test_head_loss_equals_cross_entropy(count):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator)
    targets = torch.randint(50, (count,), generator=generator)
    weights = torch.rand(count, generator=generator)
    expected = (F.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum() * 3
    actual = loss.head_loss(hidden, head, targets, weights) * 3
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, hidden)[0], torch.autograd.grad(expected, hidden)[0])


def test_head_loss_survives_extreme_logits():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 1.0]], requires_grad=True)
    head = torch.eye(2)
    value = loss.head_loss(hidden, head, torch.tensor([1, 0]), torch.ones(2))
    (grad,) = torch.autograd.grad(value, hidden)
    assert value.item() == pytest.approx(20001.0, rel=1e-4)
    assert torch.isfinite(grad).all()
