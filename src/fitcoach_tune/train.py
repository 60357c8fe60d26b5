"""The train verb: a prepared set and a base model in, a run directory out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import files, models, prepare, prepared_set, run_folder, runs
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import DataError, MismatchError, StoppedError
from fitcoach_tune.session import Session
from fitcoach_tune.training.signals import StopSignals

if TYPE_CHECKING:
    from torch import Tensor

    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.dataset import Example
    from fitcoach_tune.models import Base
    from fitcoach_tune.prepared_set import PreparedSet
    from fitcoach_tune.training.checkpoint import Checkpoint, Snapshot
    from fitcoach_tune.training.core import Trainer
    from fitcoach_tune.training.metrics import StepMetrics
    from fitcoach_tune.training.variation import Variation


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
        force: start anew although there is a run in the output folder; that one is kept as `NAME.previous`.

    Raises:
        StoppedError: SIGTERM or Ctrl-C came while it trained; what it had come to is saved.
        FitcoachTuneError: see the parts; a run that was there before is untouched.
    """
    from fitcoach_tune.backends import make_backend

    output = Path(config.output_dir)
    run_folder.check_wanted(config, force)
    backend = make_backend(config.device, config.num_devices)
    if backend.rank:
        ui = SILENT
    try:
        if backend.rank:
            return _train(config, output, backend, ui, None, force)
        with files.FolderLock(output) as lock:
            run_folder.check_free(output, force)  # it may have filled up before it was locked
            return _train(config, output, backend, ui, lock, force)
    finally:
        backend.close()


def _train(
    config: Config, output: Path, backend: Backend, ui: Console, lock: files.FolderLock | None, force: bool
) -> runs.Run:
    """What `train` does with a device; only the process that has the lock writes."""
    clock = Clock()
    found = run_folder.find_checkpoint(output, config, force, ui)
    config = config.model_copy(update={"resume_from_checkpoint": None})  # which is of this process, not of the run
    with clock.phase("prepare"):
        with backend.first_process_first():
            prepared = ensure_prepared(config, ui, again=not backend.rank)
            base = models.resolve(config.model, config.model_revision, ui)
        config = settle_dtype(config, backend, found.state["run"]["config"].get("dtype") if found else None, ui)
        config = settle_variation(with_data_settings(config, prepared), prepared, backend, ui)
        prepared_set.check_base(prepared, base)
        shared, facts = _same_run(found, config, prepared, base, backend, ui)
        if lock:
            run_folder.check_room(output, config, base, found)
    with clock.phase("load"):
        trainer, parameters = build(shared, prepared, base, backend, found.snapshot if found else None)
    _check_agreement(trainer)
    ui.note(describe_plan(config, prepared, trainer, parameters))
    if backend.compiled:
        ui.note("the first step is compiled, which can take minutes; the next run of the same shapes finds it cached")
    with StopSignals(ui.quiet) as signals:
        with clock.phase("train"):
            session = Session(output, config, trainer, facts, found, lock, ui)
            session.train(signals.stopping)
        clock.seconds["train"] = round(session.seconds(), 3)  # that before the checkpoint included
        if not trainer.finished:
            by, done = signals.name or "a signal to another process", len(trainer.history)
            raise StoppedError(
                f"stopped by {by} after step {done} of {trainer.plan.steps}, and saved",
                where=str(output),
                hint=run_folder.resume_command(config, 1 if backend.compiled else backend.world_size),
            )
        for where in backend.statistics().get("recompiled", []):
            ui.warn(f"compiled again at {where}")
        tensors = trainer.snapshot().lora
        if not lock:
            return runs.Run(str(output), output, {})
        record = run_folder.record(facts, prepared, trainer, parameters, session.resumed_at)
        history = trainer.history
        del trainer, session
        backend.release()  # the check has a model of its own, and two at once would take the most memory of all
        _save(output, config, prepared, base, tensors, history, record, clock, ui)
    ui.note(f"saved {output}")
    return runs.open_run(str(output))


