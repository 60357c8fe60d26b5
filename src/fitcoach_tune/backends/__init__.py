"""Choosing a device. Backends are imported when they are asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fitcoach_tune.errors import DeviceError

if TYPE_CHECKING:
    from fitcoach_tune.backends.base import Backend

# PCI ids of Google's TPUs (v2/v3, v4, v5e, v5p, v6e, v7x), as torch_xla knows them.
_GOOGLE, _TPUS = "0x1ae0", {"0x0027", "0x005e", "0x0063", "0x0062", "0x006f", "0x0076"}


def make_backend(device: str, num_devices: int | None = None) -> Backend:
    """The backend for a `--device`; `auto` takes the first there is of TPU, CUDA, MPS and CPU.

    Raises:
        DeviceError: the device is not there, or what it needs is not installed.
    """
    if device == "auto":
        device = _first_there_is()
    if device in ("tpu", "xla-cpu"):
        from fitcoach_tune.backends.xla import XlaBackend

        return XlaBackend(device, num_devices)
    import torch

    if not {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}[device]:
        raise DeviceError(f"torch sees no {device} device here", where=f"--device {device}", hint="use --device auto")
    from fitcoach_tune.backends.torch import TorchBackend

    return TorchBackend(device, num_devices)


def training_dtype(asked: str, backend: Backend | type[Backend], begun: str | None = None) -> str:
    """`bf16` or `fp32` for a `--dtype`; `auto` is what the run was `begun` in, or what the device does best."""
    return asked if asked != "auto" else begun or backend.native_dtype


def answering_dtype(trained: str, backend: Backend) -> str:
    """In what an adapter is asked that was trained in `trained`: float32 where the device has no bf16 of its own.

    Every bf16 number is a float32 one, so that only rounding differs. `auto` is what the device does best.
    """
    return "fp32" if "fp32" in (trained, backend.native_dtype) else "bf16"


def _first_there_is() -> str:
    import torch

    # Hardware decides: a torch_xla that is merely installed is no TPU. On a TPU host without torch_xla the error that
    # follows names what to install, rather than a TPU standing idle.
    if has_tpu():
        return "tpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def has_tpu(pci: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Is a TPU attached to this machine? Asked of its PCI bus, so that nothing has to be installed or started."""
    if os.environ.get("PJRT_DEVICE", "TPU") != "TPU":
        return False  # the user told XLA to leave it alone

    def read(file: Path) -> str:
        try:
            return file.read_text().strip()
        except OSError:
            return ""

    return any(read(d / "vendor") == _GOOGLE and read(d / "device") in _TPUS for d in pci.glob("*"))
