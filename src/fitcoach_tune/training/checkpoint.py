"""Checkpoints: all that training has come to, in a folder that is whole or not there.

Tensors are safetensors and the rest is JSON; nothing is ever unpickled. A manifest has the hash of every file, so that
a checkpoint which was cut short or changed is known before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fitcoach_tune import files, reading
from fitcoach_tune.errors import ConfigError, MismatchError, TrainingError
from fitcoach_tune.strict_json import Flaw, Maybe, misfit, parse_json
from fitcoach_tune.training import cost, optim
from fitcoach_tune.training.metrics import StepMetrics
from fitcoach_tune.training.names import WEIGHTS_NAME

if TYPE_CHECKING:
    from transformers import Gemma3TextConfig

    from fitcoach_tune.config import Config

MANIFEST, STATE_NAME, METRICS_NAME, OPTIMIZER_NAME = (
    "manifest.json",
    "state.json",
    "metrics.jsonl",
    "optimizer.safetensors",
)
_CONTENTS = (WEIGHTS_NAME, OPTIMIZER_NAME, METRICS_NAME, STATE_NAME)
_FORMAT = 1
_NAME = re.compile(r"step-(\d{1,12})")
_METRICS = {
    field.name: {"int": int, "float": float, "float | None": Maybe(float)}[field.type] for field in fields(StepMetrics)
}
_STATE = {
    "step": int,
    "seconds": float,
    "resumed_at": [int],
    "run": {
        **dict.fromkeys(("data", "base", "config", "versions"), dict),
        "batch_size": int,
        "device": {"first": int, "count": int},
    },
}
# What torch and others write with pickle: reading it can run any code.
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Snapshot:
    """What training has come to, on the CPU.

    Attributes:
        lora: the LoRA tensors by PEFT's keys.
        optimizer: the optimizer's state by `KEY.NAME`, KEY being the LoRA tensor's.
        metrics: those of each step, in order.
    """

    lora: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    metrics: list[StepMetrics]

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return len(self.metrics)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole.

    Attributes:
        state: what state.json says: where in the run it is, and under `run` which run, as `resume` describes it.
    """

    path: Path
    snapshot: Snapshot
    state: dict[str, Any]


# ------------------------------------------------------------------------------------------------ tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state by `KEY.NAME`, of parameters by key."""
    return {
        f"{key}.{name}": value for key, p in parameters.items() for name, value in sorted(optimizer.state[p].items())
    }


