"""From answers to what is written of an evaluation: `results.json` and `samples.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitcoach_tune.evaluate.answers import Answer
from fitcoach_tune.evaluate.metrics import Metrics, Scored, measure
from fitcoach_tune.evaluate.score import Verdict, judge
from fitcoach_tune.evaluate.statistics import Comparison
from fitcoach_tune.evaluate.turns import Turn
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.gold import Strings

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class QuestionSet:
    """Turns as they are asked.

    Attributes:
        name, title, description: of the set; the first set of an evaluation is its main one.
        texts: the prompts with special tokens; prompts: their token ids.
    """

    name: str
    title: str
    description: str
    turns: list[Turn]
    texts: list[str]
    prompts: list[list[int]]


@dataclass(frozen=True)
class ModelResult:
    """One model's answers to one set, judged."""

    name: str
    keys: list[str]
    answers: list[Answer]
    verdicts: list[Verdict]
    metrics: Metrics


@dataclass(frozen=True)
class SetResult:
    """All models' results on one set, in the order in which they were asked."""

    asked: QuestionSet
    models: list[ModelResult]

    def of(self, name: str) -> ModelResult:
        return next(model for model in self.models if model.name == name)

    def compare(self, baseline: str, model: str) -> Comparison:
        """Both models' exact calls, row by row."""
        first, second = ([v.right for v in self.of(name).verdicts] for name in (baseline, model))
        return Comparison.of(first, second)

    def sample_id(self, index: int) -> str:
        """The name of a question: the set's, and its number from 1."""
        return f"{self.asked.name}/{index + 1}"


def judge_all(asked: QuestionSet, name: str, keys: list[str], answers: list[Answer], strings: Strings) -> ModelResult:
    """Compare every answer with its gold, and count."""
    verdicts = [judge(a.raw, t.gold, t.tools, strings) for t, a in zip(asked.turns, answers, strict=True)]
    scored = [
        Scored(turn.gold, verdict, turn.declared, answer.seconds, answer.tokens, answer.stopped)
        for turn, answer, verdict in zip(asked.turns, answers, verdicts, strict=True)
    ]
    return ModelResult(name, keys, answers, verdicts, measure(scored, sum(answer.busy for answer in answers)))


def set_as_dict(result: SetResult, baseline: str | None, model: str) -> dict[str, Any]:
    """One of the sets in `results.json`."""
    comparison = None
    if baseline:
        pairs = zip(result.of(baseline).verdicts, result.of(model).verdicts, strict=True)
        changed = [(result.sample_id(i), a.right, b.right) for i, (a, b) in enumerate(pairs)]
        comparison = {
            "baseline": baseline,
            "model": model,
            **result.compare(baseline, model).as_dict(),
            "worse": [name for name, first, second in changed if first and not second],
            "better": [name for name, first, second in changed if second and not first],
        }
    return {
        "name": result.asked.name,
        "title": result.asked.title,
        "description": result.asked.description,
        "n": len(result.asked.turns),
        "models": [{"name": m.name, "metrics": m.metrics.as_dict()} for m in result.models],
        "comparison": comparison,
    }


def sample_of(asked: QuestionSet, index: int, model: str, key: str, answer: Answer, verdict: Verdict) -> dict[str, Any]:
    """One line of `samples.jsonl`: all there is to know about one answer."""
    turn = asked.turns[index]
    return {
        "set": asked.name,
        "model": model,
        "id": f"{asked.name}/{index + 1}",
        "origin": turn.origin,
        "query": turn.query,
        "prompt": asked.texts[index],
        "tools": list(turn.declared),
        "gold": [[_as_dict(gold.call) for gold in choice] for choice in turn.gold.answers],
        **answer.as_dict(),
        "calls": [_as_dict(call) for call in verdict.calls],
        "text": verdict.text,
        "right": verdict.right,
        "error": verdict.error,
        "detail": verdict.detail,
        "key": key,
    }


def samples_of(result: SetResult) -> list[dict[str, Any]]:
    """The samples of a set, model by model."""
    return [
        sample_of(result.asked, i, model.name, *row)
        for model in result.models
        for i, row in enumerate(zip(model.keys, model.answers, model.verdicts, strict=True))
    ]


def _as_dict(call: Call) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


@dataclass(frozen=True)
class Gate:
    """A condition that an evaluation has to meet.

    Attributes:
        flag: that asks for it; text: what was wanted and what was found, in words.
    """

    flag: str
    wanted: float
    found: float
    passed: bool
    text: str


def check_gates(metrics: Metrics, fail_under: float | None, at_lower: bool, max_invented: int | None) -> Sequence[Gate]:
    """Hold the main model on the main set against what the user asks for.

    Args:
        fail_under: least exact-call accuracy.
        at_lower: the lower end of its 95% interval has to reach it, rather than the point.
        max_invented: most answers that call a function that was not declared.
    """
    gates = []
    if fail_under is not None:
        rate = metrics.exact
        found = rate.interval[0] if at_lower else rate.value
        what = f"exact calls {rate}" + ("; its lower end" if at_lower else "")
        passed = found >= fail_under  # nan, where there are no rows, reaches nothing
        gates.append(Gate("--fail-under", fail_under, found, passed, f"{what}, at least {fail_under:.1%} wanted"))
    if max_invented is not None:
        count = metrics.invented.right
        text = f"{count} of {metrics.n} answers call an undeclared function, at most {max_invented} wanted"
        gates.append(Gate("--max-invented", max_invented, count, count <= max_invented, text))
    return gates
