"""Every setting of the program with its default, its meaning and its check: the one source for YAML, flags and docs.

A YAML file has these names as keys; a flag is the same name with hyphens. Flags win over the file, the file over the
defaults. Unknown keys and bad values are reported all at once, each with the nearest valid name.
"""

from __future__ import annotations

import difflib
import os
import re
from errno import EISDIR
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fitcoach_tune.errors import ConfigError
from fitcoach_tune.reading import user_path
from fitcoach_tune.strict_json import shorten

Device = Literal["auto", "tpu", "cuda", "mps", "cpu", "xla-cpu"]
# Settings that are lists of names; as a text, and so as a flag, they are comma-separated.
LISTS = ("target_modules", "transformer_layer_cls_to_wrap")
ORIGINAL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# No file can be called so, and no text with it be written; the largest integer is that of torch's generators.
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_LARGEST = 2**63 - 1
_LARGEST_FILE = 1 << 20
_PLAIN_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


class Config(BaseModel):
    """The settings of one experiment, shared by all verbs. Frozen: what a run used is what its file says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Base model
    model: str = Field("google/functiongemma-270m-it", description="Base model: a Hub id, a folder, or 'offline'.")
    model_revision: str | None = Field(None, description="Branch, tag or commit of the base model on the Hub.")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Precision of the frozen base and of the arithmetic; auto is bf16 where the device multiplies it "
        "by itself, else fp32.",
    )
    device: Device = Field("auto", description="Where to run; auto takes the first there is of tpu, cuda, mps, cpu.")
    num_devices: int | None = Field(None, ge=1, description="Devices to use; all by default.")
    xla_fsdp_v2: bool = Field(True, strict=True, description="Shard weights and optimizer state over the devices.")
    xla_fsdp_grad_ckpt: bool = Field(True, strict=True, description="Compute activations again in the backward pass.")
    transformer_layer_cls_to_wrap: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="On XLA: classes of the layers to shard one by one, comma-separated; by default the decoder's.",
    )
    allow_recompile: bool = Field(
        False, strict=True, description="Go on if a graph is compiled in the middle of a run."
    )
    seed: int = Field(42, ge=0, description="Seed of whatever is drawn: split, adapter, order, dropout, harder sets.")

    # Data
    dataset: str = Field(
        "tengomucho/fitness-coach-function-calling",
        description="Rows: a Hub dataset id, a .jsonl, .json or .parquet file, a saved dataset, or a builtin:NAME.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the dataset on the Hub.")
    tools: str | None = Field(
        None, description="Tools for rows without their own: a JSON file, module:object or a builtin:NAME."
    )
    data: str | None = Field(
        None, description="Prepared set; made of --dataset if it is not there. Default: one under output/prepared."
    )
    max_length: int = Field(512, ge=8, description="Longest row, in tokens.")
    excess_length: Literal["error", "drop", "truncate"] = Field("error", description="What to do with longer rows.")
    test_size: float = Field(0.3, gt=0, lt=1, description="Share of the rows that is held out.")
    split: Literal["grouped", "random"] = Field(
        "grouped",
        description="How rows are held out: near-duplicates together and tools balanced, or plainly shuffled.",
    )

    # Adapter
    lora_r: int = Field(32, ge=1, description="Rank of the LoRA update.")
    lora_alpha: float = Field(64, gt=0, le=1e6, description="The LoRA update is scaled by alpha / r.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the LoRA input.")
    target_modules: tuple[str, ...] = Field(
        ORIGINAL_TARGETS, min_length=1, description="Linear layers that get LoRA, comma-separated, or all-linear."
    )

    # Training
    output_dir: str = Field("output/functiongemma-fitness-coach", description="Where the adapter and its records go.")
    num_train_epochs: float = Field(3, gt=0, description="Passes over the training rows.")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; if positive, used instead of the epochs.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Rows per device and micro-batch.")
    gradient_accumulation_steps: int = Field(2, ge=1, description="Micro-batches per optimizer step.")
    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate.")
    optim: Literal["adafactor", "adamw"] = Field("adafactor", description="Optimizer.")
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = Field("constant", description="Shape after warm-up.")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of the steps over which the rate rises from 0.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    shuffle_tools: bool = Field(False, description="Show the tools in another order in each step.")
    tool_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a step hides a tool; rows that call it learn to refuse."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0 switches it off.")
    report_to: Literal["none", "tensorboard", "trackio"] = Field("none", description="Where metrics go as well.")
    price_per_hour: float | None = Field(None, ge=0, description="Price of the machine, to state what the run cost.")

    # Checkpoints
    save_steps: int | None = Field(
        None, ge=0, description="Optimizer steps between checkpoints, 0 for none; by default an epoch's."
    )
    save_total_limit: int | None = Field(
        None, ge=1, description="Checkpoints to keep; by default the newest two, and none once the run is finished."
    )
    resume_from_checkpoint: str | None = Field(
        None, min_length=1, description="Go on with a run: a checkpoint, or auto for the output folder's newest."
    )

    # The Hub
    hub_model_id: str | None = Field(None, description="Repository of the Hub that `push` publishes to: owner/name.")

    # Evaluation and inference
    per_device_eval_batch_size: int = Field(64, ge=1, description="Rows that are evaluated together.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens.")

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        texts = {name: values[name] for name in LISTS if isinstance(values.get(name), str)}
        split = {name: tuple(p.strip() for p in text.split(",") if p.strip()) for name, text in texts.items()}
        return {**values, **split}

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("must be a number or a text")  # it would pass for 0 or 1; YAML reads `no` and `on` as one
        return value

    @field_validator("*")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
        if any(_UNUSABLE.search(text) for text in texts):
            raise ValueError("must be text without null characters or halves of surrogate pairs")
        if isinstance(value, int) and value > _LARGEST:
            raise ValueError(f"must be at most {_LARGEST}")
        return value

    @field_validator("model", "dataset", "tools", "data", "output_dir", "resume_from_checkpoint")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        """A path from a file, or behind `=`, has a `~` that no shell has expanded."""
        return os.path.expanduser(value) if value and value.startswith("~/") else value

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 (use the epochs) or at least 1")
        return value


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def presets() -> dict[str, Path]:
    """The packaged configurations by name: in the wheel, or in `configs/` of a source checkout."""
    packaged = Path(str(resources.files("fitcoach_tune"))) / "configs"
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(source: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file (or packaged preset) and put the given flags over it.

    Args:
        source: a path, the name of a preset, or None for the defaults.
        overrides: values by setting name; None means "not given".

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown, or a value is bad; all problems at once.
    """
    from_file = _read_yaml(source) if source else {}
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    merged = {**from_file, **given}
    try:
        return Config(**merged)
    except ValidationError as error:
        problems = [_explain(item, given, source) for item in error.errors()]
        raise ConfigError(
            f"{len(problems)} setting{'s' * (len(problems) > 1)} cannot be used",
            where=source if not given else None,
            details=problems,
            hint="correct these; `fitcoach-tune train --help` lists all settings with their defaults",
        ) from None


