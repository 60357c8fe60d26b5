"""Choosing a device. Backends are imported when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitcoach_tune.errors import DeviceError

if TYPE_CHECKING:
    from fitcoach_tune.backends.base import Backend


def make_backend(device: str, num_devices: int | None = None) -> Backend:
    """The backend for a `--device`; `auto` takes the first there is of CUDA, MPS and CPU.

    Raises:
        DeviceError: the device is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device in ("tpu", "xla-cpu"):
        raise DeviceError(
            "training on XLA devices is not part of this release",
            where=f"--device {device}",
            hint="use --device auto",
        )
    name = next(name for name, found in there.items() if found) if device == "auto" else device
    if not there[name]:
        raise DeviceError(f"torch sees no {name} device here", where=f"--device {device}", hint="use --device auto")
    from fitcoach_tune.backends.torch import TorchBackend

    return TorchBackend(name, num_devices)
