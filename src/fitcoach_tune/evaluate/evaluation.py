"""The eval verb: every held-out row is asked, and the calls are compared with the gold ones; base beside tuned."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import models, prepared_set, runs
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import ConfigError, MismatchError
from fitcoach_tune.evaluate.score import Rate, Verdict, judge
from fitcoach_tune.functiongemma import Call

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.prepared_set import PreparedSet


@dataclass(frozen=True)
class Question:
    """A row as it is asked: the prompt's token ids, what the user says, the gold calls, the declared names."""

    prompt: list[int]
    query: str
    gold: list[Call]
    declared: list[str]
    origin: str


@dataclass(frozen=True)
class Result:
    """One model's answers.

    Attributes:
        name: `base`, `tuned`, or the folder of another adapter.
        raw: its outputs, in the order of the questions.
        verdicts: how they compare.
        unstopped: answers that reached the token limit.
    """

    name: str
    raw: list[str]
    verdicts: list[Verdict]
    unstopped: int

    @property
    def exact(self) -> Rate:
        return Rate(sum(v.right for v in self.verdicts), len(self.verdicts))

    @property
    def errors(self) -> Counter[str]:
        return Counter(v.error for v in self.verdicts if v.error)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "exact": self.exact.as_dict(),
            "errors": dict(self.errors),
            "unstopped": self.unstopped,
        }


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    adapter: str
    data: str
    split: str
    questions: list[Question]
    results: list[Result]

    def mistakes(self, result: Result) -> list[dict[str, Any]]:
        """The wrong answers, the kinds that occur most first."""
        common = result.errors
        found = [
            {"query": q.query, "gold": q.gold, "got": v.calls, "error": v.error, "raw": raw, "origin": q.origin}
            for q, v, raw in zip(self.questions, result.verdicts, result.raw, strict=True)
            if not v.right
        ]
        return sorted(found, key=lambda m: -common[m["error"]])


def evaluate(
    adapter: str,
    config: Config,
    *,
    data: str | None = None,
    split: str = "test",
    baseline: str = "base",
    ui: Console = SILENT,
) -> Evaluation:
    """Ask every row of a split, greedily, and compare.

    Args:
        adapter: a run directory or a Hub id.
        config: device, batch size and longest answer are taken from it.
        data: a prepared set; by default the one that the adapter was trained with.
        split: `test`, `train` or `all`.
        baseline: `base` for the untuned model, `none`, or another adapter.

    Raises:
        MismatchError: the adapter, the set and the base do not belong together.
        ConfigError: the split has no rows.
    """
    from fitcoach_tune.backends import make_backend
    from fitcoach_tune.training.adapter import load_adapter

    run = runs.open_run(adapter)
    others = [] if baseline in ("base", "none") else [runs.open_run(baseline, "--baseline")]
    prepared = _matching_set(run, data)
    questions = [q for name in (("train", "test") if split == "all" else (split,)) for q in _questions(prepared, name)]
    if not questions:
        raise ConfigError("the split has no rows", where=f"--split {split}", hint="prepare with a larger --test-size")
    name, revision = run.base_name
    base = models.resolve(name, revision, ui)
    runs.check_base(run, base)
    prepared_set.check_base(prepared, base)
    backend = make_backend(config.device, config.num_devices)
    tokenizer = models.load_tokenizer(base.path)

    def ask(model: PreTrainedModel, label: str) -> Result:
        backend.place(model)
        return _ask(model, tokenizer, questions, config, label, backend, ui)

    results = []
    plain = models.load_model(base, run.dtype)
    if baseline == "base":
        results.append(ask(plain, "base"))
    for other in others:
        runs.check_base(other, base)
        results.append(ask(load_adapter(models.load_model(base, run.dtype), other.path), baseline))
    results.append(ask(load_adapter(plain, run.path), "tuned"))
    return Evaluation(adapter, str(prepared.path), split, questions, results)


def _matching_set(run: runs.Run, data: str | None) -> PreparedSet:
    recorded = run.record.get("data")
    if data is None and not recorded:
        raise MismatchError("the adapter does not say what it was trained on", where=str(run.path), hint="give --data")
    prepared = prepared_set.open_set(Path(data or recorded["path"]))
    if not recorded:
        return prepared
    names = {"template_sha256": "the chat template", "tools_sha256": "the tools"}
    if data is None:
        names["data_sha256"] = "the rows"
    differing = [what for key, what in names.items() if recorded[key] != prepared.manifest[key]]
    if differing:
        raise MismatchError(
            f"the adapter was trained with another set: {' and '.join(differing)} differ",
            where=str(prepared.path),
            hint="name the set it was trained with as --data, or train again",
        )
    return prepared


def _questions(prepared: PreparedSet, split: str) -> list[Question]:
    rows = getattr(prepared, split)
    found = []
    for i in range(len(rows)):
        row, example = rows[i], rows.example(i)
        declared = [tool["function"]["name"] for tool in example.tools]
        prompt = row.input_ids[: row.spans[-1][0]].tolist()
        found.append(Question(prompt, example.query, example.gold, declared, example.origin))
    return found


def _ask(
    model: PreTrainedModel,
    tokenizer: Any,
    questions: list[Question],
    config: Config,
    label: str,
    backend: Backend,
    ui: Console,
) -> Result:
    from fitcoach_tune.evaluate.generate import STOP_IDS, Generator, common_prefix

    generator = Generator(model, backend)
    prompts, done = [q.prompt for q in questions], 0
    generator.warm(common_prefix(prompts))
    with ui.bar(f"asking the {label} model", len(questions)) as update:

        def finished(rows: int) -> None:
            nonlocal done
            done += rows
            update(done)

        size = config.per_device_eval_batch_size * backend.groups
        answers = generator.generate(prompts, config.max_new_tokens, finished, batch_size=size)
    raw = [tokenizer.decode(ids, skip_special_tokens=False) for ids in answers]
    verdicts = [judge(text, q.gold, q.declared) for text, q in zip(raw, questions, strict=True)]
    return Result(label, raw, verdicts, sum(ids[-1] not in STOP_IDS for ids in answers))
