"""What the training core asks of a device: the protocol that every backend fulfils."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Backend(Protocol):
    """A device, or the share of many that this process drives.

    Attributes:
        name: as `--device` spells it.
        device: where tensors go.
        rank, world_size: this process among all of them; process 0 writes files.
        groups: packed groups per micro-batch of this process: one for each device that it drives.
        static_shapes: every batch must have the same shapes (a compiled graph).
        gradient_scale: what a local loss is multiplied by so that gradients come out as a sum over processes.
    """

    name: str
    device: torch.device
    rank: int
    world_size: int
    groups: int
    static_shapes: bool
    gradient_scale: float

    def first_process_first(self) -> AbstractContextManager:
        """Process 0 goes through the block alone, then all others: for what one makes and the others read."""

    def describe(self) -> str:
        """The hardware in words, for run.json."""

    def place(self, model: nn.Module) -> None:
        """Bring the model onto the device(s), sharded where the backend shards."""

    def parallel(self, loss: nn.Module) -> nn.Module:
        """Wrap the loss module so that `backward` sums gradients over processes."""

    def unwrap(self, loss: nn.Module) -> nn.Module:
        """The module that `parallel` was given."""

    def accumulating(self, loss: nn.Module, *, last: bool) -> AbstractContextManager:
        """Around a micro-batch: gradients need to be exchanged after the last one only."""

    def put(self, array: np.ndarray) -> Tensor:
        """Bring an array onto the device, sharded over its first axis where the backend shards."""

    def fetch_sum(self, value: Tensor) -> float:
        """The sum of a scalar over all processes, on the host."""

    def end_step(self) -> None:
        """After the optimizer's step: where a lazy backend runs its graph."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """A whole (unsharded) copy of a tensor on the CPU."""

    def peak_memory(self) -> int:
        """Most memory used so far, in bytes: the device's, or the process's where it has none of its own."""

    def close(self) -> None:
        """Wait for the other processes and let go of them."""
