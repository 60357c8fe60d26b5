"""The training loop: the same plain loop for every backend.

A step takes the rows of its batch, divides the summed loss by the batch's GLOBAL number of supervised tokens (so that
devices and accumulation change nothing), checks that loss and gradient are finite, and only then moves the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from fitcoach_tune.backends.base import Backend
from fitcoach_tune.config import Config
from fitcoach_tune.errors import TrainingError
from fitcoach_tune.training import adapter, batches, optim
from fitcoach_tune.training.batches import PADDING_ROW, TokenizedRow
from fitcoach_tune.training.step import PackedLoss, inputs, seed_micro_batch


@dataclass(frozen=True)
class TrainingData:
    """What the loop trains on.

    Attributes:
        train, test: tokenized rows; `test` may be empty.
        prefix: int [P], the tokens that all rows start with.
    """

    train: Sequence[TokenizedRow]
    test: Sequence[TokenizedRow]
    prefix: np.ndarray

    def static_shape(self) -> tuple[int, int]:
        """(suffix width, targets per row) that every row fits."""
        both = [rows for rows in (self.train, self.test) if len(rows)]
        width = max(batches.suffix_width(rows, len(self.prefix)) for rows in both)
        return width, max(batches.target_width(rows) for rows in both)


@dataclass(frozen=True)
class Plan:
    """The run in numbers.

    Attributes:
        batch_size: rows per optimizer step, over all devices and micro-batches.
        steps_per_epoch, steps: optimizer steps.
    """

    batch_size: int
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, config: Config, rows: int, devices: int) -> Plan:
        size = config.per_device_train_batch_size * config.gradient_accumulation_steps * devices
        per_epoch = batches.steps_per_epoch(rows, size)
        steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)
        return cls(size, per_epoch, steps)


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl: a training step, with the evaluation loss where one was taken after it."""

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


class Trainer:
    """A model with its adapter, its optimizer and its data on one backend.

    Nothing here is remembered that (seed, step) does not determine, apart from the LoRA tensors and the optimizer's
    state.
    """

    def __init__(self, model: nn.Module, config: Config, data: TrainingData, backend: Backend):
        self.model, self.config, self.data, self.backend = model, config, data, backend
        self.plan = Plan.of(config, len(data.train), backend.world_size * backend.groups)
        self.parameters = list(adapter.trained_parameters(model).values())
        backend.place(model)
        self.loss = backend.parallel(PackedLoss(model))
        self.optimizer = optim.make_optimizer(config, self.parameters)
        self._static = data.static_shape() if backend.static_shapes else None

    def run(self, on_step: Callable[[StepMetrics], None]) -> list[StepMetrics]:
        """Train to the end of the plan.

        Raises:
            TrainingError: a loss or gradient was not finite; the weights are those of the last good step.
        """
        history = []
        for step in range(self.plan.steps):
            metrics = self.step(step)
            last = step + 1 == self.plan.steps
            if len(self.data.test) and (last or (step + 1) % self.plan.steps_per_epoch == 0):
                metrics = StepMetrics(**{**asdict(metrics), "eval_loss": self.evaluation_loss()})
            history.append(metrics)
            on_step(metrics)
        return history

    def step(self, step: int, *, update: bool = True) -> StepMetrics:
        """One optimizer step (counted from 0); with `update` False the weights stay as they are."""
        started = time.perf_counter()
        epoch, in_epoch = divmod(step, self.plan.steps_per_epoch)
        chosen = batches.batch_rows(len(self.data.train), self.plan.batch_size, self.config.seed, epoch, in_epoch)
        count = batches.supervised_count(self.data.train, chosen)
        rate = optim.learning_rate(self.config, step, self.plan.steps)
        loss, norm = self._gradients(step, chosen, count)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            rows = ", ".join(str(i) for i in chosen if i != PADDING_ROW)
            raise TrainingError(
                f"step {step + 1}: the {'loss' if not math.isfinite(loss) else 'gradient'} is not finite",
                details=[f"training rows of this step: {rows}"],
                hint="lower --learning-rate, or look at these rows with `prepare --show`",
            )
        if update:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.backend.end_step()
        seconds = time.perf_counter() - started
        real = int((chosen != PADDING_ROW).sum())
        return StepMetrics(step + 1, (step + 1) / self.plan.steps_per_epoch, loss, norm, rate, real / seconds, count)

    def _gradients(self, step: int, chosen: np.ndarray, count: int) -> tuple[float, float]:
        """Accumulate the step's gradients and clip them; returns its mean loss and the norm before clipping."""
        backend, config = self.backend, self.config
        self.model.train()
        micros = config.gradient_accumulation_steps
        mine = chosen.reshape(micros, backend.world_size, -1)[:, backend.rank]
        total = torch.zeros((), device=backend.device)
        for micro, rows in enumerate(mine):
            seed_micro_batch(config.seed, step, micro, backend.rank)
            with backend.accumulating(self.loss, last=micro == micros - 1):
                summed = self.loss(*self._inputs(self.data.train, rows))
                (summed * (backend.gradient_scale / count)).backward()
            total += summed.detach()
        limit = config.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        return backend.fetch_sum(total) / count, float(norm)

    def _inputs(self, data: Sequence[TokenizedRow], rows: np.ndarray) -> tuple:
        batch = batches.pack(data, rows, self.data.prefix, self.backend.groups, self._static)
        window = self.model.config.sliding_window
        return inputs(batch, len(self.data.prefix), window, self.backend.put)

    @torch.no_grad()
    def evaluation_loss(self) -> float:
        """Mean cross-entropy in nats per supervised token over the held-out rows, without dropout."""
        self.model.eval()
        data, backend = self.data.test, self.backend
        per_process = self.config.per_device_eval_batch_size * backend.groups
        total, count = torch.zeros((), device=backend.device), 0
        for rows in batches.in_order(len(data), per_process * backend.world_size):
            mine = rows.reshape(backend.world_size, -1)[backend.rank]
            count += batches.supervised_count(data, rows)
            if (mine != PADDING_ROW).any():
                # Not through the data-parallel wrapper: processes may have different numbers of batches.
                total += backend.unwrap(self.loss)(*self._inputs(data, mine))
        return backend.fetch_sum(total) / count
