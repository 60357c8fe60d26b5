"""The training loop: the same plain loop for every backend.

A step takes the rows of its batch, divides the summed loss by the batch's GLOBAL number of supervised tokens (so that
devices and accumulation change nothing), checks that loss and gradient are finite, and only then moves the weights.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fitcoach_tune.backends.base import Backend
from fitcoach_tune.config import Config
from fitcoach_tune.errors import TrainingError
from fitcoach_tune.training import adapter, batches, optim
from fitcoach_tune.training.batches import PADDING_ROW, PackedBatch, TokenizedRow
from fitcoach_tune.training.step import PackedLoss, inputs


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


@dataclass(frozen=True)
class SentStep:
    """A step whose values are still on the device.

    Attributes:
        loss: float32 scalar, this process's summed loss; norm: float32 scalar, the gradient's norm before clipping.
        rows: row numbers of the batch, padding included; count: its supervised tokens.
        rate: its learning rate.
        values: mean loss and norm on the host, if they were read already.
    """

    step: int
    loss: Tensor
    norm: Tensor
    rows: np.ndarray
    count: int
    rate: float
    values: tuple[float, float] | None = None


class Trainer:
    """A model with its adapter, its optimizer and its data on one backend.

    Nothing here is remembered that (seed, step) does not determine, apart from the LoRA tensors and the optimizer's
    state.
    """

    def __init__(self, model: nn.Module, config: Config, data: TrainingData, backend: Backend):
        self.model, self.config, self.data, self.backend = model, config, data, backend
        self.plan = Plan.of(config, len(data.train), backend.world_size * backend.groups)
        backend.place_sharded(model, config)
        self.parameters = list(adapter.trained_parameters(model).values())
        self.loss = backend.parallel(PackedLoss(model))
        self.optimizer = optim.make_optimizer(config, self.parameters, capturable=backend.compiled)
        backend.place_state(self.optimizer)
        self._static = data.static_shape() if backend.compiled else None

    def run(self, on_step: Callable[[StepMetrics], None]) -> list[StepMetrics]:
        """Train to the end of the plan.

        A compiled backend computes a step while the host prepares the next one and reads the values of the one before.

        Raises:
            TrainingError: a loss or gradient was not finite. An eager backend's weights are then those of the last good
                step; a compiled one's are spoiled, and only good for throwing away.
        """
        history: list[StepMetrics] = []
        sent: deque[SentStep] = deque()
        clock = time.perf_counter()

        def settle(in_flight: int, evaluated: bool = False) -> None:
            nonlocal clock
            while len(sent) > in_flight:
                metrics, clock = self.read(sent.popleft(), since=clock), time.perf_counter()
                if evaluated and not sent:
                    metrics = replace(metrics, eval_loss=self.evaluation_loss())
                    clock = time.perf_counter()
                history.append(metrics)
                on_step(metrics)

        for step in range(self.plan.steps):
            sent.append(self.send(step))
            last = step + 1 == self.plan.steps
            evaluated = bool(len(self.data.test)) and (last or (step + 1) % self.plan.steps_per_epoch == 0)
            settle(1 if self.backend.compiled and not (evaluated or last) else 0, evaluated)
        return history

    def step(self, step: int, *, update: bool = True) -> StepMetrics:
        """One optimizer step (counted from 0) and its values; with `update` False the weights stay as they are."""
        started = time.perf_counter()
        return self.read(self.send(step, update=update), since=started)

    def send(self, step: int, *, update: bool = True) -> SentStep:
        """One optimizer step (counted from 0). Nothing is read back from a compiled backend."""
        epoch, in_epoch = divmod(step, self.plan.steps_per_epoch)
        rows = batches.batch_rows(len(self.data.train), self.plan.batch_size, self.config.seed, epoch, in_epoch)
        count = batches.supervised_count(self.data.train, rows)
        rate = optim.learning_rate(self.config, step, self.plan.steps)
        packed = self._pack(self.data.train, rows, self.config.gradient_accumulation_steps)
        with self.backend.graph("training", f"step {step + 1}", packed[0].shapes()):
            sent = SentStep(step, *self._gradients(step, packed, count), rows, count, rate)
            if not self.backend.compiled:
                sent = replace(sent, values=self._fetch(sent))  # before the update, which could spoil the weights
            if update:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.backend.scalar(rate)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.backend.end_step()
        return sent

    def read(self, sent: SentStep, since: float) -> StepMetrics:
        """Fetch a step's values, waiting for it; `since` (as `time.perf_counter`) is when its time began to count.

        Raises:
            TrainingError: they are not finite.
        """
        loss, norm = sent.values or self._fetch(sent)
        real = int((sent.rows != PADDING_ROW).sum())
        speed = real / (time.perf_counter() - since)
        epoch = (sent.step + 1) / self.plan.steps_per_epoch
        return StepMetrics(sent.step + 1, epoch, loss, norm, sent.rate, speed, sent.count)

    def _gradients(self, step: int, packed: Sequence[PackedBatch], count: int) -> tuple[Tensor, Tensor]:
        """Accumulate the step's gradients and clip them; returns its summed loss and the norm before clipping."""
        backend, config = self.backend, self.config
        self.model.train()
        total = torch.zeros((), device=backend.device)
        scale = backend.scalar(backend.gradient_scale / count)
        for micro, batch in enumerate(packed):
            backend.seed(config.seed, step, micro)
            with backend.accumulating(self.loss, last=micro == len(packed) - 1):
                summed = self.loss(*self._inputs(batch))
                (summed * scale).backward()
            total += summed.detach()
        limit = config.max_grad_norm or math.inf
        return total, torch.nn.utils.clip_grad_norm_(self.parameters, limit)

    def _fetch(self, sent: SentStep) -> tuple[float, float]:
        loss, norm = self.backend.fetch_sum(sent.loss) / sent.count, float(sent.norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            rows = ", ".join(str(i) for i in sent.rows if i != PADDING_ROW)
            raise TrainingError(
                f"step {sent.step + 1}: the {'loss' if not math.isfinite(loss) else 'gradient'} is not finite",
                details=[f"training rows of this step: {rows}"],
                hint="lower --learning-rate, or look at these rows with `prepare --show`",
            )
        return loss, norm

    def _pack(self, data: Sequence[TokenizedRow], rows: np.ndarray, micros: int = 1) -> list[PackedBatch]:
        """This process's micro-batches of a batch."""
        backend = self.backend
        mine = batches.process_rows(rows, micros, backend.world_size, backend.rank)
        return [batches.pack(data, part, self.data.prefix, backend.groups, self._static) for part in mine]

    def _inputs(self, batch: PackedBatch) -> tuple:
        return inputs(batch, len(self.data.prefix), self.model.config.sliding_window, self.backend.put)

    @torch.no_grad()
    def evaluation_loss(self) -> float:
        """Mean cross-entropy in nats per supervised token over the held-out rows, without dropout."""
        self.model.eval()
        data, backend = self.data.test, self.backend
        size = self.config.per_device_eval_batch_size * backend.groups * backend.world_size
        sums, count = [], 0
        for rows in batches.in_order(len(data), size):
            count += batches.supervised_count(data, rows)
            (batch,) = self._pack(data, rows)
            with backend.graph("evaluation", "evaluation", batch.shapes()):
                sums.append(backend.unwrap(self.loss)(*self._inputs(batch)))
                backend.end_step()
        return sum(backend.fetch_sum(value) for value in sums) / count
