"""What is noted of a training step: a line of metrics.jsonl."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class StepMetrics:
    """A training step, with the evaluation loss where one was taken after it.

    Attributes:
        step: counted from 1; epoch: passes over the training rows after it.
        loss: nats per supervised token; grad_norm: before clipping.
    """

    step: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    examples_per_second: float
    supervised_tokens: int
    eval_loss: float | None = None

    def as_dict(self) -> dict:
        return {k: v for k, v in asdict(self).items() if v is not None}
