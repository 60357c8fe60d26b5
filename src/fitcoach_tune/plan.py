"""`train --dry-run`: everything resolved and validated, one step measured or estimated, nothing changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import models, prepare, prepared_set, run_folder
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.train import build, ensure_prepared, settle_dtype, settle_variation, with_data_settings

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor
    from transformers import PreTrainedModel

    from fitcoach_tune.models import Base
    from fitcoach_tune.prepared_set import PreparedSet
    from fitcoach_tune.training.core import Plan
    from fitcoach_tune.training.cost import Shards

# A TPU that is not here is taken for a v5e of as many chips as the original recipe's. What Google says of a chip, at
# https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s in bf16, 16 GB of memory, 1600 Gbit/s between chips.
CHIP, CHIPS = "TPU v5e", 8
PEAK_FLOPS, MEMORY_BYTES, EXCHANGED_BYTES_PER_SECOND = 197e12, 16e9, 1600e9 / 8
# Guesses: the share of both rates that a small model reaches, and the time to compile all graphs of a run.
UTILISATION, COMPILE_SECONDS = 0.2, 90.0
# What the host takes to record a decoder layer's part of a micro-batch, forward and backward: measured on one core of a
# server (17 ms) and rounded up. The steps of a small model on many chips wait for it.
RECORD_SECONDS = 0.02


def dry_run(config: Config, ui: Console = SILENT, *, force: bool = False) -> dict[str, Any]:
    """Plan a run without writing anything but caches.

    One step is measured where the device is here. For a TPU that is not, the plan is estimated from shapes alone:
    neither weights nor torch_xla are needed.

    Returns:
        Rows, steps, those of them that a checkpoint has behind it, parameters, seconds for the others, examples per
        second, and where a price per hour is given the price; measured, with peak memory in bytes, or `estimated`, with
        what lies on each device in bytes, the FLOPs of a step, and the assumptions.

    Raises:
        FitcoachTuneError: what the run itself would raise before its first step, save for a checkpoint of another run
            and a disk without room, which is found by writing.
    """
    from fitcoach_tune.backends import has_tpu

    run_folder.check_wanted(config, force)
    checkpoint = run_folder.find_checkpoint(Path(config.output_dir), config, force, ui)
    named = prepare.prepared_path(config)
    with tempfile.TemporaryDirectory(prefix="fitcoach-tune-") as scratch:
        prepared = ensure_prepared(config, ui, Path(scratch) / "set")
        config = with_data_settings(config, prepared)
        base = models.resolve(config.model, config.model_revision, ui)
        prepared_set.check_base(prepared, base)
        absent = config.device == "tpu" and not has_tpu()
        found = _estimate(config, prepared, base, ui) if absent else _measure(config, prepared, base, ui)
        done = min(checkpoint.snapshot.step, found["steps"]) if checkpoint else 0
        found["training_seconds"] = round(found["training_seconds"] * (1 - done / found["steps"]), 1)
        seconds = found["compile_seconds"] + found["training_seconds"]
        price = None if config.price_per_hour is None else round(config.price_per_hour * seconds / 3600, 4)
        return {
            "estimated": absent,
            "model": base.name,
            "data": str(named),
            "output_dir": config.output_dir,
            "rows": {"train": len(prepared.train), "test": len(prepared.test)},
            "prefix_tokens": len(prepared.prefix),
            "steps_done": done,
            **found,
            "price": price,
        }


def _steps(plan: Plan) -> dict[str, Any]:
    return {"batch_size": plan.batch_size, "steps": plan.steps, "epochs": plan.steps / plan.steps_per_epoch}


# ------------------------------------------------------------------------------------------------ measured


def _measure(config: Config, prepared: PreparedSet, base: Base, ui: Console) -> dict[str, Any]:
    from fitcoach_tune.backends import make_backend

    backend = make_backend(config.device, config.num_devices)
    try:
        config = settle_variation(settle_dtype(config, backend, ui=ui), prepared, backend)
        trainer, parameters = build(config, prepared, base, backend)
        ui.note("measuring one step")
        trainer.step(0, update=False)  # what is set up once is paid here
        measured = trainer.step(0, update=False)  # not the next one, which may be an epoch's last and have fewer rows
    finally:
        backend.close()
    plan, speed = trainer.plan, measured.examples_per_second
    examples = plan.steps / plan.steps_per_epoch * len(prepared.train)
    return {
        "device": backend.describe(),
        "dtype": config.dtype,
        "trainable_parameters": parameters,
        **_steps(plan),
        "examples_per_second": round(speed, 2),
        "peak_memory_bytes": backend.peak_memory(),
        "compile_seconds": backend.statistics().get("compile_seconds", 0.0),
        "training_seconds": round(examples / speed, 1),
    }


# ------------------------------------------------------------------------------------------------ estimated


def _estimate(config: Config, prepared: PreparedSet, base: Base, ui: Console) -> dict[str, Any]:
    from fitcoach_tune.backends import training_dtype
    from fitcoach_tune.backends.xla import XlaBackend
    from fitcoach_tune.training import adapter, cost
    from fitcoach_tune.training.core import Plan, TrainingData

    ui.note("no TPU is attached to this machine: estimating")
    config = config.model_copy(update={"dtype": training_dtype(config.dtype, XlaBackend)})
    devices, micros = config.num_devices or CHIPS, config.gradient_accumulation_steps
    plan = Plan.of(config, len(prepared.train), devices)
    model = _without_weights(base, config)
    shards = _shards(model, config, devices if config.xla_fsdp_v2 else 1)
    width, targets = TrainingData(prepared.train, prepared.test, prepared.prefix).static_shape()
    step = {
        "lora": {name.rsplit(".", 1)[-1] for name, _ in adapter.lora_layers(model)},
        "rank": config.lora_r,
        "grad_ckpt": config.xla_fsdp_grad_ckpt,
    }
    flops = cost.flops_per_step(
        model.config,
        prefix=len(prepared.prefix),
        width=width,
        rows=config.per_device_train_batch_size,
        targets=targets,
        groups=devices,
        micros=micros,
        **step,
    )
    padded = cost.padded_flops_per_step(model.config, length=config.max_length, rows=plan.batch_size, **step)
    exchanged = cost.exchanged_bytes(
        sum(p.numel() for p in model.model.layers.parameters()) * model.dtype.itemsize,
        shards["lora"].bytes,
        devices,
        micros=micros,
        grad_ckpt=config.xla_fsdp_grad_ckpt,
        sharded=config.xla_fsdp_v2,
    )
    on_chips = flops.total / devices / (UTILISATION * PEAK_FLOPS)
    on_chips += exchanged / (UTILISATION * EXCHANGED_BYTES_PER_SECOND)
    recording = RECORD_SECONDS * model.config.num_hidden_layers * micros
    training = plan.steps * max(on_chips, recording)
    return {
        "device": f"{devices} × {CHIP}",
        "devices": devices,
        "dtype": config.dtype,
        "base_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **_steps(plan),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": micros,
        "shards": {name: asdict(part) for name, part in shards.items()},
        "bytes_per_device": sum(part.bytes_per_device for part in shards.values()),
        "flops_per_step": asdict(flops) | {"total": flops.total},
        "padded_length": config.max_length,
        "padded_flops_per_step": asdict(padded) | {"total": padded.total},
        "exchanged_bytes_per_step": exchanged,
        "chip_seconds_per_step": round(on_chips, 4),
        "recording_seconds_per_step": round(recording, 4),
        "seconds_per_step": round(training / plan.steps, 4),
        "examples_per_second": round(plan.steps / plan.steps_per_epoch * len(prepared.train) / training, 2),
        "peak_memory_bytes": None,
        "compile_seconds": COMPILE_SECONDS,
        "training_seconds": round(training, 1),
        "assumptions": _assumptions(),
    }


def _without_weights(base: Base, config: Config) -> PreTrainedModel:
    """The model with its adapter as shapes and dtypes alone; refused as the run would refuse it."""
    from fitcoach_tune.backends.xla import layers_to_wrap
    from fitcoach_tune.training import adapter

    model = models.load_model(base, config.dtype, weights=False)
    adapter.attach_configured(model, config)
    layers_to_wrap(model, config.transformer_layer_cls_to_wrap)  # a wrong name is worth knowing before a TPU is rented
    return model


def _shards(model: PreTrainedModel, config: Config, devices: int) -> dict[str, Shards]:
    import torch

    from fitcoach_tune.training import cost, optim

    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.device("meta"):
        optimizer = optim.make_optimizer(config, trained, capturable=True)

    def shards(tensors: Iterable[Tensor], uneven: bool) -> Shards:
        return cost.sharded_bytes([(tuple(t.shape), t.element_size()) for t in tensors], devices, uneven=uneven)

    return {
        "base": shards((p for p in model.parameters() if not p.requires_grad), uneven=True),
        "lora": shards(trained, uneven=True),
        "optimizer": shards((v for state in optimizer.state.values() for v in state.values()), uneven=False),
    }


def _assumptions() -> list[str]:
    return [
        f"A {CHIP} chip computes {_si(PEAK_FLOPS, 'FLOP')} a second in bf16, has {_si(MEMORY_BYTES, 'B')} of memory "
        f"and receives {_si(EXCHANGED_BYTES_PER_SECOND, 'B')} a second (https://cloud.google.com/tpu/docs/v5e).",
        f"A step reaches {UTILISATION:.0%} of both rates: a guess.",
        f"The host records each decoder layer of a micro-batch in {RECORD_SECONDS * 1000:g} ms, while the chips are at "
        "the step before.",
        f"All graphs of a run are compiled in {COMPILE_SECONDS:g} s: a guess. Another run of the same shapes finds "
        "them cached.",
        "Activations and gathered weights come on top of the memory; loading, evaluating and saving, of the time.",
    ]


# ------------------------------------------------------------------------------------------------ the table


def as_table(plan: dict[str, Any]) -> RenderableType:
    """The plan as the terminal shows it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title="What would be trained; nothing was changed", title_justify="left", show_header=False)
    for name, value in _rows(plan):
        table.add_row(Text(name), Text(value))
    if not plan["estimated"]:
        return table
    notes = Table.grid(padding=(0, 1))
    for line in plan["assumptions"]:
        notes.add_row("•", Text(line))
    return Group(table, "Estimated, not measured:", notes)


