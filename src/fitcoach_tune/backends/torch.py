"""Plain torch: CPU, CUDA and MPS; under `torchrun`, torch's own DistributedDataParallel over its processes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fitcoach_tune.backends.base import derive_seed, process_peak_memory
from fitcoach_tune.errors import DeviceError

if TYPE_CHECKING:
    from fitcoach_tune.config import Config


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """gloo greets its peers on stdout, from C++; stdout is for data."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# Steps differ in their shapes, so that the C library's heap gets holes that nothing fits: 3.5 GB in place of 3.9 after
# 80 steps of the offline recipe, and more after hundreds. Giving them back costs the next step a fifth of its time, in
# page faults.
_TRIM_AFTER = 10


# With twice as many a step of 32 rows of 256 tokens took 13% longer a token; and what it keeps would take more memory.
_CPU_TOKENS = 4096


def _give_back_memory() -> None:
    """Let glibc return to the system what it has free; other C libraries do as they please."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _multiplies_bf16(device: str) -> bool:
    """Whether a device has bf16 products of its own. A processor without them takes many times as long as in float32.

    (AVX-512 without its bf16 instructions is not enough: the products are then those of float32, and slower.)
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    if platform.machine() in ("arm64", "aarch64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _check_count(local: int) -> None:
    """Refuse to be one of more processes on this machine than it has devices."""
    if local >= (count := torch.cuda.device_count()):
        raise DeviceError(
            f"this is process {local + 1} on a machine with {count} CUDA device{'s' * (count != 1)}",
            where="torchrun",
            hint=f"start it with --nproc-per-node {count}",
        )


def _join(kind: str) -> None:
    """Meet the other processes.

    Raises:
        DeviceError: what `torchrun` tells a process is not there, or wrong.
    """
    try:
        with _stdout_to_stderr():
            dist.init_process_group(kind)
    except (ValueError, RuntimeError) as error:
        what = f"the processes cannot meet: {str(error).partition(chr(10))[0]}"
        raise DeviceError(what, where="WORLD_SIZE", hint="start them with torchrun, or unset it") from None


class TorchBackend:
    """One process on one device; see `Backend` for the methods."""

    groups = 1
    compiled = False

    def __init__(self, name: str, num_devices: int | None = None):
        self.name = name
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if num_devices not in (None, self.world_size):
            raise DeviceError(
                f"{num_devices} devices were asked for, and this is {self.world_size} process(es) of one device each",
                where=f"--num-devices {num_devices}",
                hint=f"start it as `torchrun --nproc-per-node {num_devices} -m fitcoach_tune train …`",
            )
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(name, local) if name == "cuda" else torch.device(name)
        if name == "cuda":
            _check_count(local)
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            _join("nccl" if name == "cuda" else "gloo")
        self.native_dtype = "bf16" if _multiplies_bf16(name) else "fp32"
        self.most_tokens = _CPU_TOKENS if name == "cpu" else None
        self._steps = 0
        self.gradient_scale = float(self.world_size)  # DDP takes the mean over processes; the core wants the sum

    @contextlib.contextmanager
    def first_process_first(self) -> Iterator[None]:
        if self.rank and self.world_size > 1:
            dist.barrier()
        try:
            yield
        finally:
            if self.rank == 0 and self.world_size > 1:
                dist.barrier()

    def describe(self) -> str:
        if self.name == "cuda":
            kind = torch.cuda.get_device_name(self.device)
        else:
            kind = f"{platform.machine()} {self.name}, {torch.get_num_threads()} threads"
        return f"{self.world_size} × {kind}" if self.world_size > 1 else kind

    def place(self, model: nn.Module) -> None:
        model.to(self.device)

    def place_sharded(self, model: nn.Module, config: Config) -> None:
        self.place(model)

    def place_state(self, optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            # A count stays on the host, where the optimizers read it without waiting for the device.
            state.update({name: value.to(self.device) for name, value in state.items() if value.dim()})

    def seed(self, *parts: int) -> None:
        torch.manual_seed(derive_seed(*parts, self.rank))

    def graph(self, kind: str, at: str, shapes: Mapping[str, tuple[int, ...]]) -> AbstractContextManager:
        return contextlib.nullcontext()

    def parallel(self, loss: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return loss
        return nn.parallel.DistributedDataParallel(loss, broadcast_buffers=False)

    def unwrap(self, loss: nn.Module) -> nn.Module:
        return loss.module if isinstance(loss, nn.parallel.DistributedDataParallel) else loss

    def accumulating(self, loss: nn.Module, *, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext() if last or self.world_size == 1 else loss.no_sync()

    def put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def scalar(self, value: float) -> float:
        return value

    def fetch_sum(self, value: Tensor) -> float:
        if self.world_size > 1:
            # Kept until the next one. gloo's thread lets go of it a little later, and must not be the last to: freeing
            # it there needs Python, which the main thread may hold while it waits for that thread to end.
            self._reduced = value = value.clone()
            dist.all_reduce(value)
        return value.item()

    def end_step(self) -> None:
        self._steps += 1
        if self.name == "cpu" and self._steps % _TRIM_AFTER == 0:
            _give_back_memory()

    def to_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def statistics(self) -> dict[str, Any]:
        return {}

    def peak_memory(self) -> int:
        if self.name == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return process_peak_memory()

    def release(self) -> None:
        gc.collect()
        if self.name == "cuda":
            torch.cuda.empty_cache()
        _give_back_memory()

    def close(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()
