"""From an adapter's name to a caller, in steps: whatever can be refused is refused before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitcoach_tune import files, functiongemma, models, runs
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import ConfigError, DataError, DeviceError, MismatchError
from fitcoach_tune.inference.prompting import Prompter
from fitcoach_tune.tools import read_tools

if TYPE_CHECKING:
    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.evaluate.constrain import Constraint
    from fitcoach_tune.evaluate.generate import Model
    from fitcoach_tune.models import Base
    from fitcoach_tune.runs import Run
    from fitcoach_tune.tokenizer import AnyTokenizer

UNTUNED = "none"


@dataclass(frozen=True)
class Declared:
    """What the model is told before a question: the developer's text, empty for none, and tools in the common form."""

    developer: str
    tools: list[dict]


@dataclass(frozen=True)
class Parts:
    """All that a caller is made of but the model's weights."""

    base: Base
    run: Run | None
    dtype: str
    declared: Declared
    tokenizer: AnyTokenizer
    backend: Backend
    constraint: Constraint | None

    def prompter(self, max_new_tokens: int) -> Prompter:
        """What makes the caller's prompts."""
        length = models.context_length(self.base.path)
        return Prompter(
            self.tokenizer, self.declared.tools, self.declared.developer, length=length, answer=max_new_tokens
        )

    def load_model(self) -> Model:
        """The model, on its device."""
        from fitcoach_tune.evaluate.gemma import answering_model
        from fitcoach_tune.training.adapter import load_adapter

        model = answering_model(self.base, self.dtype, self.backend)
        model = load_adapter(model, self.run.path) if self.run else model
        self.backend.place(model)
        return model


def default_adapter(adapter: str | None) -> str:
    """The given adapter, or the newest run."""
    return adapter or runs.newest_run()


def declare(run: Run | None, source: str | None, ui: Console = SILENT) -> Declared:
    """The tools of `source`, or those that the adapter was trained with. Without an adapter the developer's text is
    the one that FunctionGemma knows.

    Raises:
        ConfigError: there is neither.
        DataError: see `read_tools`.
        MismatchError: see `Run.prompt`.
    """
    given = read_tools(source) if source else None
    if run is None:
        if given is None:
            hint = "give --tools: a JSON file, module:object or builtin:fitness"
            raise ConfigError("an untuned model knows no tools", where=f"--adapter {UNTUNED}", hint=hint)
        return Declared(functiongemma.TRIGGER, given)
    prompt = run.prompt(given)
    if given is not None and _differ(run, prompt["trained_with"], given):
        ui.warn("these are not the tools that the adapter was trained with: expect more mistakes")
    return Declared(prompt["developer"] or "", prompt["tools"])


def _differ(run: Run, trained_with: list[dict] | None, given: list[dict]) -> bool:
    if trained_with is not None:
        return not same_declarations(trained_with, given)
    # It says which the tools are, unless there were several lists of them.
    recorded = run.record.get("data", {}).get("tools_sha256")
    return recorded is not None and recorded != files.sha256_json([files.sha256_json(given)])


def same_declarations(one: list[dict], other: list[dict]) -> bool:
    """Whether a model sees no difference between two lists of tools."""
    declared, others = (list(map(functiongemma.render_declaration, tools)) for tools in (one, other))
    return declared == others


def find_base(run: Run, model: str | None, ui: Console = SILENT) -> Base:
    """The adapter's base model, or `model`, if it is the same.

    Raises:
        AccessError, ConfigError: see `models.resolve`.
        MismatchError: it is another one.
    """
    name, revision = (model, None) if model else run.base_name
    base = models.resolve(name, revision, ui)
    runs.check_base(run, base)
    return base


def find_parts(
    base: Base,
    run: Run | None,
    declared: Declared,
    *,
    dtype: str = "auto",
    device: str = "auto",
    num_devices: int | None = None,
    constrained: bool | None = None,
    ui: Console = SILENT,
) -> Parts:
    """Everything but the model.

    Args:
        run: the adapter; None for the base alone, in `dtype`.
        constrained: see `FunctionCaller.from_adapter`.

    Raises:
        DataError: the answers must be constrained, and a grammar cannot express the tools.
        DeviceError: the device is not there, or the answers must be constrained, and it compiles what it does.
        MismatchError: the tokenizer is another model's, or the chat template another one than the adapter's.
    """
    from fitcoach_tune.backends import make_backend

    backend = make_backend(device, num_devices)
    if backend.compiled and constrained is None:
        ui.note(f"answers are not constrained on {backend.name}")
    elif backend.compiled and constrained:
        what, where = "answers cannot be constrained on this device", f"--constrained with --device {backend.name}"
        raise DeviceError(what, where=where, hint="use --unconstrained")
    tokenizer = load_own_tokenizer(run, base)
    wanted = constrained is not False and not backend.compiled
    constraint = _constraint(declared.tools, tokenizer, constrained is True, ui) if wanted else None
    return Parts(base, run, _dtype(run, dtype, backend), declared, tokenizer, backend, constraint)


def _dtype(run: Run | None, asked: str, backend: Backend) -> str:
    from fitcoach_tune.backends import answering_dtype, training_dtype

    return answering_dtype(run.dtype, backend) if run else training_dtype(asked, backend)


def load_own_tokenizer(run: Run | None, base: Base) -> AnyTokenizer:
    """The adapter's own tokenizer, which may lie beside it, with the chat template that it was trained with.

    Raises:
        MismatchError: it is not FunctionGemma's, or has another chat template.
    """
    own = run is not None and (run.path / "tokenizer.json").is_file()
    tokenizer = models.load_tokenizer(run.path if own else base.path)
    trained_with = run.record.get("data", {}).get("template_sha256") if run else None
    found = files.sha256_text(tokenizer.chat_template or functiongemma.chat_template())
    if trained_with not in (None, found):
        raise MismatchError(
            "the adapter was trained with another chat template",
            where=str(run.path if own else base.path),
            hint="put the run's own chat_template.jinja and tokenizer files back, or train again",
        )
    return tokenizer


def _constraint(tools: list[dict], tokenizer: AnyTokenizer, must: bool, ui: Console) -> Constraint | None:
    from fitcoach_tune.evaluate.constrain import Constraint

    try:
        return Constraint(tools, tokenizer)
    except DataError as error:
        if must:
            raise
        problem = "; ".join([f"{error.where}: {error.what}" if error.where else error.what, *error.details])
        ui.warn(f"{problem}; so these answers are not")
        return None
