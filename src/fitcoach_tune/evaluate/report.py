"""An evaluation as people read it in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fitcoach_tune.console import printable
from fitcoach_tune.evaluate.metrics import INVENTED, NO_CALL, UNPARSABLE, Metrics
from fitcoach_tune.evaluate.statistics import Rate
from fitcoach_tune.functiongemma import Call
from fitcoach_tune.infer import describe_call

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fitcoach_tune.evaluate.evaluation import Evaluation
    from fitcoach_tune.evaluate.results import SetResult

_SHOWN, _CHANGES = 10, 3
# A wider confusion matrix does not fit a terminal; the page has it.
_MOST_COLUMNS = 12
MEASURES: dict[str, Callable[[Metrics], Rate]] = {
    "right functions, where calls are wanted": lambda m: m.names,
    "arguments given that are right": lambda m: m.argument_precision,
    "arguments wanted that are given right": lambda m: m.argument_recall,
    "calls something, where it should": lambda m: m.called,
    "calls nothing, where it should not": lambda m: m.silent,
    "can be parsed": lambda m: m.valid_format,
    "calls an undeclared function": lambda m: m.invented,
    "wrong number of calls": lambda m: m.wrong_count,
    "reached the token limit": lambda m: m.unstopped,
}


def as_tables(evaluation: Evaluation) -> list[RenderableType]:
    """What the terminal shows; what matters most comes last, where the eye is when the program ends."""
    main = evaluation.sets[0]
    metrics = main.of("tuned").metrics
    parts = [*_mistakes(main), *_confusion(metrics), _tools(metrics), _measures(main)]
    if len(evaluation.sets) > 1:
        parts.append(_hard(evaluation))
    return [*parts, _exact(main), *_words(evaluation)]


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _text(value: str) -> Any:
    from rich.text import Text

    return Text(printable(value))  # what people and models say may look like markup, or like a terminal's commands


def _exact(main: SetResult) -> Any:
    title = f"Exact calls (name and arguments): {main.asked.title.lower()}"
    table = _table(title, "model", "right", "n", "accuracy", "95% interval", "mistakes by kind")
    table.columns[-1].justify = "left"
    for model in main.models:
        rate = model.metrics.exact
        kinds = ", ".join(f"{kind} {count}" for kind, count in model.metrics.errors.items())
        table.add_row(_text(model.name), str(rate.right), str(rate.n), _percent(rate), _interval(rate), kinds)
    return table


def _measures(main: SetResult) -> Any:
    table = _table("Measures", "share of", *(model.name for model in main.models))
    for name, rate_of in MEASURES.items():
        rates = [rate_of(model.metrics) for model in main.models]
        table.add_row(name, *(f"{_percent(rate)} of {rate.n}" if rate.n else "–" for rate in rates))
    every = [model.metrics for model in main.models]
    table.add_row("seconds to an answer, in its batch: p50, p95", *map(_seconds, every))
    table.add_row("tokens a second", *(f"{m.tokens_per_second:.0f}" if m.tokens_per_second else "–" for m in every))
    return table


def _seconds(metrics: Metrics) -> str:
    if metrics.seconds_p50 is None:
        return "–"
    return f"{metrics.seconds_p50:.2f}, {metrics.seconds_p95:.2f}"


def _tools(metrics: Metrics) -> Any:
    table = _table("The tuned model by tool", "tool", "wanted", "called", "precision", "recall", "F1")
    for name, tool in metrics.tools.items():
        f1 = f"{tool.f1:.2f}" if tool.made + tool.wanted else "–"
        table.add_row(
            _text(name), str(tool.wanted), str(tool.made), _percent(tool.precision), _percent(tool.recall), f1
        )
    return table


def _confusion(metrics: Metrics) -> Iterator[Any]:
    """Wanted by called. Columns are numbered, since names do not fit."""
    wanted = sorted({row for row, _ in metrics.confusion} - {NO_CALL})
    names = sorted({*metrics.tools, *wanted})
    if not 0 < len(names) <= _MOST_COLUMNS:
        return
    columns = [*names, NO_CALL, INVENTED, UNPARSABLE]
    heads = [str(i) for i in range(1, len(names) + 1)] + columns[len(names) :]
    table = _table("Wanted (rows) and called (columns) by the tuned model", "wanted", *heads)
    for row in [*names, NO_CALL]:
        number = f"{names.index(row) + 1} " if row in names else ""
        counts = [metrics.confusion.get((row, column), 0) for column in columns]
        if any(counts):
            table.add_row(_text(number + row), *(str(count) if count else "·" for count in counts))
    yield table


def _hard(evaluation: Evaluation) -> Any:
    names = [model.name for model in evaluation.sets[0].models]
    table = _table("Exact calls on harder sets (95% interval)", "set", "n", *names)
    for result in evaluation.sets[1:]:
        rates = [model.metrics.exact for model in result.models]
        cells = [f"{_percent(rate)} ({_interval(rate)})" for rate in rates]
        table.add_row(result.asked.title, str(len(result.asked.turns)), *cells)
    return table


def _mistakes(main: SetResult) -> Iterator[Any]:
    tuned = main.of("tuned")
    wrong = [i for i, verdict in enumerate(tuned.verdicts) if not verdict.right]
    if not wrong:
        return
    common = tuned.metrics.errors
    wrong.sort(key=lambda i: -common[tuned.verdicts[i].error])
    title = f"Mistakes of the tuned model ({min(_SHOWN, len(wrong))} of {len(wrong)})"
    table = _table(title, "asked", "wanted", "got", "kind")
    for column in table.columns:
        column.justify = "left"
    for i in wrong[:_SHOWN]:
        turn, verdict = main.asked.turns[i], tuned.verdicts[i]
        got = _calls(verdict.calls) or _shorten(tuned.answers[i].raw)
        table.add_row(_text(turn.query), _text(_calls(turn.gold.calls) or "no call"), _text(got), verdict.error)
    yield table


def _words(evaluation: Evaluation) -> Iterator[Any]:
    if evaluation.baseline:
        found = evaluation.sets[0].compare(evaluation.baseline, "tuned")
        low, high = found.interval
        p = found.p_value
        yield _text(
            f"Against {evaluation.baseline}: {found.only_second} rows got better and {found.only_first} got worse. "
            f"Difference {100 * found.difference:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}), "
            f"exact McNemar p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}, n = {found.n}."
        )
        yield from _changes(evaluation.sets[0], evaluation.baseline)
    for gate in evaluation.gates:
        yield _text(f"{gate.flag} {'passed' if gate.passed else 'FAILED'}: {gate.text}")


def _changes(main: SetResult, baseline: str) -> Iterator[Any]:
    """The rows that got worse and better, the first few by what was asked."""
    pairs = zip(main.asked.turns, main.of(baseline).verdicts, main.of("tuned").verdicts, strict=True)
    changed = [(turn.query, before.right, after.right) for turn, before, after in pairs if before.right != after.right]
    for title, better in (("Got worse", False), ("Got better", True)):
        queries = [_shorten(query) for query, _, after in changed if after == better]
        if queries:
            more = f" and {len(queries) - _CHANGES} more" if len(queries) > _CHANGES else ""
            yield _text(f"{title}: {' | '.join(queries[:_CHANGES])}{more}")


def _percent(rate: Rate) -> str:
    return f"{rate.value:.1%}" if rate.n else "–"


def _interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{low:.1%} to {high:.1%}"


def _calls(calls: tuple[Call, ...]) -> str:
    return " ".join(map(describe_call, calls))


def _shorten(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