def _rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "base model", plan["model"]
    yield "prepared set", plan["data"]
    yield "output", plan["output_dir"]
    yield "device", plan["device"] + ", estimated" * plan["estimated"]
    yield "rows", f"{plan['rows']['train']} to train on, {plan['rows']['test']} held out"
    yield "shared prefix", f"{plan['prefix_tokens']} tokens, computed once a step"
    yield "trained parameters", f"{plan['trainable_parameters']:,}"
    behind = f", {plan['steps_done']} of them done" * bool(plan["steps_done"])
    yield "steps", f"{plan['steps']} of {plan['batch_size']} rows ({plan['epochs']:g} epochs){behind}"
    yield from _estimated_rows(plan) if plan["estimated"] else _measured_rows(plan)
    if plan["price"] is not None:
        yield "price", f"${plan['price']:.2f}"


def _measured_rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    minutes, speed, compiling = plan["training_seconds"] / 60, plan["examples_per_second"], plan["compile_seconds"]
    yield "memory", f"{plan['peak_memory_bytes'] / 2**30:.1f} GiB (measured)"
    if compiling:
        yield "compiling", f"{compiling:.0f} s (measured)"
    yield "time", f"{minutes:.1f} minutes of training at {speed} examples/s (one step measured)"


def _estimated_rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    shards, devices, micros = plan["shards"], plan["devices"], plan["gradient_accumulation_steps"]
    a_time = f"{micros} micro-batches of " if micros > 1 else ""
    yield "batch", f"{a_time}{plan['per_device_train_batch_size']} rows on each device"
    yield f"frozen base ({plan['dtype']})", _describe_shards(shards["base"], devices)
    yield "LoRA (fp32)", _describe_shards(shards["lora"], devices)
    yield "optimizer state (fp32)", _describe_shards(shards["optimizer"], devices)
    yield "memory", f"{_si(plan['bytes_per_device'], 'B')} of {_si(MEMORY_BYTES, 'B')} on each device, and activations"
    flops, padded = plan["flops_per_step"]["total"], plan["padded_flops_per_step"]["total"]
    yield "computing", f"{_si(flops, 'FLOP')} a step"
    padding = f"rows padded to {plan['padded_length']} with all logits"
    yield "", f"{padding} would be {_si(padded, 'FLOP')}, {padded / flops:.1f} times as much"
    yield "exchanging", f"{_si(plan['exchanged_bytes_per_step'], 'B')} a step to each device"
    both = f"{plan['chip_seconds_per_step']:.2f} s on the chips, {plan['recording_seconds_per_step']:.2f} s to record"
    yield "a step", f"{plan['seconds_per_step']:.2f} s: {both} the next"
    yield "time", f"{plan['compile_seconds']:.0f} s of compiling, {plan['training_seconds']:.0f} s of training"


def _describe_shards(shards: dict[str, int], devices: int) -> str:
    cut, whole = shards["tensors_sharded"], shards["tensors_replicated"]
    placed = [f"{cut} tensors in {devices} shards"] * bool(cut) + [f"{whole} tensors whole"] * bool(whole)
    total, held = _si(shards["bytes"], "B"), _si(shards["bytes_per_device"], "B")
    return f"{total}, {held} on each device: {', '.join(placed)}"


def _si(value: float, unit: str) -> str:
    """With the largest decimal prefix that fits: 536196352 B is 536 MB."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"
