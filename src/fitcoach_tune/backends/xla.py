"""XLA devices, TPUs above all: SPMD over a mesh, with FSDPv2. The only module that imports torch_xla.

One process drives all devices of its host, and the program is written as if there were one device: tensors have their
global shapes, and how they are sharded is an annotation. Work is recorded and runs as one compiled graph at the end of
a step. `xla-cpu` is the same on virtual devices of the CPU, which is how this module is tested.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fitcoach_tune import files
from fitcoach_tune.backends.base import derive_seed, partition, process_peak_memory
from fitcoach_tune.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from fitcoach_tune.config import Config

_EXTRAS = {"tpu": "tpu", "xla-cpu": "xla"}
# Where several virtual devices share the CPU's threads, XLA's kernels that split their work over threads hand on what
# is not complete: 288 columns of each device's logits were wrong in bf16, and the loss, by 1 and more. With one core,
# or kernels that do not split, the results are those of one device.
_WHOLE_KERNELS = "--xla_disable_hlo_passes=cpu-parallel-task-assigner"
_PLATFORMS = {"tpu": "TPU", "xla-cpu": "CPU"}


def _start(name: str, num_devices: int | None) -> None:
    """Import torch_xla with the environment that it reads as it is imported, and switch it to SPMD."""
    if name == "xla-cpu":
        if num_devices:
            os.environ["CPU_NUM_DEVICES"] = str(num_devices)
        os.environ["XLA_FLAGS"] = f"{_WHOLE_KERNELS} {os.environ.get('XLA_FLAGS', '')}".strip()
    os.environ["PJRT_DEVICE"] = _PLATFORMS[name]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only: XLA warns of its own plans, once a compilation
    where = f"--device {name}"
    try:
        import torch_xla
        from torch_xla import runtime
    except ImportError as error:  # one built for another torch fails on a missing symbol
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("torch_xla")
        raise DeviceError(
            "torch_xla is not installed" if missing else f"torch_xla does not fit torch {torch.__version__}",
            where=where,
            details=[] if missing else [str(error).splitlines()[0]],
            hint=f"pip install 'fitcoach-tune[{_EXTRAS[name]}]' brings a pair that fits",
        ) from None
    if "XLA_PERSISTENT_CACHE_PATH" not in os.environ:
        # Compiled graphs stay on disk: the next run with the same shapes loads them.
        runtime.initialize_cache(str(files.cache_dir() / "xla"), readonly=False)
    try:
        if not runtime.is_spmd():
            runtime.use_spmd()
        torch_xla.device()
        runtime.global_runtime_device_count()
    except (OSError, RuntimeError) as error:
        raise DeviceError(
            f"no {_PLATFORMS[name]} device can be used: {str(error).splitlines()[0]}",
            where=where,
            hint="run it on a TPU VM with 'fitcoach-tune[tpu]' installed; --device xla-cpu rehearses it on a CPU",
        ) from None


class XlaBackend:
    """All XLA devices of this host, and its share of those of other hosts; see `Backend` for the methods."""

    native_dtype = "bf16"
    most_tokens = None
    compiled = True
    gradient_scale = 1.0

    def __init__(self, name: str, num_devices: int | None = None):
        _start(name, num_devices)
        import torch_xla
        from torch_xla import runtime
        from torch_xla.distributed import spmd

        self.name, self.device = name, torch_xla.device()
        self.count = runtime.global_runtime_device_count()
        if num_devices not in (None, self.count):
            raise DeviceError(
                f"{num_devices} devices were asked for, and this process has {self.count}",
                where=f"--num-devices {num_devices}",
                hint="leave it out to use all",
            )
        self.rank, self.world_size = runtime.process_index(), runtime.process_count()
        self.groups = runtime.addressable_runtime_device_count()
        # Weights, optimizer state and batches are sharded over "fsdp"; "tensor" has room for splitting within layers.
        self.mesh = spmd.Mesh(np.arange(self.count), (self.count, 1), ("fsdp", "tensor"))
        self._fsdp = False
        self._allow_recompile = False
        self._graphs: dict[str, Mapping[str, tuple[int, ...]]] = {}
        self._recompiled: list[str] = []

    # ------------------------------------------------------------------------------------------ placing

    def place(self, model: nn.Module) -> None:
        self._move(model)
        self._replicate(model.parameters())

    def _move(self, model: nn.Module) -> None:
        import torch_xla

        model.to(self.device)
        model.tie_weights()  # moving makes two tensors of a shared one
        self._replicate(model.buffers())
        torch_xla.sync()

    def _replicate(self, tensors: Iterable[Tensor]) -> None:
        """Say that these lie whole on every device.

        Without a word of it a step may hand them back with another annotation than it got, and the next step
        would be another graph.
        """
        from torch_xla.distributed import spmd

        for tensor in tensors:
            spmd.mark_sharding(tensor, self.mesh, (None,) * tensor.dim())

    def place_sharded(self, model: nn.Module, config: Config) -> None:
        self._move(model)
        self._fsdp, self._allow_recompile = config.xla_fsdp_v2, config.allow_recompile
        self._graphs.clear()
        if not self._fsdp:
            self._replicate(model.parameters())
        for parent, child, layer in layers_to_wrap(model, config.transformer_layer_cls_to_wrap):
            setattr(parent, child, self._wrap(layer, config.xla_fsdp_grad_ckpt))

    def _wrap(self, layer: nn.Module, grad_ckpt: bool) -> nn.Module:
        from torch_xla.distributed.fsdp import checkpoint_module
        from torch_xla.experimental.spmd_fully_sharded_data_parallel import SpmdFullyShardedDataParallel

        layer = checkpoint_module(layer) if grad_ckpt else layer
        return SpmdFullyShardedDataParallel(layer, mesh=self.mesh, shard_output=_shard_output) if self._fsdp else layer

    def parallel(self, loss: nn.Module) -> nn.Module:
        import torch_xla
        from torch_xla.experimental.spmd_fully_sharded_data_parallel import SpmdFullyShardedDataParallel

        if self._fsdp:
            # FSDPv2 hooks into the root's backward pass as well, which starts from token ids and so from no gradient.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            loss = SpmdFullyShardedDataParallel(loss, mesh=self.mesh, shard_output=lambda scalar, mesh: None)
        torch_xla.sync()
        return loss

    def unwrap(self, loss: nn.Module) -> nn.Module:
        return loss.module if self._fsdp else loss

    def place_state(self, optimizer: torch.optim.Optimizer) -> None:
        import torch_xla
        from torch_xla.distributed import spmd

        for state in optimizer.state.values():
            for name, value in state.items():
                state[name] = value.to(self.device)
                spec = partition(tuple(value.shape), self.count if self._fsdp else 1)
                spmd.mark_sharding(state[name], self.mesh, spec)
        torch_xla.sync()

    # ------------------------------------------------------------------------------------------ a step

    def seed(self, *parts: int) -> None:
        from torch_xla.core import xla_model

        # One program for all hosts: they share the seed, and each device draws its own part of a sharded mask.
        xla_model.set_rng_state(derive_seed(*parts), str(self.device))

    def put(self, array: np.ndarray) -> Tensor:
        # What each of several hosts gives is its own slice of the first axis: a "minibatch".
        return self._send(torch.from_numpy(array), ("fsdp", *[None] * (array.ndim - 1)), self.world_size > 1)

    def scalar(self, value: float) -> Tensor:
        return self._send(torch.tensor(value, dtype=torch.float32), (), False)

    def _send(self, tensor: Tensor, spec: tuple[str | None, ...], minibatch: bool) -> Tensor:
        from torch_xla.core import xla_model
        from torch_xla.distributed import spmd

        sharding = spmd.ShardingSpec(self.mesh, spec, minibatch=minibatch)
        return xla_model.send_cpu_data_to_device([tensor], self.device, sharding)[0]

    def accumulating(self, loss: nn.Module, *, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext()  # the compiler puts one sum over devices where it is needed

    @contextlib.contextmanager
    def graph(self, kind: str, at: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
        before = compilations()
        yield
        known = self._graphs.setdefault(kind, shapes)
        if known is shapes or compilations() == before:
            return
        changed = [f"{name}: {list(known[name])} before, {list(shapes[name])} now" for name in shapes]
        changed = [line for name, line in zip(shapes, changed, strict=True) if known[name] != shapes[name]]
        self._recompiled.append(f"{at}: {'; '.join(changed) or 'no input changed its shape'}")
        self._graphs[kind] = shapes
        if not self._allow_recompile:
            raise DeviceError(
                f"the {kind} graph was compiled a second time",
                where=at,
                details=changed or ["no input changed its shape"],
                hint="compiling costs far more than a step, so this is taken for a mistake; --allow-recompile goes on",
            )

    def end_step(self) -> None:
        import torch_xla

        torch_xla.sync()

    def fetch_sum(self, value: Tensor) -> float:
        return value.item()  # in SPMD a sum over the batch is one over all processes

    # ------------------------------------------------------------------------------------------ the rest

    def to_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch_xla
        from torch_xla.distributed import spmd

        # All gathered in one graph, rather than each in its own; a clone would keep the old annotation.
        whole = {name: tensor.detach() * 1 for name, tensor in tensors.items()}
        for tensor in whole.values():
            spmd.mark_sharding(tensor, self.mesh, (None,) * tensor.dim())
        torch_xla.sync()
        return {name: tensor.cpu() for name, tensor in whole.items()}

    @contextlib.contextmanager
    def first_process_first(self) -> Iterator[None]:
        # Hosts of a slice have disks of their own: each must make what it will read.
        yield

    def describe(self) -> str:
        from torch_xla import runtime

        hosts = f" on {self.world_size} hosts" if self.world_size > 1 else ""
        if self.name == "xla-cpu":
            return f"{self.count} virtual XLA device{'s' * (self.count > 1)} on a CPU ({platform.machine()})"
        kind = runtime.global_runtime_device_attributes()[0].get("device_kind", "TPU")
        return f"{self.count} × {kind}{hosts}"

    def statistics(self) -> dict[str, Any]:
        from torch_xla.debug import metrics

        compiled = metrics.metric_data("CompileTime")  # (count, nanoseconds, samples)
        return {
            "compilations": compiled[0] if compiled else 0,
            "compile_seconds": round(compiled[1] / 1e9, 3) if compiled else 0.0,
            "loaded_from_cache": metrics.counter_value("PersistentCacheHit") or 0,
            "recompiled": list(self._recompiled),
        }

    def peak_memory(self) -> int:
        from torch_xla.core import xla_model

        with contextlib.suppress(RuntimeError):  # the CPU's runtime does not count, nor do all others
            info = xla_model.get_memory_info(self.device)
            return int(info.get("peak_bytes_used") or info["bytes_used"])
        return process_peak_memory()

    def release(self) -> None:
        gc.collect()

    def close(self) -> None:
        if self.world_size > 1:
            # A sum over all hosts' devices: it comes back when the last host has asked for it.
            self.put(np.ones(self.groups, dtype=np.float32)).sum().item()


def _shard_output(output: Tensor | tuple, mesh: Any) -> None:
    from torch_xla.distributed import spmd

    hidden = output if isinstance(output, Tensor) else output[0]
    spmd.mark_sharding(hidden, mesh, ("fsdp", *[None] * (hidden.dim() - 1)))


def layers_to_wrap(model: nn.Module, classes: tuple[str, ...] | None) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name in it, layer) of the layers of these classes; by default those of the decoder's layers.

    Raises:
        ConfigError: there is no layer of such a class; lists those there are.
    """
    wanted = set(classes or (type(layer).__name__ for layer in model.model.layers))
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in wanted
    ]
    if missing := wanted - {type(layer).__name__ for *_, layer in found}:
        there = sorted({type(module).__name__ for module in model.modules()})
        raise ConfigError(
            f"the model has no layer of class {', '.join(sorted(missing))}",
            where="--transformer-layer-cls-to-wrap",
            hint=f"leave it out, or choose from {', '.join(there)}",
        )
    return found


def compilations() -> int:
    """Graphs that this process has compiled; those found in the cache, in memory or on disk, do not count."""
    from torch_xla.debug import metrics

    return metrics.counter_value("UncachedCompile") or 0
