"""The run directory from train's side: may it be used, what has begun in it, and what a finished run leaves there."""

from __future__ import annotations

import json
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import files, models, prepared_set, reading, runs
from fitcoach_tune.config import Config
from fitcoach_tune.console import Console
from fitcoach_tune.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.models import Base
    from fitcoach_tune.prepared_set import PreparedSet
    from fitcoach_tune.training.checkpoint import Checkpoint
    from fitcoach_tune.training.core import Trainer
    from fitcoach_tune.training.metrics import StepMetrics

METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.resolved.yaml"
CHECKPOINTS = "checkpoints"
README_NAME, PLOT_NAME = "README.md", "loss.png"
_FILES = {*runs.OWN_FILES, METRICS_NAME, CONFIG_NAME, README_NAME, PLOT_NAME} - {runs.RUN_NAME}
_FORMAT = 1


# ------------------------------------------------------------------------------------------------ before training


def check_wanted(config: Config, force: bool) -> None:
    """Refuse what can be seen not to end well before anything is loaded.

    Raises:
        ConfigError: `force` and a checkpoint to go on with, or a tracker that is not installed.
        OutputError: see `check_free`.
    """
    from fitcoach_tune.training.report import check_tracker

    if force and config.resume_from_checkpoint:
        raise ConfigError(
            "one starts anew and the other goes on", where="--force, --resume-from-checkpoint", hint="give one of them"
        )
    check_tracker(config)
    check_free(Path(config.output_dir), force)


def check_free(output: Path, force: bool) -> None:
    """Refuse a place that is not for a run, or holds a finished one.

    Raises:
        OutputError: says which.
    """
    if (output / runs.RUN_NAME).exists() and not force:
        raise OutputError(
            "a finished run is there already",
            where=f"--output-dir {output}",
            hint="choose another --output-dir, or --force to train anew (the old run is kept as .previous)",
        )
    if force and output.name in ("", ".."):
        raise OutputError("it cannot step aside under this name", where=f"--output-dir {output}", hint="give its own")
    if not output.exists():
        return
    ours = (runs.RUN_NAME, METRICS_NAME, CONFIG_NAME, CHECKPOINTS)
    if not output.is_dir() or (_contents(output) and not any((output / name).exists() for name in ours)):
        raise OutputError("it exists and is not a run of this program", where=f"--output-dir {output}")


def _contents(output: Path) -> list[Path]:
    """What is in it, apart from a lock and what a killed process has left."""
    return [p for p in output.iterdir() if p.name != files.LOCK_NAME and not files.is_leftover(p)]


def has_begun(output: Path) -> bool:
    """Does it hold steps of a run, or could it: a checkpoint, or metrics?"""
    metrics, folder = output / METRICS_NAME, output / CHECKPOINTS
    begun = metrics.is_file() and metrics.stat().st_size > 0
    return begun or (folder.is_dir() and any(not files.is_leftover(path) for path in folder.iterdir()))


def find_checkpoint(output: Path, config: Config, force: bool, ui: Console) -> Checkpoint | None:
    """What `--resume-from-checkpoint` names: `auto` is the newest in the folder, and None, the beginning, if there is
    nothing in it yet. With `force` there is nothing to go on with.

    Raises:
        OutputError: a run has begun there, and nothing says that it should go on.
        ConfigError, MismatchError: the checkpoint cannot be used.
    """
    from fitcoach_tune.training import checkpoint

    wanted = config.resume_from_checkpoint
    if force:
        return None
    if wanted == "auto":
        if has_begun(output):
            return checkpoint.newest(output / CHECKPOINTS, ui.warn)
        ui.note("no run has begun there yet: starting at the beginning")
        return None
    found = checkpoint.read(reading.user_path(wanted, "--resume-from-checkpoint")) if wanted else None
    if has_begun(output) and not (found and is_inside(found, output)):
        steps = checkpoint.steps(output / CHECKPOINTS)
        goes_on = f"`{resume_command(config)}` goes on with it; " if steps else ""
        raise OutputError(
            "a run that is not finished is there" + f", with a checkpoint of step {max(steps or [0])}" * bool(steps),
            where=f"--output-dir {output}",
            hint=f"{goes_on}--force trains anew (what is there is kept beside it)",
        )
    return found


def is_inside(found: Checkpoint, output: Path) -> bool:
    """Is it one of the folder's own checkpoints?"""
    return found.path.resolve().parent == (output / CHECKPOINTS).resolve()


def resume_command(config: Config, processes: int = 1) -> str:
    """What to type to go on with the run in the configured folder."""
    program = ["fitcoach-tune"]
    if processes > 1:
        program = ["torchrun", "--nproc-per-node", str(processes), "-m", "fitcoach_tune"]
    settings = str(Path(config.output_dir) / CONFIG_NAME)
    return shlex.join([*program, "train", "--config", settings, "--resume-from-checkpoint", "auto"])


def check_room(output: Path, config: Config, base: Base, found: Checkpoint | None) -> None:
    """Write the adapter and the first checkpoints' bytes, and delete them: a full disk is found before an hour is lost.

    Raises:
        OutputError: names the folder and the bytes.
    """
    from fitcoach_tune.training import checkpoint

    lora, state = checkpoint.sizes(models.read_config(base), config)
    there = len(checkpoint.steps(output / CHECKPOINTS)) if found and is_inside(found, output) else 0
    # While one is written, those that are kept are still there; of a long row of them the first are enough to try.
    more = min(3, max(1, limit(config) + 1 - there)) if config.save_steps != 0 else 0
    files.probe(output, [lora, (base.path / "tokenizer.json").stat().st_size, *[lora, state] * more])


