"""What a model card says of an evaluation: results.json in words and tables, and as the Hub's `model-index`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fitcoach_tune.evaluate.metrics import INVENTED, NO_CALL, UNPARSABLE
from fitcoach_tune.publish.markdown import lines, table

_MODELS = {
    "base": "base, untuned",
    "tuned": "**this model**",
    "tuned, constrained": "this model, held to valid calls",
}
_MEASURES = {
    "names": "right functions, where calls are wanted",
    "argument_precision": "arguments given that are right",
    "argument_recall": "arguments wanted that are given right",
    "called": "calls something, where it should",
    "silent": "calls nothing, where it should not",
    "valid_format": "can be parsed",
    "invented": "calls an undeclared function",
}
_MISTAKES = {
    "decoder_failed": "the answer cannot be parsed",
    "no_answer": "says nothing, where words are wanted",
    "invented_func_name": "calls a function that was not declared",
    "no_call": "calls nothing where it should",
    "unexpected_call": "calls something where it should not",
    "wrong_count": "makes more or fewer calls than wanted",
    "wrong_func_name": "calls another function than wanted",
    "missing_required": "leaves out a required argument",
    "missing_optional": "leaves out an optional argument that is wanted",
    "unexpected_param": "gives an argument that is not wanted",
    "type_error": "gives an argument of another type",
    "value_error": "gives an argument another value",
}
_INDEXED = {"exact": "Exact calls (function and every argument)", "names": "Right functions, where calls are wanted"}
_MOST_CONFUSED = 10
_NOT_EVALUATED = "It was **not evaluated** before it was published: nothing is known of how good it is."


def evaluation(record: dict[str, Any], results: dict[str, Any] | None) -> str:
    """Which rows were asked and how, and the figures with n and interval, this model beside its base."""
    if results is None:
        return _NOT_EVALUATED
    main = results["sets"][0]
    parts = [
        f"{_rows(record, results)} {_asked(results)}",
        _exact(main),
        *_comparison(main),
        _measures(main),
        _by_tool(main),
        *_harder(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _rows(record: dict[str, Any], results: dict[str, Any]) -> str:
    data, source, n = results["data"], record["data"]["source"]["name"], results["sets"][0]["n"]
    if knows_rows(record, results):
        return f"It was asked {n} questions of `{source}`, **some of which it was trained on: this flatters it.**"
    if not _is_own(record, results):
        return f"It was asked {n} questions of other data: `{data['name']}`."
    near = ", though near-duplicates of them may be among its training rows" * (record["config"]["split"] == "random")
    return f"It was asked {n} questions of the held-out rows of `{source}`, which it was not trained on{near}."


def _is_own(record: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether the rows are of the set that it was trained with."""
    return results["data"]["sha256"] == record["data"]["data_sha256"]


