"""LoRA attached to a frozen model, saved and loaded in PEFT's format.

The layer is the program's own because the loop lives on it, and it needs neither PEFT's import time nor its per-call
bookkeeping. The files are PEFT's, so that `peft.PeftModel.from_pretrained` loads an adapter without this package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fitcoach_tune import reading
from fitcoach_tune.errors import ConfigError, MismatchError
from fitcoach_tune.strict_json import Maybe, quote
from fitcoach_tune.training.lora import LoraLinear
from fitcoach_tune.training.names import CONFIG_NAME, WEIGHTS_NAME

if TYPE_CHECKING:
    from fitcoach_tune.config import Config

_PEFT_PREFIX = "base_model.model."
_KEY = re.compile(rf"{re.escape(_PEFT_PREFIX)}.+\.lora_[AB]\.weight")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_ALPHA = 1e6
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
)


def linear_names(model: nn.Module) -> list[str]:
    """The distinct last name parts of the model's decoder linear layers, e.g. `q_proj`: what LoRA can target."""
    found = {name.rsplit(".", 1)[-1] for name, m in model.model.named_modules() if isinstance(m, nn.Linear)}
    return sorted(found)


def attach(model: nn.Module, *, rank: int, alpha: float, dropout: float, target_modules: list[str], seed: int) -> int:
    """Freeze the model and put a LoRA layer in place of each linear layer whose name is in `target_modules`.

    Initialised as PEFT does: A by Kaiming uniform with a = √5, B zero. Drawn on the CPU from `seed`, so that every
    device starts from the same adapter.

    Returns:
        The number of trained parameters.

    Raises:
        ConfigError: a target matches no linear layer; lists those there are.
    """
    available = linear_names(model)
    targets = available if target_modules == ["all-linear"] else target_modules
    if missing := [t for t in targets if t not in available]:
        raise ConfigError(
            f"no linear layer of the model is called {', '.join(missing)}",
            where="--target-modules",
            hint=f"choose from {', '.join(available)}, or all-linear",
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in list(model.model.named_modules()):
        parent_name, _, leaf = name.rpartition(".")
        if isinstance(layer, nn.Linear) and leaf in targets:
            lora = LoraLinear(layer, rank, alpha, dropout)
            start = torch.empty(rank, layer.in_features)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            lora.lora_A.data.copy_(start)
            setattr(model.model.get_submodule(parent_name), leaf, lora)
    return sum(p.numel() for p in trained_parameters(model).values())


def attach_configured(model: nn.Module, config: Config) -> int:
    """`attach` with a run's settings."""
    return attach(
        model,
        rank=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        seed=config.seed,
    )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The model's LoRA layers with their names, free of what wrappers put into them (FSDP's `_orig_module`)."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name.replace("_orig_module.", ""), module


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA parameters by the key that PEFT gives them in an adapter file."""
    found = {}
    for name, layer in lora_layers(model):
        found[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        found[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_B
    return found


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read an adapter's tensors.

    Raises:
        MismatchError: the file is damaged or no part of its folder, has keys that a loader would silently ignore (an
            FSDP wrapper's `_orig_module`), tensors that are no LoRA matrices or not finite, or all its B matrices are
            zero, so that it would act as the base model.
    """
    from safetensors.torch import load_file

    reading.check_own(path, "an adapter")
    try:
        tensors = load_file(path)
    except Exception as error:  # besides its own errors, whatever torch makes of a header that lies
        why, hint = " ".join(str(error).split()), "train or download it again"
        raise MismatchError(f"not a readable adapter: {why}", where=str(path), hint=hint) from None
    bad = [k for k in tensors if "_orig_module" in k or not _KEY.fullmatch(k)]
    if bad or not tensors:
        what = f"has a key that no loader would match: {quote(bad[0])}" if bad else "holds no tensor"
        raise MismatchError(f"the adapter {what}", where=str(path), hint="save it with this version of the program")
    for key, tensor in tensors.items():
        if tensor.ndim != 2 or not tensor.numel() or tensor.dtype not in _DTYPES:
            shape = "x".join(map(str, tensor.shape))
            raise MismatchError(f"{key} is no matrix of LoRA: {tensor.dtype} of shape {shape}", where=str(path))
        if not tensor.isfinite().all():
            raise MismatchError(f"{key} has values that are not finite", where=str(path))
    if not any(t.count_nonzero() for k, t in tensors.items() if ".lora_B." in k):
        raise MismatchError("every LoRA B is zero: this adapter acts as the base model", where=str(path))
    return tensors


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Put the adapter in `folder` onto the plain `model`, its own frozen inference form; returns the model.

    Raises:
        MismatchError: the adapter is of a kind that this program does not make (DoRA, rank patterns, trained biases,
            …), is damaged, or does not fit the model.
    """
    alpha, rank = _read_settings(folder / CONFIG_NAME)
    tensors = load_weights(folder / WEIGHTS_NAME)
    names = sorted({key.removeprefix(_PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
    found = []
    for name in names:
        a, b = (tensors.get(f"{_PEFT_PREFIX}{name}.lora_{x}.weight") for x in "AB")
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            layer = None
        fits = a is not None and b is not None and isinstance(layer, nn.Linear) and len(a) == b.shape[1]
        if not fits or (layer.out_features, layer.in_features) != (b.shape[0], a.shape[1]):
            raise MismatchError(
                f"the adapter's {name} does not fit this model",
                where=str(folder / CONFIG_NAME),
                hint="use its own base model",
            )
        if rank not in (None, len(a)):
            raise MismatchError(f"{name} has rank {len(a)}, and not r = {rank}", where=str(folder / CONFIG_NAME))
        found.append((name, layer, a, b))
    for name, layer, a, b in found:
        lora = LoraLinear(layer, len(a), alpha, dropout=0.0)
        lora.lora_A.data.copy_(a)
        lora.lora_B.data.copy_(b)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, lora)
    return model.requires_grad_(False).eval()


def _read_settings(path: Path) -> tuple[float, int | None]:
    """Alpha and, where it is given, the rank of a plain LoRA adapter's configuration.

    Raises:
        MismatchError: see `load_adapter`.
    """
    config = reading.read_json(path, "an adapter", {"lora_alpha": float, "r": Maybe(int), "bias": Maybe(str)})
    unsupported = [k for k in _UNSUPPORTED if config.get(k)]
    unsupported += ["bias"] if (config.get("bias") or "none") != "none" else []
    if config.get("peft_type") != "LORA" or unsupported:
        kind = f"uses {', '.join(unsupported)}" if unsupported else f"is of type {config.get('peft_type')!r:.80}"
        raise MismatchError(
            f"this adapter {kind}, which is not plain LoRA", where=str(path), hint="merge it with PEFT first"
        )
    if not 0 < config["lora_alpha"] <= _LARGEST_ALPHA:
        raise MismatchError(f"lora_alpha is not between 0 and {_LARGEST_ALPHA:g}", where=str(path))
    return config["lora_alpha"], config.get("r")
