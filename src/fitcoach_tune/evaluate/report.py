"""An evaluation as people read it in a terminal, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitcoach_tune.infer import describe_call

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fitcoach_tune.evaluate.evaluation import Evaluation

_SHOWN = 10


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as a JSON value, with the mistakes of the last model, which is the tuned one."""
    tuned = evaluation.results[-1]
    mistakes = [
        {
            **{key: m[key] for key in ("query", "error", "raw", "origin")},
            "gold": [{"name": c.name, "arguments": c.arguments} for c in m["gold"]],
            "got": [{"name": c.name, "arguments": c.arguments} for c in m["got"]],
        }
        for m in evaluation.mistakes(tuned)
    ]
    return {
        "adapter": evaluation.adapter,
        "data": evaluation.data,
        "split": evaluation.split,
        "n": len(evaluation.questions),
        "results": [result.as_dict() for result in evaluation.results],
        "mistakes": mistakes,
    }


def as_tables(evaluation: Evaluation) -> list[RenderableType]:
    """What the terminal shows: the tuned model's worst mistakes, then exact-call accuracy by model."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Exact calls (name and arguments), {evaluation.split} split", title_justify="left")
    for column, justify in (("model", "left"), ("right", "right"), ("n", "right"), ("accuracy", "right")):
        table.add_column(column, justify=justify)
    table.add_column("95% interval", justify="right")
    table.add_column("mistakes by kind")
    for result in evaluation.results:
        rate = result.exact
        low, high = rate.interval
        kinds = ", ".join(f"{kind} {count}" for kind, count in result.errors.most_common())
        unstopped = f"; {result.unstopped} not stopped" if result.unstopped else ""
        interval = f"{low:.1%} to {high:.1%}"
        table.add_row(result.name, str(rate.right), str(rate.n), f"{rate.value:.1%}", interval, kinds + unstopped)
    mistakes = evaluation.mistakes(evaluation.results[-1])
    if not mistakes:
        return [table]
    wrong = Table(
        title=f"Mistakes of the tuned model ({min(_SHOWN, len(mistakes))} of {len(mistakes)})", title_justify="left"
    )
    for column in ("asked", "wanted", "got", "kind"):
        wrong.add_column(column, overflow="fold")
    for m in mistakes[:_SHOWN]:
        got = " ".join(describe_call(c) for c in m["got"]) or _shorten(m["raw"])
        wanted = " ".join(describe_call(c) for c in m["gold"]) or "no call"
        wrong.add_row(Text(m["query"]), Text(wanted), Text(got), m["error"])
    return [wrong, table]  # the result last, where the eye is when the program ends


def _shorten(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
