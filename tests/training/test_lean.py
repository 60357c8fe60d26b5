"""The operations that are lean on a CPU, against transformers' own and torch's differentiation of plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3RMSNorm, apply_rotary_pos_emb

from fitcoach_tune.training import lean, lora
from fitcoach_tune.training.prefix import Packing, use_layouts


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(output, wanted):
    """Of a weighted sum of the output, so that no two elements count the same."""
    return torch.autograd.grad((output * numbers(*output.shape, seed=9, dtype=output.dtype)).sum(), wanted)


# ------------------------------------------------------------------------------------------------------------ LoRA


def layer(dropout=0.0, dtype=torch.float32):
    base = nn.Linear(24, 16, bias=False, dtype=dtype).requires_grad_(False)
    made = lora.LoraLinear(base, rank=4, alpha=6, dropout=dropout)
    made.lora_A.data, made.lora_B.data = numbers(4, 24, seed=1), numbers(16, 4, seed=2)
    return made


def plain(made, x, kept):
    """The layer as its formula says, differentiated by torch; `kept` is what dropout leaves of x."""
    low = kept @ made.lora_A.to(x.dtype).T
    return x @ made.base.weight.T + low @ (made.lora_B * made.scale).to(x.dtype).T


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_lora_and_its_gradients_are_the_plain_formula_s(dropout):
    made, x = layer(dropout), numbers(2, 5, 24).requires_grad_()
    torch.manual_seed(7)
    output = made(x)
    torch.manual_seed(7)
    mask, growth = lora.draw_mask(x, dropout)
    kept = (mask != 0) * x * growth
    if dropout:
        assert 0 < (mask == 0).sum() < mask.numel()
    wanted = (x, made.lora_A, made.lora_B)
    expected = plain(made, x, kept)
    torch.testing.assert_close(output, expected)
    for got, want in zip(gradients(output, wanted), gradients(expected, wanted), strict=True):
        torch.testing.assert_close(got, want)


def test_lora_in_bf16_has_float32_gradients_and_stays_near():
    made, x = layer(dtype=torch.bfloat16), numbers(2, 5, 24, dtype=torch.bfloat16).requires_grad_()
    output = made(x)
    assert output.dtype == torch.bfloat16
    exact = layer()
    exact.base.weight.data = made.base.weight.data.float()
    wide = x.detach().float().requires_grad_()
    assert (output.float() - exact(wide)).norm() < 0.02 * exact(wide).norm()
    pairs = zip(
        gradients(output, (x, made.lora_A, made.lora_B)),
        gradients(exact(wide), (wide, exact.lora_A, exact.lora_B)),
        strict=True,
    )
    for got, want in pairs:
        assert (got.float() - want).norm() < 0.02 * want.norm()
    assert made.lora_A.dtype == torch.float32


def test_an_input_that_wants_no_gradient_gets_none():
    made, x = layer(0.3), numbers(5, 24)
    gradients(made(x), (made.lora_A, made.lora_B))
    assert x.grad is None


def test_no_dropout_outside_of_training():
    made, x = layer(0.9).eval(), numbers(5, 24)
    torch.testing.assert_close(made(x), plain(made, x, x))


@settings(deadline=None, max_examples=30)
@given(p=st.floats(0.001, 0.999), seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_dropout_drops_its_share_and_keeps_the_mean(p, seed, dtype):
    torch.manual_seed(seed)
    x = torch.ones(100, 301, dtype=dtype)
    mask, growth = lora.draw_mask(x, p)
    kept = lora.masked(x, mask)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    dropped = (kept == 0).float().mean().item()
    assert abs(dropped - p) < 6 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    assert growth == pytest.approx(1 / (1 - p), rel=0.02)


def test_two_masks_differ_and_a_seed_gives_the_same_one():
    x = torch.ones(50, 50)
    torch.manual_seed(3)
    first, second = (lora.draw_mask(x, 0.5)[0] for _ in range(2))
    torch.manual_seed(3)
    again, _ = lora.draw_mask(x, 0.5)
    assert torch.equal(first, again)
    assert 0.4 < (first == second).float().mean() < 0.6  # independent: alike in half of the places


def test_what_is_dropped_is_zero_whatever_it_was():
    x = torch.tensor([float("nan"), float("inf"), -0.0, 5.0])
    mask = torch.tensor([0, 0, 0, -1], dtype=torch.int32)
    assert lora.masked(x, mask).tolist() == [0.0, 0.0, 0.0, 5.0]


# ------------------------------------------------------------------------------------------- norms and attention


def norm(size, dtype=torch.float32):
    made = Gemma3RMSNorm(size).to(dtype).requires_grad_(False)
    made.weight.data = numbers(size, seed=5, dtype=dtype) / 3
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_the_norm_is_transformers_own(dtype, tolerance):
    made, x = norm(32, dtype), numbers(3, 7, 32, dtype=dtype).requires_grad_()
    expected = made(x)
    want = gradients(expected, (x,))[0]
    made.__class__ = lean.CpuRMSNorm
    output = made(x)
    assert output.dtype == dtype
    assert (output - expected).norm() <= tolerance * expected.norm()
    assert (gradients(output, (x,))[0] - want).norm() <= tolerance * want.norm()


def test_norm_and_rotation_are_the_two_after_one_another():
    made, x = norm(16), numbers(2, 6, 3, 16).requires_grad_()
    angles = numbers(2, 6, 8, seed=6).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    expected, _ = apply_rotary_pos_emb(*[made(x).transpose(1, 2)] * 2, cos, sin)
    want = gradients(expected.transpose(1, 2), (x,))[0]
    output = lean._NormAndRotate.apply(x, 1.0 + made.weight, made.eps, cos[..., None, :], sin[..., None, :])
    torch.testing.assert_close(output.transpose(1, 2), expected)
    torch.testing.assert_close(gradients(output, (x,))[0], want)


def test_a_packed_batch_goes_through_the_lean_operations_and_a_usual_call_through_transformers(make_tiny):
    """Attention and norms are exchanged, the weights are not, and without a layout the model is what it was."""
    model = make_tiny().requires_grad_(False)
    ids = torch.arange(3, 40)[None]
    before, names = model(input_ids=ids).logits, [*model.state_dict()]
    use_layouts(model)
    lean.use_lean_operations(model)
    assert {type(m) for m in model.modules() if isinstance(m, Gemma3Attention)} == {lean.CpuAttention}
    assert [*model.state_dict()] == names
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    use_layouts(model)
    hidden = model.model(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1])[None],
        attention_mask={"full_attention": None, "sliding_attention": None},
        use_cache=False,
        layout=Packing.build(ids.shape[1] - 5, [(1, 5)], model.config.sliding_window),
    ).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), before, rtol=1e-4, atol=1e-4)
