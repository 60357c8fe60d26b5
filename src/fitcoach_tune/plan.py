"""`train --dry-run`: everything resolved and validated, one step measured, nothing changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import models, prepare, prepared_set
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.train import build, with_data_settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fitcoach_tune.prepared_set import PreparedSet


def dry_run(config: Config, ui: Console = SILENT) -> dict[str, Any]:
    """Plan a run without writing anything but caches.

    Returns:
        Rows, steps, parameters, and from one measured step: seconds, examples per second, peak memory in bytes, and
        where a price per hour is given the price.

    Raises:
        FitcoachTuneError: what the run itself would raise before its first step.
    """
    from fitcoach_tune.backends import make_backend

    with tempfile.TemporaryDirectory(prefix="fitcoach-tune-") as scratch:
        prepared = _prepared(config, Path(scratch) / "set", ui)
        given = config.data
        config = with_data_settings(config, prepared)
        base = models.resolve(config.model, config.model_revision, ui)
        prepared_set.check_base(prepared, base)
        backend = make_backend(config.device, config.num_devices)
        try:
            trainer, parameters = build(config, prepared, base, backend)
            ui.note("measuring one step")
            trainer.step(0, update=False)  # what is set up once is paid here
            measured = trainer.step(min(1, trainer.plan.steps - 1), update=False)
        finally:
            backend.close()
        plan = trainer.plan
        speed = measured.examples_per_second
        examples = plan.steps / plan.steps_per_epoch * len(prepared.train)
        seconds = examples / speed
        return {
            "model": base.name,
            "data": given or str(prepare.default_path(config)),
            "output_dir": config.output_dir,
            "device": backend.describe(),
            "rows": {"train": len(prepared.train), "test": len(prepared.test)},
            "prefix_tokens": len(prepared.prefix),
            "trainable_parameters": parameters,
            "batch_size": plan.batch_size,
            "steps": plan.steps,
            "epochs": plan.steps / plan.steps_per_epoch,
            "examples_per_second": round(speed, 2),
            "peak_memory_bytes": backend.peak_memory(),
            "training_seconds": round(seconds, 1),
            "price": None if config.price_per_hour is None else round(config.price_per_hour * seconds / 3600, 4),
        }


def _prepared(config: Config, scratch: Path, ui: Console) -> PreparedSet:
    path = Path(config.data) if config.data else prepare.default_path(config)
    if (path / prepared_set.MANIFEST).is_file():
        return prepared_set.open_set(path)
    return prepare.prepare(config, ui, scratch)


def as_table(plan: dict[str, Any]) -> RenderableType:
    """The plan as the terminal shows it."""
    from rich.table import Table

    table = Table(title="What would be trained; nothing was changed", title_justify="left", show_header=False)
    minutes = plan["training_seconds"] / 60
    table.add_row("base model", plan["model"])
    table.add_row("prepared set", plan["data"])
    table.add_row("output", plan["output_dir"])
    table.add_row("device", plan["device"])
    table.add_row("rows", f"{plan['rows']['train']} to train on, {plan['rows']['test']} held out")
    table.add_row("shared prefix", f"{plan['prefix_tokens']} tokens, computed once a step")
    table.add_row("trained parameters", f"{plan['trainable_parameters']:,}")
    table.add_row("steps", f"{plan['steps']} of {plan['batch_size']} rows ({plan['epochs']:g} epochs)")
    table.add_row("memory", f"{plan['peak_memory_bytes'] / 2**30:.1f} GiB (measured)")
    table.add_row(
        "time", f"{minutes:.1f} minutes of training at {plan['examples_per_second']} examples/s (one step measured)"
    )
    if plan["price"] is not None:
        table.add_row("price", f"${plan['price']:.2f}")
    return table