def limit(config: Config) -> int:
    """How many checkpoints are kept while training."""
    return config.save_total_limit or 2


def begin(output: Path, lock: files.FolderLock, ui: Console) -> None:
    """Make room for a run that begins; one that is there steps aside, now that this one is about to train.

    It takes the place of the one that stepped aside before; but a run that was not finished never that of one that was.
    """
    is_finished = (output / runs.RUN_NAME).exists()
    if is_finished or has_begun(output):
        kept = output.with_name(output.name + runs.PREVIOUS) / runs.RUN_NAME
        aside = files.set_aside(output, runs.PREVIOUS if is_finished or not kept.exists() else runs.UNFINISHED)
        lock.follow(aside)
        ui.note(f"the run that was there is kept as {aside}")


# ------------------------------------------------------------------------------------------------ after training


def save(
    output: Path,
    config: Config,
    prepared: PreparedSet,
    base: Base,
    tensors: dict[str, Tensor],
    history: list[StepMetrics],
) -> None:
    """Write everything but run.json, which comes last and makes the run a finished one.

    Raises:
        OutputError: a file cannot be written; it and its bytes are named.
    """
    from peft import LoraConfig
    from safetensors.torch import save as to_bytes

    from fitcoach_tune.training import adapter, report

    targets = sorted({key.split(".lora_")[0].rsplit(".", 1)[-1] for key in tensors})
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        base_model_name_or_path=base.reference,
        revision=base.revision if base.name != models.OFFLINE else None,
        inference_mode=True,
    ).to_dict()
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(settings.items())}
    files.write_atomic(output / adapter.CONFIG_NAME, files.to_json(listed))
    files.write_atomic(output / adapter.WEIGHTS_NAME, to_bytes(tensors, metadata={"format": "pt"}))
    models.copy_tokenizer(base.path, output, prepared.chat_template)
    if prompt := prepared.common_prompt():
        files.write_atomic(output / runs.PROMPT_NAME, files.to_json(prompt))
    report.plot_losses(history, output / PLOT_NAME)


def describe(config: Config, batch_size: int, prepared: PreparedSet, base: Base, backend: Backend) -> dict[str, Any]:
    """The facts that make this run what it is: see `training.resume`."""
    count = backend.world_size * backend.groups
    return {
        "data": {key: prepared.manifest[key] for key in ("data_sha256", "tools_sha256", "template_sha256")},
        "base": {
            "name": base.name,
            "revision": base.revision,
            "reference": base.reference,
            "tokenizer_sha256": models.tokenizer_hash(base.path),
            "weights_sha256": models.weights_hash(base.path),
        },
        "config": config.model_dump(mode="json"),
        "batch_size": batch_size,
        "device": {"name": backend.name, "count": count, "first": count},
        "versions": prepared_set.versions() | {"python": platform.python_version()},
    }


def record(
    facts: dict[str, Any], prepared: PreparedSet, trainer: Trainer, parameters: int, resumed_at: list[int]
) -> dict[str, Any]:
    """What run.json says, but for the times, the check and the files."""
    manifest, history, backend = prepared.manifest, trainer.history, trainer.backend
    # The first step pays for what is set up once; the rate is that of the others, where there are others.
    speeds = sorted(m.examples_per_second for m in history[1:] or history)
    return {
        "format": _FORMAT,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": facts["versions"],
        "device": {
            "name": backend.name,
            "hardware": backend.describe(),
            "count": facts["device"]["count"],
            **backend.statistics(),
        },
        "base": facts["base"],
        "data": {
            "path": str(prepared.path),
            **{key: manifest[key] for key in ("source", "rows", "tokens", "prefix")},
            **facts["data"],
        },
        "config": facts["config"],
        "training": {
            "trainable_parameters": parameters,
            "batch_size": trainer.plan.batch_size,
            "steps": len(history),
            "resumed_at": resumed_at,
            "epochs": history[-1].epoch,
            "first_loss": history[0].loss,
            "last_loss": history[-1].loss,
            "eval_losses": [{"step": m.step, "eval_loss": m.eval_loss} for m in history if m.eval_loss is not None],
            "examples_per_second": speeds[len(speeds) // 2],
            "peak_memory_bytes": backend.peak_memory(),
        },
    }


def finish(output: Path, record: dict[str, Any], seconds: dict[str, float], config: Config) -> None:
    """Write README.md and run.json; the run is finished then, and its checkpoints go unless a number was asked for."""
    from fitcoach_tune.training.report import run_readme

    total = sum(seconds.values())
    record["seconds"] = seconds | {"total": round(total, 3)}
    if config.price_per_hour is not None:
        record["price"] = {"per_hour": config.price_per_hour, "total": round(config.price_per_hour * total / 3600, 4)}
    named = output / runs.PROMPT_NAME
    prompt = json.loads(named.read_bytes()) if named.is_file() else None
    files.write_atomic(output / README_NAME, run_readme(record, prompt))
    record["files"] = {
        name: files.sha256_file(output / name) for name in sorted(_FILES) if (output / name).is_file()
    }  # and nothing that somebody else has put there, such as a log of this very command
    files.write_atomic(output / runs.RUN_NAME, files.to_json(record))
    if config.save_total_limit is None:
        files.remove_folder(output / CHECKPOINTS)
