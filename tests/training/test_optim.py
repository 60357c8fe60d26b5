"""The optimizers move a LoRA B that starts at zero, and the rate follows its schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune.config import Config
from fitcoach_tune.training.optim import learning_rate, make_optimizer

RATE = 5e-5


def lora_pair():
    """A of random values and B of zeros, with the gradients of a real squared error through B·A."""
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(4, 16)), torch.nn.Parameter(torch.zeros(8, 4))
    x, y = torch.randn(32, 16), torch.randn(32, 8)

    def backward() -> float:
        loss = (x @ a.T @ b.T - y).square().mean()
        loss.backward()
        return loss.item()

    return a, b, backward


def rms(tensor: torch.Tensor) -> float:
    return tensor.detach().square().mean().sqrt().item()


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_the_first_step_moves_b_by_the_rate(name) -> None:
    a, b, backward = lora_pair()
    optimizer = make_optimizer(Config(optim=name), [a, b])
    backward()
    optimizer.step()
    # Both divide the gradient by its own size, so that a step is about as long as the rate.
    assert RATE / 3 < rms(b) <= RATE * 1.01


def test_the_adafactor_of_torch_would_hardly_move_b() -> None:
    # Why it is not used: it scales the step by the parameter's own size, which for B is zero (floored at 0.001).
    a, b, backward = lora_pair()
    optimizer = torch.optim.Adafactor([a, b], lr=RATE)
    backward()
    optimizer.step()
    assert rms(b) < RATE / 100


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_the_loss_falls(name) -> None:
    a, b, backward = lora_pair()
    optimizer = make_optimizer(Config(optim=name, learning_rate=0.02), [a, b])
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(backward())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_the_rate_of_the_step_and_the_decay_are_obeyed(name) -> None:
    weight = torch.nn.Parameter(torch.full((3, 3), 2.0))
    optimizer = make_optimizer(Config(optim=name, weight_decay=0.1, learning_rate=1.0), [weight])
    for group in optimizer.param_groups:  # as the loop sets it
        group["lr"] = 0.5
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 2.0 * (1 - 0.5 * 0.1)))


# ------------------------------------------------------------------------------------------------ schedules


def rates(total: int, **values) -> list[float]:
    config = Config(**{"learning_rate": 1.0, **values})
    return [learning_rate(config, step, total) for step in range(total)]


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"learning_rate": 5e-5}, 2, [5e-5, 5e-5]),
        ({"warmup_ratio": 0.5}, 4, [1 / 3, 2 / 3, 1, 1]),
        ({"lr_scheduler_type": "linear"}, 4, [1, 0.75, 0.5, 0.25]),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 0.2}, 5, [0.5, 1, 0.75, 0.5, 0.25]),
        ({"lr_scheduler_type": "cosine"}, 4, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ({"lr_scheduler_type": "cosine", "warmup_ratio": 0.25}, 4, [0.5, 1, 0.75, 0.25]),
        ({"lr_scheduler_type": "cosine", "warmup_ratio": 0.05}, 1, [0.5]),
        ({"lr_scheduler_type": "linear"}, 1, [1]),
    ],
)
def test_schedules(values, total, expected) -> None:
    assert rates(total, **values) == pytest.approx(expected)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["constant", "cosine", "linear"]),
    total=st.integers(1, 200),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_a_rate_rises_to_the_peak_and_then_never_again(kind, total, warmup) -> None:
    found = rates(total, lr_scheduler_type=kind, warmup_ratio=warmup)
    assert all(0 < rate <= 1 for rate in found)
    risen = math.ceil(warmup * total)
    assert found[: risen + 1] == sorted(found[: risen + 1])
    assert found[risen:] == sorted(found[risen:], reverse=True)
    assert found[risen:][:1] in ([], [1.0])
    if kind == "constant":
        assert set(found[risen:]) <= {1.0}
