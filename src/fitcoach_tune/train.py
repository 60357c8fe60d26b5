"""The train verb: a prepared set and a base model in, a run directory out."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import files, models, prepare, prepared_set, runs
from fitcoach_tune.config import Config, to_yaml
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import DataError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.models import Base
    from fitcoach_tune.prepared_set import PreparedSet
    from fitcoach_tune.training.core import StepMetrics, Trainer

METRICS_NAME = "metrics.jsonl"
_RUN_FORMAT = 1


class Clock:
    """Wall time in seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def train(config: Config, *, force: bool = False, ui: Console = SILENT) -> runs.Run:
    """Fine-tune, save, and check that what was saved is what was trained.

    Args:
        force: start anew although there is a finished run in the output folder; that one is kept as `NAME.previous`.

    Raises:
        FitcoachTuneError: see the parts; a run that was there before is untouched.
    """
    from fitcoach_tune.backends import make_backend

    output = Path(config.output_dir)
    _check_output(output, force)
    backend = make_backend(config.device, config.num_devices)
    if backend.rank:
        ui = SILENT
    try:
        return _train(config, output, backend, ui)
    finally:
        backend.close()


def _train(config: Config, output: Path, backend: Backend, ui: Console) -> runs.Run:
    clock = Clock()
    with clock.phase("prepare"):
        with backend.first_process_first():
            prepared = ensure_prepared(config, ui)
            base = models.resolve(config.model, config.model_revision, ui)
        config = with_data_settings(config, prepared)
        prepared_set.check_base(prepared, base)
    with clock.phase("load"):
        trainer, parameters = build(config, prepared, base, backend)
    ui.note(describe_plan(config, prepared, trainer, parameters))
    if backend.compiled:
        ui.note("the first step is compiled, which can take minutes; the next run of the same shapes finds it cached")
    writes = backend.rank == 0
    with clock.phase("train"):
        if writes:
            _start_output(output, ui)
        history = _run(trainer, output, config, ui, writes)
    for where in backend.statistics().get("recompiled", []):
        ui.warn(f"compiled again at {where}")
    tensors = trained_tensors(trainer)
    if not writes:
        return runs.Run(str(output), output, {})
    with clock.phase("save"):
        record = _record(config, prepared, base, backend, trainer, parameters, history)
        save(output, config, prepared, base, tensors, history)
    ui.note("checking that the saved adapter loads as it was trained")
    with clock.phase("check"):
        from fitcoach_tune.training.check import check_saved

        row = prepared.train[0].input_ids.tolist()
        record["check"] = check_saved(output, base, tensors, config.lora_alpha / config.lora_r, row)
    _finish(output, record, clock, config)
    ui.note(f"saved {output}")
    return runs.open_run(str(output))


def _check_output(output: Path, force: bool) -> None:
    if (output / runs.RUN_NAME).exists() and not force:
        raise OutputError(
            "a finished run is there already",
            where=f"--output-dir {output}",
            hint="choose another --output-dir, or --force to train anew (the old run is kept as .previous)",
        )
    if output.exists() and not (output.is_dir() and (_is_ours(output) or not any(output.iterdir()))):
        raise OutputError("it exists and is not a run of this program", where=f"--output-dir {output}")
    probe = output.parent / f".{output.name}.{os.getpid()}.probe"  # processes that train together all look
    files.write_atomic(probe, b"")
    probe.unlink()


def _is_ours(output: Path) -> bool:
    return (output / runs.RUN_NAME).exists() or (output / METRICS_NAME).exists()


def _start_output(output: Path, ui: Console) -> None:
    """Make the output folder; an older run in it steps aside, now that this one is about to train."""
    if output.exists() and any(output.iterdir()):
        ui.note(f"the run that was there is kept as {files.set_aside(output)}")
    output.mkdir(parents=True, exist_ok=True)


# ------------------------------------------------------------------------------------------------ building blocks


def ensure_prepared(config: Config, ui: Console = SILENT, scratch: Path | None = None) -> PreparedSet:
    """The configured prepared set; made first if it is not there, or if the rows' file has changed since.

    Args:
        scratch: where to make it instead, so that what is there stays as it is.
    """
    path = prepare.prepared_path(config)
    target = scratch or path
    if not (path / prepared_set.MANIFEST).is_file():
        return prepare.prepare(config, ui, target)
    prepared = prepared_set.open_set(path)
    if config.data is None and not prepare.is_current(prepared, config):
        ui.note(f"{config.dataset} or its tools have changed since they were prepared")
        return prepare.prepare(config, ui, target)
    ui.note(f"using the prepared set {path}")
    return prepared


def with_data_settings(config: Config, prepared: PreparedSet) -> Config:
    """The configuration with the settings that the prepared set was really made with."""
    settings = prepared.manifest["settings"]
    shape = ("dataset", "revision", "tools", "max_length", "excess_length", "test_size", "split")
    return config.model_copy(update={name: settings[name] for name in shape} | {"data": str(prepared.path)})


