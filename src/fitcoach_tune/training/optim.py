"""Optimizers and learning-rate schedules, as Hugging Face's trainer names them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    import torch

    from fitcoach_tune.config import Config


def make_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer over float32 LoRA parameters.

    Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) is transformers' with its relative step and parameter scaling
    off: torch's own scales the step by the parameter's size, and a LoRA B that starts at zero would not move.
    """
    if config.optim == "adamw":
        from torch.optim import AdamW

        return AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    from transformers.optimization import Adafactor

    return Adafactor(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


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