def _read_yaml(source: str) -> dict[str, Any]:
    import yaml

    known = presets()
    path = user_path(source, "--config")
    if not path.is_file() and source in known:
        path = known[source]
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise OSError(EISDIR, "it is no regular file")
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"a configuration has at most {_LARGEST_FILE:,} bytes", where=str(path))
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        nearest = difflib.get_close_matches(source, known, 1)
        raise ConfigError(
            f"no such configuration ({error.strerror})",
            where=f"--config {source}",
            hint=f"{f'did you mean {nearest[0]}? ' if nearest else ''}give a file or one of {', '.join(known)}",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not readable as YAML: {error}", where=str(path)) from None
    try:
        loaded = yaml.load(text, Loader=_loader())
    except Exception as error:  # besides its own errors, whatever a tag makes of a value that it does not fit
        what = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"not readable as YAML: {what}", where=str(path)) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and not _UNUSABLE.search(k) for k in loaded):
        raise ConfigError("a configuration is a mapping of setting names to values", where=str(path))
    return loaded


def _loader() -> type:
    """YAML's safe loader that refuses a key given twice and aliases, of which a few lines can say any number of values,
    and reads 5e-5 as the number it is (YAML 1.1 wants 5.0e-5).
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, "aliases are not read; write the value out", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if isinstance(name, str) and name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
                if isinstance(name, str):
                    seen.add(name)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(*_PLAIN_FLOAT)
    return Loader


def _explain(item: dict, given: dict[str, Any], source: str | None) -> str:
    name = str(item["loc"][0])
    place = flag(name) if name in given else f"{source}: {name}"
    if item["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, Config.model_fields, 1, cutoff=0.5)
        return f"{place}: no such setting" + (f"; did you mean {nearest[0]}?" if nearest else "")
    message = item["msg"].removeprefix("Value error, ")
    try:
        shown = shorten(repr(item["input"]))
    except ValueError:  # a whole number of more digits than Python writes
        shown = "a number of thousands of digits"
    return f"{place}: {message[0].lower()}{message[1:]}, not {shown}"


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes a text that the loader would take for a number, such as the revision 12e45."""

    Dumper.add_implicit_resolver(*_PLAIN_FLOAT)
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)