def _save(
    output: Path,
    config: Config,
    prepared: PreparedSet,
    base: Base,
    tensors: dict[str, Tensor],
    history: list[StepMetrics],
    record: dict[str, Any],
    clock: Clock,
    ui: Console,
) -> None:
    """Write the adapter, check it, and make the run a finished one."""
    with clock.phase("save"):
        run_folder.save(output, config, prepared, base, tensors, history)
    ui.note("checking that the saved adapter loads as it was trained")
    with clock.phase("check"):
        from fitcoach_tune.training.check import check_saved

        row = prepared.train[0].input_ids.tolist()
        record["check"] = check_saved(output, base, tensors, config.lora_alpha / config.lora_r, row)
    run_folder.finish(output, record, clock.seconds, config)


def _same_run(
    found: Checkpoint | None, config: Config, prepared: PreparedSet, base: Base, backend: Backend, ui: Console
) -> tuple[Config, dict[str, Any]]:
    """The settings for these devices, and the facts of the run; refuses a checkpoint that is of another run."""
    from fitcoach_tune.training import resume
    from fitcoach_tune.training.core import Plan

    devices = backend.world_size * backend.groups
    shared = resume.share_batch(config, devices, found.state["run"]) if found else config
    batch_size = Plan.of(shared, len(prepared.train), devices).batch_size
    facts = run_folder.describe(config, batch_size, prepared, base, backend)
    if found:
        for remark in resume.check(found, facts):
            ui.note(f"changed since the checkpoint: {remark}")
        if shared != config:
            sizes = shared.per_device_train_batch_size, shared.gradient_accumulation_steps
            ui.note(f"a step stays at {batch_size} rows: {sizes[0]} on each device, {sizes[1]} times")
        facts["device"]["first"] = found.state["run"]["device"]["first"]
        ui.note(f"going on after step {found.snapshot.step}, from {found.path}")
    return shared, facts


def _check_agreement(trainer: Trainer) -> None:
    """Refuse to train in processes that start at different steps: they would wait for each other for ever."""
    backend, step = trainer.backend, len(trainer.history)
    if backend.world_size > 1 and trainer.sum_over(step) != step * backend.world_size * backend.groups:
        raise MismatchError(
            "the processes have found different checkpoints",
            where="--output-dir",
            hint="put it on a disk that all of them see",
        )


# ------------------------------------------------------------------------------------------------ building blocks


def ensure_prepared(
    config: Config, ui: Console = SILENT, scratch: Path | None = None, *, again: bool = True
) -> PreparedSet:
    """The configured prepared set, made first if it is not there. One that nobody has named is made again if the rows
    have changed since; of a named one that is said.

    Args:
        scratch: where to make it instead, so that what is there stays as it is.
        again: False where another process has seen to it that it is as it should be.
    """
    path = prepare.prepared_path(config)
    target = scratch or path
    if not (path / prepared_set.MANIFEST).is_file():
        return prepare.prepare(config, ui, target)
    prepared = prepared_set.open_set(path)
    if again and config.data is None and not prepare.is_current(prepared, config):
        ui.note(f"preparing {config.dataset} again: it, its tools or this program may have changed")
        return prepare.prepare(config, ui, target)
    source = prepared.manifest["source"]["name"]
    ui.note(f"using the prepared set {path}, made from {source}")
    if again and prepare.rows_have_changed(prepared):
        ui.warn(f"{source} has changed since then; to train on its rows of now, prepare them again")
    return prepared


def with_data_settings(config: Config, prepared: PreparedSet) -> Config:
    """The configuration with the settings that the prepared set was really made with."""
    settings = prepared.manifest["settings"]
    update = {name: settings[name] for name in prepare.DATA_SETTINGS} | {"data": str(prepared.path)}
    return config.model_copy(update=update)