def build(config: Config, prepared: PreparedSet, base: Base, backend: Backend) -> tuple[Trainer, int]:
    """Load the base, attach the adapter and bring both to the device; returns the trainer and its parameter count."""
    from fitcoach_tune.training import adapter
    from fitcoach_tune.training.core import Trainer, TrainingData

    if not len(prepared.train):
        raise DataError("the prepared set has no training rows", where=str(prepared.path))
    model = models.load_model(base, config.dtype)
    parameters = adapter.attach(
        model,
        rank=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        seed=config.seed,
    )
    data = TrainingData(prepared.train, prepared.test, prepared.prefix)
    return Trainer(model, config, data, backend), parameters


def describe_plan(config: Config, prepared: PreparedSet, trainer: Trainer, parameters: int) -> str:
    """The run in one line."""
    plan = trainer.plan
    return (
        f"training {parameters:,} parameters on {len(prepared.train)} rows: "
        f"{plan.steps} steps of {plan.batch_size} rows on {trainer.backend.describe()}, "
        f"{config.dtype}, {config.optim} at {config.learning_rate:g}"
    )


def _run(trainer: Trainer, output: Path, config: Config, ui: Console, writes: bool) -> list[StepMetrics]:
    from fitcoach_tune.training.report import Reporter

    if not writes:
        return trainer.run(lambda _: None)
    with Reporter(output / METRICS_NAME, config) as report, ui.bar("training", trainer.plan.steps, "steps") as update:

        def on_step(metrics: StepMetrics) -> None:
            report.write(metrics)
            shown = {"loss": f"{metrics.loss:.4f}", "lr": f"{metrics.learning_rate:.1e}"}
            shown["ex/s"] = f"{metrics.examples_per_second:.1f}"
            update(metrics.step, **shown)

        return trainer.run(on_step)


def trained_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The LoRA tensors on the CPU, by PEFT's keys."""
    from fitcoach_tune.training import adapter

    return trainer.backend.to_host(adapter.trained_parameters(trainer.model))


# ------------------------------------------------------------------------------------------------ the run directory


def save(
    output: Path,
    config: Config,
    prepared: PreparedSet,
    base: Base,
    tensors: dict[str, Tensor],
    history: list[StepMetrics],
) -> None:
    """Write everything but run.json, which comes last and makes the run a finished one."""
    from peft import LoraConfig
    from safetensors.torch import save as to_bytes

    from fitcoach_tune.training import adapter, report

    targets = sorted({key.split(".lora_")[0].rsplit(".", 1)[-1] for key in tensors})
    LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        base_model_name_or_path=base.reference,
        revision=base.revision if base.name != models.OFFLINE else None,
        inference_mode=True,
    ).save_pretrained(output)
    files.write_atomic(output / adapter.WEIGHTS_NAME, to_bytes(tensors, metadata={"format": "pt"}))
    models.copy_tokenizer(base.path, output, prepared.chat_template)
    files.write_atomic(output / "config.resolved.yaml", to_yaml(config))
    if prompt := prepared.common_prompt():
        files.write_atomic(output / runs.PROMPT_NAME, files.to_json(prompt))
    report.plot_losses(history, output / "loss.png")


def _record(
    config: Config,
    prepared: PreparedSet,
    base: Base,
    backend: Backend,
    trainer: Trainer,
    parameters: int,
    history: list[StepMetrics],
) -> dict[str, Any]:
    manifest = prepared.manifest
    keys = ("source", "rows", "tokens", "prefix", "data_sha256", "tools_sha256", "template_sha256")
    # The first step pays for what is set up once; the rate is that of the others, where there are others.
    speeds = sorted(m.examples_per_second for m in history[1:] or history)
    return {
        "format": _RUN_FORMAT,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": prepared_set.versions() | {"python": platform.python_version()},
        "device": {
            "name": backend.name,
            "hardware": backend.describe(),
            "count": backend.world_size * backend.groups,
            **backend.statistics(),
        },
        "base": {
            "name": base.name,
            "revision": base.revision,
            "reference": base.reference,
            "tokenizer_sha256": models.tokenizer_hash(base.path),
            "weights_sha256": models.weights_hash(base.path),
        },
        "data": {"path": str(prepared.path), **{key: manifest[key] for key in keys}},
        "config": config.model_dump(mode="json"),
        "training": {
            "trainable_parameters": parameters,
            "batch_size": trainer.plan.batch_size,
            "steps": len(history),
            "epochs": history[-1].epoch,
            "first_loss": history[0].loss,
            "last_loss": history[-1].loss,
            "eval_losses": [{"step": m.step, "eval_loss": m.eval_loss} for m in history if m.eval_loss is not None],
            "examples_per_second": speeds[len(speeds) // 2],
            "peak_memory_bytes": backend.peak_memory(),
        },
    }


def _finish(output: Path, record: dict[str, Any], clock: Clock, config: Config) -> None:
    from fitcoach_tune.training.report import run_readme

    total = sum(clock.seconds.values())
    record["seconds"] = clock.seconds | {"total": round(total, 3)}
    if config.price_per_hour is not None:
        record["price"] = {"per_hour": config.price_per_hour, "total": round(config.price_per_hour * total / 3600, 4)}
    files.write_atomic(output / "README.md", run_readme(record))
    record["files"] = {
        file.name: files.sha256_file(file)
        for file in sorted(output.iterdir())
        if file.is_file() and file.name[0] != "."
    }
    files.write_atomic(output / runs.RUN_NAME, files.to_json(record))
