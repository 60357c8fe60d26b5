"""What the training core asks of a device: the protocol that every backend fulfils."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fitcoach_tune.config import Config


class Backend(Protocol):
    """A device, or the share of many that this process drives.

    Attributes:
        name: as `--device` spells it.
        device: where tensors go.
        rank, world_size: this process among all of them; process 0 writes files.
        groups: packed groups per micro-batch of this process: one for each device that it drives.
        native_dtype: `bf16`, or `fp32` where the device has no bf16 products of its own: what `--dtype auto` means.
        most_tokens: suffix tokens up to which rows are better computed at once than in parts; None for any number.
        compiled: work is recorded and runs as one compiled graph at the end of a step. Every batch must have the same
            shapes, and reading a value on the host stalls the device unless the step was sent off before.
        gradient_scale: what a local loss is multiplied by so that gradients come out as a sum over processes.
    """

    name: str
    device: torch.device
    rank: int
    world_size: int
    groups: int
    native_dtype: str
    most_tokens: int | None
    compiled: bool
    gradient_scale: float

    def first_process_first(self) -> AbstractContextManager:
        """Process 0 goes through the block alone, then all others: for what one makes and the others read."""

    def describe(self) -> str:
        """The hardware in words, for run.json."""

    def place(self, model: nn.Module) -> None:
        """Bring the whole model onto each device, to ask it."""

    def place_sharded(self, model: nn.Module, config: Config) -> None:
        """Bring the model onto the device(s) to train it, sharded where the backend shards.

        Its parameters may be other objects afterwards.
        """

    def parallel(self, loss: nn.Module) -> nn.Module:
        """Wrap the loss module so that `backward` sums gradients over processes."""

    def unwrap(self, loss: nn.Module) -> nn.Module:
        """The module that `parallel` was given."""

    def accumulating(self, loss: nn.Module, *, last: bool) -> AbstractContextManager:
        """Around a micro-batch: gradients need to be exchanged after the last one only."""

    def place_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the optimizer's state from the CPU to where its parameters are, sharded like them."""

    def seed(self, *parts: int) -> None:
        """Seed the device's random numbers from these; processes with their own rows get their own numbers."""

    def graph(self, kind: str, at: str, shapes: Mapping[str, tuple[int, ...]]) -> AbstractContextManager:
        """Around the work of one graph, its `end_step` included.

        Args:
            kind: which graph; each is compiled at most once.
            at: where in the run we are, for the message.
            shapes: of its inputs, by name.

        Raises (on leaving):
            DeviceError: a graph of this kind was compiled before, and has been compiled again.
        """

    def put(self, array: np.ndarray) -> Tensor:
        """Bring an array onto the device, sharded over its first axis where the backend shards."""

    def scalar(self, value: float) -> float | Tensor:
        """A number that changes from step to step, as something to calculate with.

        A compiled graph takes a Python number for a constant, or for the same input as another of equal value, so
        that one which changes would change the graph.
        """

    def fetch_sum(self, value: Tensor) -> float:
        """The sum of a scalar over all processes, on the host; waits for the device."""

    def end_step(self) -> None:
        """After the optimizer's step: where a lazy backend runs its graph."""

    def to_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole (unsharded) copies of tensors on the CPU; all processes must ask."""

    def statistics(self) -> dict[str, Any]:
        """What else run.json should say of the device, such as compilations."""

    def peak_memory(self) -> int:
        """Most memory used so far, in bytes: the device's, or the process's where it has none of its own."""

    def release(self) -> None:
        """Give back to the system what tensors that are gone have left behind."""

    def close(self) -> None:
        """Wait for the other processes and let go of them."""


def process_peak_memory() -> int:
    """Most memory that this process has had at a time, in bytes."""
    if sys.platform == "linux":  # where getrusage(2) counts what the process that started this one had then
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
        if found:  # not under gVisor
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from where in a run we are, so that nothing has to be remembered to continue it."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def partition(shape: tuple[int, ...], devices: int) -> tuple[str | None, ...]:
    """The mesh axis that each axis of a tensor is sharded over: its longest, as FSDPv2 does, if it divides evenly."""
    spec: list[str | None] = [None] * len(shape)
    if shape and devices > 1 and max(shape) % devices == 0:
        spec[shape.index(max(shape))] = "fsdp"
    return tuple(spec)