def build(
    config: Config, prepared: PreparedSet, base: Base, backend: Backend, start: Snapshot | None = None
) -> tuple[Trainer, int]:
    """Load the base, attach the adapter and bring both to the device; returns the trainer and its parameter count.

    Args:
        start: what to go on from; by default the beginning.
    """
    from fitcoach_tune.training import adapter
    from fitcoach_tune.training.core import Trainer, TrainingData

    if not len(prepared.train):
        raise DataError("the prepared set has no training rows", where=str(prepared.path))
    model = models.load_model(base, config.dtype)
    parameters = adapter.attach_configured(model, config)
    data = TrainingData(
        prepared.train,
        prepared.test,
        prepared.prefix,
        lambda row: prepared.train.example(row).origin,
        make_variation(config, prepared),
    )
    return Trainer(model, config, data, backend, start), parameters


def settle_dtype(config: Config, backend: Backend, begun: str | None = None, ui: Console = SILENT) -> Config:
    """The configuration with `bf16` or `fp32` for `auto`; warns of a precision that the device is slow in.

    Args:
        begun: what the run to go on with is in.
    """
    from fitcoach_tune.backends import training_dtype

    dtype = training_dtype(config.dtype, backend, begun if begun in ("bf16", "fp32") else None)
    if "fp32" == backend.native_dtype != dtype:
        ui.warn(f"{backend.describe()} has no bf16 products of its own: a step takes many times as long as in fp32")
    return config.model_copy(update={"dtype": dtype})


def settle_variation(config: Config, prepared: PreparedSet, backend: Backend, ui: Console = SILENT) -> Config:
    """The configuration without variations of the prompt that the rows or the device do not allow; says which."""
    from fitcoach_tune.training.variation import declarations

    if not (config.shuffle_tools or config.tool_dropout):
        return config
    if len(prepared.toolsets) > 1 or len(declarations(prepared.prefix)) != len(prepared.toolsets[0]):
        ui.note("the tools do not vary: the rows do not share them")
        return config.model_copy(update={"shuffle_tools": False, "tool_dropout": 0.0})
    if not config.tool_dropout:
        return config
    if backend.compiled:
        why = "prompts have one length on this device"
    elif all(any(called_functions(prepared.train.example(i))) for i in range(len(prepared.train))):
        why = "no row that is answered in words shows how to refuse"
    else:
        return config
    ui.note(f"no tool is hidden: {why}")
    return config.model_copy(update={"tool_dropout": 0.0})


def make_variation(config: Config, prepared: PreparedSet) -> Variation | None:
    """How the prompt's tools vary from step to step, by a settled configuration; None if they do not."""
    from fitcoach_tune.training.variation import Variation, common_refusal

    if not config.tool_dropout:
        return Variation(config.seed, shuffle=True) if config.shuffle_tools else None
    names = tuple(tool["function"]["name"] for tool in prepared.toolsets[0])
    calls = [called_functions(prepared.train.example(i)) for i in range(len(prepared.train))]
    refusal = common_refusal(prepared.train, calls)
    return Variation(config.seed, config.shuffle_tools, config.tool_dropout, names, calls, refusal)


def called_functions(example: Example) -> tuple[frozenset[str], ...]:
    """The names of the functions that each answer of a conversation calls."""
    return tuple(
        frozenset(call["function"]["name"] for call in message.get("tool_calls", ()))
        for message in example.messages
        if message["role"] == "assistant"
    )


def describe_plan(config: Config, prepared: PreparedSet, trainer: Trainer, parameters: int) -> str:
    """The run in one line."""
    plan = trainer.plan
    return (
        f"training {parameters:,} parameters on {len(prepared.train)} rows: "
        f"{plan.steps} steps of {plan.batch_size} rows on {trainer.backend.describe()}, "
        f"{config.dtype}, {config.optim} at {config.learning_rate:g}"
    )