def knows_rows(record: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether it may have been trained on rows that were asked: those of its training set, or of what that was made
    from.
    """
    data, trained = results["data"], record["data"]
    if _is_own(record, results):
        return data["split"] != "test"
    return trained["source"]["sha256"] in (data["sha256"], data.get("source_sha256"))


def _asked(results: dict[str, Any]) -> str:
    settings = results["settings"]
    known = {"exact": "letter by letter", "normalised": "without regard to case and white space"}
    strings = known.get(settings["strings"], "as the Berkeley leaderboard does")
    held = (
        ", and was held to valid calls of the declared functions, which the code above does not do"
        * _is_constrained(results)
    )
    return (
        f"It answered greedily with at most {settings['max_new_tokens']} tokens, in {settings['dtype']} on "
        f"{settings['device']}{held}. An answer is exact if the function and every argument are right; strings are "
        f"compared {strings}. `results.json` has all of it."
    )


def _is_constrained(results: dict[str, Any]) -> bool:
    """Whether all models were held to valid calls, not one beside others."""
    return results["settings"].get("constrained") is True


def _exact(main: dict[str, Any]) -> str:
    rates = [(model["name"], model["metrics"]["exact"]) for model in main["models"]]
    rows = [(_MODELS.get(name, f"`{name}`"), r["right"], r["n"], _percent(r), _interval(r)) for name, r in rates]
    return table(("exact calls", "right", "n", "share", "95% interval"), rows, numbers=4)


def _comparison(main: dict[str, Any]) -> Iterator[str]:
    found = main["comparison"]
    if not found or found["difference"]["value"] is None:
        return
    difference, p = found["difference"], found["p_value"]
    against = "the untuned base" if found["baseline"] == "base" else f"`{found['baseline']}`"
    yield (
        f"Row by row against {against}: {found['only_model_right']} got better, "
        f"{found['only_baseline_right']} got worse; {100 * difference['value']:+.1f} points (95% interval "
        f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}), exact McNemar p "
        f"{'< 0.001' if p < 0.001 else f'= {p:.3f}'}. The intervals (Wilson's; Newcombe's for the difference) speak of "
        "the chance in which rows were asked, not of other training runs."
    )


def _measures(main: dict[str, Any]) -> str:
    every = [model["metrics"] for model in main["models"]]
    rows = [(text, *(_of(m[key]) for m in every)) for key, text in _MEASURES.items() if any(m[key]["n"] for m in every)]
    rows.append(("seconds to an answer in its batch, median", *(_seconds(m) for m in every)))
    names = [_MODELS.get(model["name"], f"`{model['name']}`") for model in main["models"]]
    return table(("", *names), rows, numbers=len(every))


def _by_tool(main: dict[str, Any]) -> str:
    rows = [
        (f"`{name}`", tool["recall"]["n"], tool["precision"]["n"], _of(tool["precision"]), _of(tool["recall"]))
        for name, tool in _tuned(main)["tools"].items()
    ]
    return table(("this model by function", "wanted", "called", "precision", "recall"), rows, numbers=4)


def _harder(results: dict[str, Any]) -> Iterator[str]:
    if len(results["sets"]) < 2:
        return
    names = [model["name"] for model in results["sets"][0]["models"]]
    rows = []
    for harder in results["sets"][1:]:
        rates = [model["metrics"]["exact"] for model in harder["models"]]
        rows.append((harder["title"], harder["n"], *(f"{_percent(rate)} ({_interval(rate)})" for rate in rates)))
    heads = [_MODELS.get(name, f"`{name}`") for name in names]
    yield "Harder sets, made from the same rows (exact calls, 95% interval):\n\n" + table(
        ("set", "n", *heads), rows, numbers=len(names) + 1
    )


def mistakes(results: dict[str, Any] | None) -> str:
    """What this model got wrong, by kind and by which function it took for which."""
    if results is None:
        return _NOT_EVALUATED
    main = results["sets"][0]
    metrics = _tuned(main)
    if not metrics["errors"]:
        most = 1 - metrics["exact"]["low"]
        return f"None was seen in {metrics['n']} questions, which a rate of up to {most:.1%} would make no surprise."
    told = [f"{_MISTAKES.get(kind, kind)}: {count} of {metrics['n']}" for kind, count in metrics["errors"].items()]
    confused = [c for c in metrics["confusion"] if c["wanted"] != c["called"]]
    confused.sort(key=lambda c: -c["count"])
    rows = [(_named(c["wanted"]), _named(c["called"]), c["count"]) for c in confused[:_MOST_CONFUSED]]
    parts = [lines(told)]
    if rows:
        parts.append(table(("wanted", "called instead", "times"), rows, numbers=1))
    if len(confused) > len(rows):
        parts.append(f"{len(confused) - len(rows)} further pairs are in `results.json`.")
    return "\n\n".join(parts)


def _named(name: str) -> str:
    return name if name in (NO_CALL, INVENTED, UNPARSABLE) else f"`{name}`"


def limits(results: dict[str, Any] | None) -> Iterator[str]:
    """What the evaluation leaves open."""
    if results is None:
        yield _NOT_EVALUATED
        return
    metrics = _tuned(results["sets"][0])
    if len(results["sets"]) > 1:
        return  # the harder sets measure what follows
    if not metrics["silent"]["n"]:
        yield "No question asks for something that no function serves, so what it does then was not measured."
    yield "Typing errors, other orders of the functions and functions left out were not measured."


def eval_results(record: dict[str, Any], results: dict[str, Any]) -> list[Any]:
    """This model's figures on the main set as the Hub's `model-index` has them."""
    from huggingface_hub import EvalResult

    main, source, data = results["sets"][0], record["data"]["source"], results["data"]
    own, known = _is_own(record, results), knows_rows(record, results)
    name = source["name"] if own or known else data["name"]
    part = "rows of the training data" if known else {"test": "held-out rows"}.get(data["split"], "all rows")
    how = {"constrained": True} if _is_constrained(results) else {}
    found = []
    for key, text in _INDEXED.items():
        rate = _tuned(main)[key]
        if rate["n"]:
            found.append(
                EvalResult(
                    task_type="text-generation",
                    task_name="Function calling",
                    dataset_type=name,
                    dataset_name=f"{name} ({part})",
                    dataset_revision=source["revision"] if name == source["name"] else None,
                    metric_type="accuracy",
                    metric_name=text,
                    metric_value=round(rate["value"], 4),
                    metric_args={"n": rate["n"], "low": round(rate["low"], 4), "high": round(rate["high"], 4)} | how,
                    verified=False,
                )
            )
    return found


def _tuned(main: dict[str, Any]) -> dict[str, Any]:
    return next(model["metrics"] for model in main["models"] if model["name"] == "tuned")


def _percent(rate: dict[str, Any]) -> str:
    return "–" if rate["value"] is None else f"{rate['value']:.1%}"


def _of(rate: dict[str, Any]) -> str:
    return f"{_percent(rate)} of {rate['n']}" if rate["n"] else "–"


def _interval(rate: dict[str, Any]) -> str:
    return f"{rate['low']:.1%} to {rate['high']:.1%}"


def _seconds(metrics: dict[str, Any]) -> str:
    p50 = metrics["latency_seconds"]["p50"]
    return "–" if p50 is None else f"{p50:.2f}"
