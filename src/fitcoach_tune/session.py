"""A run while it trains: the loop with its checkpoints and its metrics, so that it can end at any moment and go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import files, run_folder
from fitcoach_tune.config import Config, to_yaml
from fitcoach_tune.console import Console
from fitcoach_tune.errors import TrainingError

if TYPE_CHECKING:
    from fitcoach_tune.training.checkpoint import Checkpoint
    from fitcoach_tune.training.core import Trainer
    from fitcoach_tune.training.metrics import StepMetrics


class Session:
    """One process's share of a run, from its beginning or from a checkpoint on.

    A run that begins has a checkpoint before its first step, so that whatever began can go on.

    Args:
        output: the run directory; config: the run's settings, as the user gave them.
        facts: which run it is, as `training.resume` describes it.
        found: the checkpoint that `trainer` started from, if it did.
        lock: the lock on `output`, in the process that writes.
    """

    def __init__(
        self,
        output: Path,
        config: Config,
        trainer: Trainer,
        facts: dict[str, Any],
        found: Checkpoint | None,
        lock: files.FolderLock | None,
        ui: Console,
    ):
        from fitcoach_tune.training.checkpoint import Store

        self.output, self.config, self.trainer, self.facts, self.ui = output, config, trainer, facts, ui
        self.writes = lock is not None
        self._started = time.perf_counter()
        self._before = found.state["seconds"] if found else 0.0
        self.resumed_at: list[int] = [*found.state["resumed_at"], found.snapshot.step] if found else []
        goes_on = found is not None and run_folder.is_inside(found, output)
        self._new_here = not goes_on
        if lock:
            if self._new_here:
                run_folder.begin(output, lock, ui)
            files.sweep(output)
            files.sweep(output / run_folder.CHECKPOINTS)
            files.write_atomic(output / run_folder.CONFIG_NAME, to_yaml(config))
        self.store = Store(
            output / run_folder.CHECKPOINTS, run_folder.limit(config), found.snapshot.step if goes_on else None
        )

    def seconds(self) -> float:
        """Spent on training so far, that before the checkpoint included."""
        return self._before + time.perf_counter() - self._started

    def train(self, stop: Callable[[], bool]) -> None:
        """Train to the end of the plan, or until `stop`.

        Raises:
            TrainingError: values were not finite; the last checkpoint is from before that, and is named.
            OutputError: metrics or a checkpoint could not be written; the last checkpoint is untouched.
        """
        if self._new_here and self.config.save_steps != 0:
            self.save()
        try:
            if self.writes:
                self._train_and_report(stop)
            else:
                self.trainer.run(lambda _: None, self.save, stop)
        except TrainingError as error:
            if self.store.newest:
                error.details.append(f"the last checkpoint is kept: {self.store.newest}")
            raise

    def _train_and_report(self, stop: Callable[[], bool]) -> None:
        from fitcoach_tune.training.report import Reporter

        trainer, metrics = self.trainer, self.output / run_folder.METRICS_NAME
        past = trainer.history[:-1] if trainer.owes_evaluation else trainer.history[:]
        bar = self.ui.bar("training", trainer.plan.steps, "steps")
        with Reporter(metrics, self.config, past) as report, bar as update:

            def on_step(step: StepMetrics) -> None:
                report.write(step)
                shown = {"loss": f"{step.loss:.4f}", "lr": f"{step.learning_rate:.1e}"}
                shown["ex/s"] = f"{step.examples_per_second:.1f}"
                update(step.step, **shown)

            trainer.run(on_step, self.save, stop)

    def save(self) -> None:
        """Write a checkpoint of the trainer as it is; every process must call it."""
        snapshot = self.trainer.snapshot()
        with self.trainer.backend.first_process_first():  # none may end the run while it is being written
            if self.writes:
                self.store.save(snapshot, self._state(snapshot.step))

    def _state(self, step: int) -> dict[str, Any]:
        config, plan = self.config, self.trainer.plan
        return {
            "epoch": step / plan.steps_per_epoch,
            "seed": config.seed,
            "rng": "none to keep: the order of the rows follows from (seed, epoch), dropout from (seed, step)",
            "scheduler": {"type": config.lr_scheduler_type, "step": step, "steps": plan.steps},
            "seconds": round(self.seconds(), 3),
            "resumed_at": self.resumed_at,
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": self.facts,
        }
