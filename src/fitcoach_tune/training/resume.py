"""May a run go on from a checkpoint? What must be the same, what may differ, and how other devices share its batch.

A run is described by facts, JSON values all: `data` and `base` (hashes), `config` (every setting), `batch_size` (rows
of an optimizer step), `device` (its name and count; `first` is the count that the run began with) and `versions`.
"""

from __future__ import annotations

from typing import Any

from fitcoach_tune.config import Config, flag
from fitcoach_tune.errors import ConfigError, MismatchError
from fitcoach_tune.training.checkpoint import Checkpoint

_HELD_BY_HASHES = {
    *("model", "model_revision", "data", "dataset", "revision", "tools"),
    *("max_length", "excess_length", "test_size", "split"),
}
_HELD_BY_BATCH_SIZE = {"per_device_train_batch_size", "gradient_accumulation_steps"}
# Where and how a run is carried out, and what it leaves beside the adapter: none of it changes what is computed, save
# for the order in which numbers are added.
_MAY_DIFFER = {
    *("device", "num_devices", "xla_fsdp_v2", "xla_fsdp_grad_ckpt", "transformer_layer_cls_to_wrap"),
    *("allow_recompile", "per_device_eval_batch_size", "report_to", "price_per_hour", "save_steps", "save_total_limit"),
}
_SAYS_NOTHING = {"output_dir", "resume_from_checkpoint", "max_new_tokens", "hub_model_id"}
_NAMES = {
    "data_sha256": "the prepared rows",
    "tools_sha256": "the tools",
    "template_sha256": "the chat template",
    "revision": "the base model's revision",
    "weights_sha256": "the base model's weights",
    "tokenizer_sha256": "the tokenizer",
}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What makes `now` another run than `then`, in words; hashes are shortened."""
    found = [
        f"{_NAMES[key]}: {_shown(before)} in the checkpoint, {_shown(value)} now"
        for part in ("data", "base")
        for key, value in now[part].items()
        if key in _NAMES and (before := then.get(part, {}).get(key)) != value
    ]
    if found:  # which settings of theirs may be why
        found += _settings(then, now, _HELD_BY_HASHES - {"data"}, "in the checkpoint")
    if then.get("batch_size") != now["batch_size"]:
        found.append(f"rows of a step: {then.get('batch_size')} in the checkpoint, {now['batch_size']} now")
        found += _settings(then, now, _HELD_BY_BATCH_SIZE, "in the checkpoint")
    free = _HELD_BY_HASHES | _HELD_BY_BATCH_SIZE | _MAY_DIFFER | _SAYS_NOTHING
    return found + _settings(then, now, now["config"].keys() - free, "in the checkpoint")


def remarks(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs although the run is the same one, in words."""
    before, device = then.get("device", {}), now["device"]
    found = [
        f"{what}: {device[key]} now, {before.get(key)} before"
        for key, what in (("count", "devices"), ("name", "device"))
        if device[key] != before.get(key)
    ]
    versions = then.get("versions", {})
    found += [f"{p}: {v} now, {versions.get(p)} before" for p, v in now["versions"].items() if v != versions.get(p)]
    return found + _settings(then, now, _MAY_DIFFER | _HELD_BY_BATCH_SIZE, "before")


def _settings(then: dict[str, Any], now: dict[str, Any], names: set[str], when: str) -> list[str]:
    config = then.get("config", {})
    return [
        f"{flag(name)}: {_shown(config.get(name))} {when}, {_shown(value)} now"
        for name, value in now["config"].items()
        if name in names and config.get(name) != value
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)[:12] if len(str(value)) == 64 else str(value)


def share_batch(config: Config, devices: int, then: dict[str, Any]) -> Config:
    """The same steps on another number of devices: rows per device and micro-batches that make the same batch.

    A device gets no more rows at once than were asked for. Where the settings and the devices already agree with the
    checkpoint, or the settings themselves ask for another batch, nothing is changed.

    Raises:
        ConfigError: the batch cannot be shared evenly.
    """
    size, first = then.get("batch_size"), then.get("device", {}).get("first")
    asked = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if asked * devices == size or asked * first != size:
        return config
    rows, odd = divmod(size, devices)
    if odd:
        raise ConfigError(
            f"the {size} rows of a step cannot be shared evenly by {devices} devices",
            where="--num-devices",
            hint=f"use a number of devices that divides {size}",
        )
    at_once = max(n for n in range(1, config.per_device_train_batch_size + 1) if rows % n == 0)
    shared = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": rows // at_once}
    return config.model_copy(update=shared)


def check(found: Checkpoint, now: dict[str, Any]) -> list[str]:
    """Refuse to go on with another run; returns what differs and may.

    Raises:
        MismatchError: lists the differences.
    """
    then = found.state.get("run")
    if differing := differences(then, now):
        raise MismatchError(
            "this checkpoint is of another run",
            where=str(found.path),
            details=differing,
            hint="give it what it was made with, or choose another --output-dir for a new run",
        )
    return remarks(then, now)