def restore(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of the same names.

    Raises:
        MismatchError: names, shapes or dtypes differ.
    """

    def forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
        return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}

    if forms(targets) != forms(saved):
        wrong = sorted(dict(forms(targets).items() ^ forms(saved).items()))
        raise MismatchError(f"the checkpoint does not fit this model: {wrong[0]} differs", where="--model")
    with torch.no_grad():
        for key, tensor in targets.items():
            tensor.copy_(saved[key])


def check_finite(snapshot: Snapshot) -> None:
    """Refuse weights or optimizer state that an update has spoiled although its gradient was finite.

    Raises:
        TrainingError: names the step and the first bad tensor.
    """
    for key, tensor in (snapshot.lora | snapshot.optimizer).items():
        if not tensor.isfinite().all():
            raise TrainingError(f"step {snapshot.step}: the update made {key} not finite", hint="lower --learning-rate")


# ------------------------------------------------------------------------------------------------ writing


def sizes(model: Gemma3TextConfig, config: Config) -> list[int]:
    """Bytes of a checkpoint's two large files, from shapes alone; headers, and targets that there are not, left out."""
    shapes = cost.linear_shapes(model)
    targets = shapes if config.target_modules == ("all-linear",) else [t for t in config.target_modules if t in shapes]
    with torch.device("meta"):
        halves = [((config.lora_r, shapes[name][0]), (shapes[name][1], config.lora_r)) for name in targets]
        lora = [
            nn.Parameter(torch.empty(shape))
            for _ in range(model.num_hidden_layers)
            for pair in halves
            for shape in pair
        ]
        of_each = optim.make_optimizer(config, lora).state.values() if lora else []
    state = [value for of_one in of_each for value in of_one.values()]
    return [sum(tensor.nbytes for tensor in tensors) for tensors in (lora, state)]


def write(folder: Path, snapshot: Snapshot, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint `step-N` into `folder`; returns its path.

    Raises:
        OutputError: it cannot be written (path and bytes are named); what was there before is unchanged.
    """
    from safetensors.torch import save

    contents = {
        WEIGHTS_NAME: save(snapshot.lora, metadata={"format": "pt"}),
        OPTIMIZER_NAME: save(snapshot.optimizer, metadata={"format": "pt"}),
        METRICS_NAME: "".join(json.dumps(m.as_dict()) + "\n" for m in snapshot.metrics).encode(),
        STATE_NAME: files.to_json({"step": snapshot.step, **state}).encode(),
    }
    listed = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in contents.items()}
    contents[MANIFEST] = files.to_json({"format": _FORMAT, "files": listed}).encode()
    path = folder / f"step-{snapshot.step}"
    with files.atomic_directory(path, sum(len(data) for data in contents.values())) as staged:
        for name, data in contents.items():
            (staged / name).write_bytes(data)
    return path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Store:
    """The checkpoints of a run that goes on: writes new ones and deletes old ones.

    Args:
        folder: where they are.
        limit: how many to keep.
        resumed: the step of the checkpoint in `folder` that the run went on from. Those after it are on no path of
            this run; they go as soon as there is a new one, and until then stay.
    """

    def __init__(self, folder: Path, limit: int, resumed: int | None = None):
        self.folder, self._limit = folder, limit
        self._kept = [step for step in steps(folder) if resumed is not None and step <= resumed]

    @property
    def newest(self) -> Path | None:
        """The checkpoint to go on from if the run ended now."""
        return self.folder / f"step-{self._kept[-1]}" if self._kept else None

    def save(self, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; older ones beyond the limit are deleted once it is there.

        Raises:
            OutputError: see `write`; nothing was deleted.
        """
        write(self.folder, snapshot, state)
        self._kept = [step for step in self._kept if step != snapshot.step] + [snapshot.step]
        del self._kept[: -self._limit]
        for step in steps(self.folder):
            if step not in self._kept:
                files.remove_folder(self.folder / f"step-{step}")


# ------------------------------------------------------------------------------------------------ reading


def steps(folder: Path) -> list[int]:
    """The steps of which `folder`, which may be missing, has something called a checkpoint; ascending."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is whole; `warn` hears of each newer one that is not.

    Raises:
        MismatchError: there is none; says what is wrong with each.
    """
    refused = []
    for step in reversed(steps(folder)):
        try:
            return read(folder / f"step-{step}")
        except MismatchError as error:
            refused.append(f"step-{step}: {error.what}")
            warn(f"the checkpoint {folder / f'step-{step}'} is skipped: {error.what}")
    raise MismatchError(
        "none of the checkpoints there can be used" if refused else "the run there has no checkpoint",
        where=str(folder),
        details=refused,
        hint="give --resume-from-checkpoint a checkpoint from elsewhere, or --force to train anew",
    )


def read(path: Path) -> Checkpoint:
    """Read a checkpoint, every byte of it held against its manifest.

    Raises:
        ConfigError: there is no such folder.
        MismatchError: it is not a checkpoint of this program, is incomplete or has changed; says how.
    """
    if path.suffix in _PICKLES:
        raise MismatchError("a file that can hold code is never read", where=str(path), hint="name a folder step-N")
    if not path.is_dir():
        raise ConfigError(
            "no such folder", where=f"--resume-from-checkpoint {path}", hint="name a checkpoint, or say auto"
        )
    if pickles := sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES):
        raise MismatchError(f"it holds {pickles[0]}, a file that can hold code: nothing of it is read", where=str(path))
    manifest = reading.read_json(path / MANIFEST, "a checkpoint")
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise MismatchError("this is not a checkpoint of this version", where=str(path))
    listed = manifest.get("files")
    for name in listed if isinstance(listed, dict) else ():
        reading.check_listed(path, name, "a checkpoint")
    contents = {name: _read_file(path, name, listed) for name in _CONTENTS}
    try:
        return _parse(path, contents)
    except (ValueError, TypeError, KeyError, Flaw) as error:
        raise MismatchError(f"the checkpoint is damaged: {error!r}", where=str(path)) from None


def _read_file(path: Path, name: str, listed: Any) -> bytes:
    expected = listed.get(name) if isinstance(listed, dict) else None
    if not isinstance(expected, dict):
        raise MismatchError(f"the manifest does not list {name}", where=str(path))
    if not (path / name).exists():
        raise MismatchError(f"{name} is missing", where=str(path))
    reading.check_own(path / name, "a checkpoint")
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise MismatchError(f"{name} cannot be read: {error.strerror}", where=str(path)) from None
    if len(data) != expected.get("bytes"):
        raise MismatchError(f"{name} has {len(data):,} bytes, not {expected.get('bytes')}", where=str(path))
    if _sha256(data) != expected.get("sha256"):
        raise MismatchError(f"{name} has changed since it was saved", where=str(path))
    return data


def _parse(path: Path, contents: Mapping[str, bytes]) -> Checkpoint:
    from safetensors.torch import load

    try:
        lora, optimizer = load(contents[WEIGHTS_NAME]), load(contents[OPTIMIZER_NAME])
    except Exception as error:  # besides its own errors, whatever torch makes of a header that lies
        raise ValueError(str(error)) from None
    metrics = [StepMetrics(**_of_form(line, _METRICS)) for line in contents[METRICS_NAME].splitlines()]
    state = _of_form(contents[STATE_NAME], _STATE)
    if state["step"] != len(metrics) or [line.step for line in metrics] != list(range(1, len(metrics) + 1)):
        raise ValueError("its metrics do not end at its step")
    run = state["run"]
    if min(run["batch_size"], *(run["device"][key] for key in ("first", "count"))) < 1:
        raise ValueError("it does not say how its batch was shared")
    return Checkpoint(path, Snapshot(lora, optimizer, metrics), state)


def _of_form(text: bytes, form: dict[str, Any]) -> dict[str, Any]:
    value = parse_json(text)
    if flaw := misfit(value, form):
        raise flaw
    return value
