"""The training loop: the same plain loop for every backend.

A step takes the rows of its batch, divides the summed loss by the batch's GLOBAL number of supervised tokens (so that
devices and accumulation change nothing), checks that loss and gradient are finite, and only then moves the weights.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fitcoach_tune.backends.base import Backend
from fitcoach_tune.config import Config
from fitcoach_tune.errors import TrainingError
from fitcoach_tune.training import adapter, batches, checkpoint, optim
from fitcoach_tune.training.batches import PADDING_ROW, PackedBatch, TokenizedRow
from fitcoach_tune.training.checkpoint import Snapshot
from fitcoach_tune.training.metrics import StepMetrics
from fitcoach_tune.training.step import PackedLoss, inputs
from fitcoach_tune.training.variation import Variation


@dataclass(frozen=True)
class TrainingData:
    """What the loop trains on.

    Attributes:
        train, test: tokenized rows; `test` may be empty.
        prefix: int [P], the tokens that all rows start with.
        origin: where a training row, by its number, came from, for messages.
        variation: how the prompt's tools vary from step to step, if they do.
    """

    train: Sequence[TokenizedRow]
    test: Sequence[TokenizedRow]
    prefix: np.ndarray
    origin: Callable[[int], str] | None = None
    variation: Variation | None = None

    def at(self, step: int) -> tuple[Sequence[TokenizedRow], np.ndarray]:
        """The training rows and their prefix as a step, counted from 0, sees them."""
        if self.variation is None:
            return self.train, self.prefix
        return self.variation.view(step, self.train, self.prefix)

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

    What (seed, step) does not determine is the LoRA tensors, the optimizer's state and the metrics so far: a snapshot
    has these, and a trainer that starts with one goes on as the one that it was taken of would have.

    Args:
        start: what to go on from; by default the beginning.
    """

    def __init__(
        self, model: nn.Module, config: Config, data: TrainingData, backend: Backend, start: Snapshot | None = None
    ):
        self.model, self.config, self.data, self.backend = model, config, data, backend
        self.plan = Plan.of(config, len(data.train), backend.world_size * backend.groups)
        self.history: list[StepMetrics] = list(start.metrics) if start else []
        if start:
            checkpoint.restore(adapter.trained_parameters(model), start.lora)
        backend.place_sharded(model, config)
        named = adapter.trained_parameters(model)
        self.parameters = list(named.values())
        self.loss = backend.parallel(PackedLoss(model))
        self.optimizer = optim.make_optimizer(config, self.parameters, capturable=backend.compiled)
        if start:
            checkpoint.restore(checkpoint.optimizer_tensors(self.optimizer, named), start.optimizer)
        backend.place_state(self.optimizer)
        self._static = data.static_shape() if backend.compiled else None

    def run(
        self,
        on_step: Callable[[StepMetrics], None],
        save: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[StepMetrics]:
        """Train to the end of the plan, or until `stop` says so after a step; returns the metrics of all steps.

        A compiled backend computes a step while the host prepares the next one and reads the values of the one before.

        Args:
            on_step: hears of each step, once its values, and those of the evaluation after it, are known. If it stops
                before that evaluation, it hears of the step without it, and again when a later run has made up for it.
            save: called when a checkpoint is due: values were read and found finite up to the step just taken. The
                evaluation comes after it, so that stopping does not have to wait for one.

        Raises:
            TrainingError: a loss or gradient was not finite. An eager backend's weights are then those of the last good
                step; a compiled one's are spoiled, and only good for throwing away.
        """
        sent: deque[SentStep] = deque()
        clock = time.perf_counter()

        def settle(in_flight: int) -> None:
            nonlocal clock
            while len(sent) > in_flight:
                self.history.append(self.read(sent.popleft(), since=clock))
                clock = time.perf_counter()
                if not self.owes_evaluation:
                    on_step(self.history[-1])

        def evaluate() -> None:
            if self.owes_evaluation:
                self.history[-1] = replace(self.history[-1], eval_loss=self.evaluation_loss())
                on_step(self.history[-1])

        evaluate()
        clock = time.perf_counter()
        for step in range(len(self.history), self.plan.steps):
            sent.append(self.send(step))
            stopping = self._anywhere(stop())
            saving, evaluating = stopping or self._saves_after(step + 1), self._evaluates_after(step + 1)
            settle(1 if self.backend.compiled and not (saving or evaluating) else 0)
            if saving:
                save()
            if stopping:
                if self.owes_evaluation:
                    on_step(self.history[-1])
                break
            if saving or evaluating:
                evaluate()
                clock = time.perf_counter()
        settle(0)
        return self.history

    @property
    def owes_evaluation(self) -> bool:
        """The last step calls for an evaluation that was not done."""
        return self._evaluates_after(len(self.history)) and self.history[-1].eval_loss is None

    @property
    def finished(self) -> bool:
        """The plan was carried out."""
        return len(self.history) == self.plan.steps and not self.owes_evaluation

    def _evaluates_after(self, steps: int) -> bool:
        ends = steps == self.plan.steps or steps % self.plan.steps_per_epoch == 0
        return bool(len(self.data.test)) and steps > 0 and ends

    def _saves_after(self, steps: int) -> bool:
        if self.config.save_steps == 0:
            return False
        return steps == self.plan.steps or steps % (self.config.save_steps or self.plan.steps_per_epoch) == 0

    def _anywhere(self, flag: bool) -> bool:
        """Does any process say so? All must ask, and all get the same answer."""
        return flag if self.backend.world_size == 1 else self.sum_over(float(flag)) > 0

    def sum_over(self, value: float) -> float:
        """The sum of each device's value; all processes must ask. Waits for the device."""
        values = np.full(self.backend.groups, value, dtype=np.float32)
        return self.backend.fetch_sum(self.backend.put(values).sum())

    def snapshot(self) -> Snapshot:
        """What training has come to; all processes must ask, after the values of all steps were read.

        Raises:
            TrainingError: the last update has spoiled the weights.
        """
        lora = adapter.trained_parameters(self.model)
        state = checkpoint.optimizer_tensors(self.optimizer, lora)
        whole = self.backend.to_host({**lora, **state})
        taken = Snapshot({k: whole[k] for k in lora}, {k: whole[k] for k in state}, list(self.history))
        checkpoint.check_finite(taken)
        return taken

    def step(self, step: int, *, update: bool = True) -> StepMetrics:
        """One optimizer step (counted from 0) and its values; with `update` False the weights stay as they are."""
        started = time.perf_counter()
        return self.read(self.send(step, update=update), since=started)

    def send(self, step: int, *, update: bool = True) -> SentStep:
        """One optimizer step (counted from 0). Nothing is read back from a compiled backend."""
        epoch, in_epoch = divmod(step, self.plan.steps_per_epoch)
        rows = batches.batch_rows(len(self.data.train), self.plan.batch_size, self.config.seed, epoch, in_epoch)
        data, prefix = self.data.at(step)
        count = batches.supervised_count(data, rows)
        rate = optim.learning_rate(self.config, step, self.plan.steps)
        packed = self._pack(data, prefix, rows, self.config.gradient_accumulation_steps)
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
            origin = self.data.origin
            named = [f"{i} ({origin(i)})" if origin else str(i) for i in sent.rows.tolist() if i != PADDING_ROW]
            raise TrainingError(
                f"step {sent.step + 1}: the {'loss' if not math.isfinite(loss) else 'gradient'} is not finite",
                details=[f"training rows of this step: {', '.join(named)}"],
                hint="lower --learning-rate, or look at these rows with `prepare --show`",
            )
        return loss, norm

    def _pack(
        self, data: Sequence[TokenizedRow], prefix: np.ndarray, rows: np.ndarray, micros: int = 1
    ) -> list[PackedBatch]:
        """This process's share of a batch: its micro-batches, cut into parts where the device is better at those."""
        backend = self.backend
        mine = batches.process_rows(rows, micros, backend.world_size, backend.rank)
        if most := backend.most_tokens:
            mine = [part for micro in mine for part in batches.parts(data, micro, len(prefix), most)]
        return [batches.pack(data, part, prefix, backend.groups, self._static) for part in mine]

    def _inputs(self, batch: PackedBatch) -> tuple:
        return inputs(batch, self.model.config.sliding_window, self.backend.put)

    @torch.no_grad()
    def evaluation_loss(self) -> float:
        """Mean cross-entropy in nats per supervised token over the held-out rows, without dropout.

        Raises:
            TrainingError: it is not finite.
        """
        self.model.eval()
        data, backend = self.data.test, self.backend
        size = self.config.per_device_eval_batch_size * backend.groups * backend.world_size
        sums, count = [], 0
        for rows in batches.in_order(len(data), size):
            count += batches.supervised_count(data, rows)
            for batch in self._pack(data, self.data.prefix, rows):
                with backend.graph("evaluation", "evaluation", batch.shapes()):
                    sums.append(backend.unwrap(self.loss)(*self._inputs(batch)))
                    backend.end_step()
        mean = self._total(sums) / count
        if not math.isfinite(mean):
            raise TrainingError(
                f"the evaluation loss after step {len(self.history)} is not finite", hint="lower --learning-rate"
            )
        return mean

    def _total(self, sums: Sequence[Tensor]) -> float:
        """The sum of the float32 scalars of all processes; all must ask."""
        if self.backend.compiled:  # all have as many, and adding them on the device would be another graph
            return sum(self.backend.fetch_sum(value) for value in sums)
        # At once: processes may have cut their rows into different numbers of parts.
        return self.backend.fetch_sum(torch.stack(list(sums)).sum())
