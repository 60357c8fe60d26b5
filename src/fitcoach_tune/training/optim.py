"""Optimizers and learning-rate schedules, as Hugging Face's trainer names them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fitcoach_tune.config import Config


def make_optimizer(
    config: Config, parameters: Iterable[nn.Parameter], *, capturable: bool = False
) -> torch.optim.Optimizer:
    """The configured optimizer over float32 LoRA parameters, with its fresh state made on the CPU.

    The state stands before the first step because a compiled step that made it would be another graph than the next.

    Args:
        capturable: the whole step may be recorded: counts and rates are tensors on the device, as the rest.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optim == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, capturable=capturable)
    else:
        optimizer = Adafactor(parameters, lr=rate, weight_decay=decay)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            shapes = _state_shapes(config.optim, tuple(parameter.shape))
            optimizer.state[parameter] = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return optimizer


def _state_shapes(optim: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if optim == "adamw":
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    return {"step": (), "exp_avg_sq_row": shape[:1], "exp_avg_sq_col": shape[1:]}


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) for float32 matrices, its step not scaled by the parameter.

    torch's own scales the step by the parameter's size, and a LoRA B that starts at zero would not move. That of
    transformers, with `scale_parameter` and `relative_step` off, computes the same as this one, but counts on the host:
    the first step's decay of 0 then makes another compiled graph than the next one's.
    """

    EPSILON, CLIP_THRESHOLD, DECAY_RATE = 1e-30, 1.0, -0.8

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move the parameters by their gradients; `closure` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: nn.Parameter, lr: float | Tensor, weight_decay: float) -> None:
        state, grad = self.state[parameter], parameter.grad
        state["step"] += 1
        decay = 1 - state["step"] ** self.DECAY_RATE
        squared = grad.square() + self.EPSILON
        rows = state["exp_avg_sq_row"].mul_(decay).add_(squared.mean(-1) * (1 - decay))
        columns = state["exp_avg_sq_col"].mul_(decay).add_(squared.mean(-2) * (1 - decay))
        # The rank-one estimate of the second moment that has these means.
        update = (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt() * grad
        update /= (update.square().mean().sqrt() / self.CLIP_THRESHOLD).clamp(min=1)
        if weight_decay:
            parameter.mul_(1 - weight_decay * lr)
        parameter.sub_(update * lr)


def learning_rate(config: Config, step: int, total: int) -> float:
    """The rate of optimizer step `step` (counted from 0) of `total`: linear warm-up, then the schedule down to 0.

    Cosine follows half a period (Loshchilov & Hutter 2016, arXiv:1608.03983).
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    factor = 1 - progress if config.lr_scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * factor
