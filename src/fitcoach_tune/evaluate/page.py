"""The report of an evaluation as one HTML file that needs nothing else: the verdict, all figures, and every answer."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fitcoach_tune.evaluate import pictures
from fitcoach_tune.evaluate.metrics import INVENTED, NO_CALL, UNPARSABLE
from fitcoach_tune.evaluate.pictures import Mark, percent, signed
from fitcoach_tune.evaluate.score import ERRORS
from fitcoach_tune.functiongemma import CONTROL_TOKENS, START_OF_TURN

_HERE = Path(__file__).parent
_CHANCE = 0.05  # below this p, a difference is not called chance
_MATRIX_TOOLS = 20
_LISTED = 4
_SPECIAL = (NO_CALL, INVENTED, UNPARSABLE)


@dataclass(frozen=True)
class Verdict:
    """What the report says first.

    Attributes:
        tone: `better`, `worse`, `unsure`, or `alone` where nothing is compared.
        headline: a few words; sentence: the figures behind them.
    """

    tone: str
    headline: str
    sentence: str


def render_page(results: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    """The report as an HTML page that loads nothing.

    Args:
        results: what `results.json` holds; its first set is the main one.
        samples: what `samples.jsonl` holds, a line each.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    main = results["sets"][0]
    model = _main_model(main)
    inks = _inks(results["sets"], model["name"])
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "signed": signed, "interval": _interval, "p": _p}
    page = environment.get_template("report.html.j2").render(
        results=results,
        main=main,
        model=model,
        inks=inks,
        verdict=verdict(main),
        changes=_changes(main, samples),
        kinds=_kinds(model),
        special=_SPECIAL,
        confused=_confused(model["metrics"]),
        matrix=_matrix(model["metrics"]),
        drawn=min(len(model["metrics"]["tools"]), _MATRIX_TOOLS),
        tools=_worst_first(model["metrics"]["tools"]),
        errors=ERRORS,
        occurring=[kind for kind in ERRORS if any(kind in m["metrics"]["errors"] for m in main["models"])],
        chance=_CHANCE,
        listed=_LISTED,
        link=_link,
        exact={s["name"]: {m["name"]: m["metrics"]["exact"] for m in s["models"]} for s in results["sets"]},
        pictures=_pictures(results["sets"], model, inks),
        styles=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(_safe_json(_data(results, samples, model["name"]))),
    )
    # Half of a surrogate pair, which JSON may carry, cannot be written as UTF-8.
    return re.sub("[\ud800-\udfff]", "\ufffd", page)


def verdict(test_set: Mapping[str, Any]) -> Verdict:
    """What a set says of its main model, in words."""
    model, comparison = _main_model(test_set), test_set["comparison"]
    name, rate = model["name"], model["metrics"]["exact"]
    title = test_set["title"]
    rows = f"{rate['n']} {title[:1].lower()}{title[1:]}" if title.endswith(" rows") else f"{rate['n']} rows"
    if not rate["n"]:
        return Verdict("alone", "No rows were asked.", f"There is nothing to tell about {name}.")
    found = f"{name} gets {percent(rate['value'])} of {rows} exactly right (95% interval {_interval(rate)})"
    if comparison is None:
        return Verdict("alone", f"{name} gets {percent(rate['value'])} exactly right.", f"{found}.")
    other = comparison["baseline"]
    baseline = _named(test_set, other)["metrics"]["exact"]
    both = f"{found}, {other} {percent(baseline['value'])} ({_interval(baseline)})"
    if not comparison["only_baseline_right"] + comparison["only_model_right"]:
        headline = f"{name} and {other} are right on the same rows."
        return Verdict("unsure", headline, f"{both}; there is no row on which one is right and the other wrong.")
    difference, chance = comparison["difference"], _p(comparison["p_value"])
    told = f"{both}; the difference of {signed(difference['value'])} points ({_interval(difference, signed)})"
    if comparison["p_value"] >= _CHANCE:
        headline = f"{rate['n']} rows cannot tell {name} from {other}."
        sentence = f"{told} cannot be told from chance with {rate['n']} rows (exact McNemar {chance})."
        return Verdict("unsure", headline, sentence)
    tone = "better" if difference["value"] > 0 else "worse"
    headline = f"{name} is {tone} than {other} by {100 * abs(difference['value']):.1f} points."
    return Verdict(tone, headline, f"{told} is not chance (exact McNemar {chance}).")


def _main_model(test_set: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model that the report is about: the compared one, else `tuned`, else the last."""
    wanted = test_set["comparison"]["model"] if test_set["comparison"] else "tuned"
    return next((m for m in test_set["models"] if m["name"] == wanted), test_set["models"][-1])


def _named(test_set: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(model for model in test_set["models"] if model["name"] == name)


def _inks(sets: Sequence[Mapping[str, Any]], main: str) -> dict[str, str]:
    """For each model's name the colour in which it is drawn."""
    comparison = sets[0]["comparison"]
    found = {main: "main"} | ({comparison["baseline"]: "base"} if comparison else {})
    others = cycle(("third", "fourth"))
    names = [model["name"] for test_set in sets for model in test_set["models"]]
    for name in names:
        found[name] = found.get(name) or next(others)
    return {name: found[name] for name in names}


def _interval(rate: Mapping[str, Any], shown: Any = None) -> str:
    low, high = ((shown or (lambda share: f"{100 * share:.1f}"))(rate[end]) for end in ("low", "high"))
    return f"{low} to {high}"


def _p(value: float) -> str:
    told = "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
    return told.replace(" ", "\N{NO-BREAK SPACE}")


def _link(**state: str) -> str:
    """A link to the answers that pass these filters; what is not named stays as the page opens."""
    return f"#{urlencode(state)}"


def _changes(test_set: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """The rows that got worse and better, with what was asked."""
    comparison = test_set["comparison"] or {"worse": [], "better": []}
    queries = {sample["id"]: sample["query"] for sample in samples if sample["set"] == test_set["name"]}
    return {
        change: [{"id": i, "query": queries.get(i, i), "link": _link(id=i, error="any")} for i in comparison[change]]
        for change in ("worse", "better")
    }


def _kinds(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its kinds of mistakes, most frequent first."""
    return [
        {"key": key, "text": ERRORS[key], "count": count, "link": _link(error=key)}
        for key, count in model["metrics"]["errors"].items()
    ]


def _confused(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of the confusion matrix off its diagonal, fullest first."""
    cells = sorted(metrics["confusion"], key=lambda c: (-c["count"], c["wanted"], c["called"]))
    return [c | {"link": _cell_link(c["wanted"], c["called"])} for c in cells if c["wanted"] != c["called"]]


def _cell_link(wanted: str, called: str) -> str:
    return _link(wanted=wanted, called=called)


def _matrix(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """The rows (`wanted`) and columns (`called`) that are drawn: of many tools, those with most mistakes."""
    mistakes, named = Counter(), {c[end] for c in metrics["confusion"] for end in ("wanted", "called")}
    for cell in metrics["confusion"]:
        if cell["wanted"] != cell["called"]:
            mistakes.update({cell["wanted"]: cell["count"], cell["called"]: cell["count"]})
    names = list(metrics["tools"])
    if len(names) > _MATRIX_TOOLS:
        often = {name: tool["recall"]["n"] for name, tool in metrics["tools"].items()}
        names = sorted(sorted(names, key=lambda name: (-mistakes[name], -often[name]))[:_MATRIX_TOOLS])
    wanted = {c["wanted"] for c in metrics["confusion"]}
    return {
        "wanted": names + [NO_CALL] * (NO_CALL in wanted),
        "called": names + [name for name in _SPECIAL if name in named],
    }


def _worst_first(tools: Mapping[str, Any]) -> dict[str, Any]:
    """By F1, and the tools that have none last."""
    return dict(sorted(tools.items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0)))


def _pictures(sets: Sequence[Mapping[str, Any]], model: Mapping[str, Any], inks: Mapping[str, str]) -> dict[str, Any]:
    """Every picture as markup; None where there is nothing to draw."""
    from markupsafe import Markup

    def marks(test_set: Mapping[str, Any]) -> list[Mark]:
        rates = ((m["name"], m["metrics"]["exact"]) for m in test_set["models"])
        return [Mark(name, rate["value"], rate["low"], rate["high"], inks[name]) for name, rate in rates]

    main, metrics, matrix = sets[0], model["metrics"], _matrix(model["metrics"])
    difference = (main["comparison"] or {}).get("difference", {"value": None})
    tone = {"better": "good", "worse": "bad"}.get(verdict(main).tone, "muted")
    cells = {(cell["wanted"], cell["called"]): cell["count"] for cell in metrics["confusion"]}
    some = any(tool["f1"] is not None for tool in metrics["tools"].values())
    return {
        "intervals": Markup(pictures.intervals(marks(main))),
        "difference": Markup(pictures.difference(**difference, ink=tone)) if difference["value"] is not None else None,
        "strips": {test_set["name"]: Markup(pictures.strip(marks(test_set))) for test_set in sets},
        "confusion": Markup(pictures.confusion(cells, **matrix, link=_cell_link)) if cells else None,
        "tools": Markup(pictures.tools(_worst_first(metrics["tools"]))) if some else None,
    }


def _data(results: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], main: str) -> dict[str, Any]:
    """What the page's script shows: rows, which models share, and answers, with the beginnings of prompts only once."""
    heads, toolsets, rows, answers = {}, {}, {}, []
    for sample in samples:
        key = (sample["set"], sample["id"])
        if key not in rows:
            head, mark, tail = sample["prompt"].rpartition(f"{START_OF_TURN}user")
            rows[key] = (
                len(rows),
                {
                    **{name: sample[name] for name in ("set", "id", "query", "origin")},
                    "head": heads.setdefault(head, len(heads)),
                    "tail": mark + tail,
                    "tools": toolsets.setdefault(tuple(sample["tools"]), len(toolsets)),
                    "gold": [[_shown(call) for call in answer] for answer in sample["gold"]],
                },
            )
        names = ("model", "raw", "right", "error", "detail", "seconds", "tokens", "stopped")
        found = {"row": rows[key][0], "calls": [_shown(call) for call in sample["calls"]], "says": bool(sample["text"])}
        answers.append({name: sample[name] for name in names} | found)
    compared = {s["name"]: s["comparison"] for s in results["sets"] if s["comparison"]}
    return {
        "main": {"set": results["sets"][0]["name"], "model": main},
        "sets": [[s["name"], s["title"]] for s in results["sets"]],
        "errors": ERRORS,
        "changes": {name: {change: c[change] for change in ("worse", "better")} for name, c in compared.items()},
        "control": list(CONTROL_TOKENS),
        "cells": {"none": NO_CALL, "invented": INVENTED, "unparsable": UNPARSABLE},
        "heads": list(heads),
        "toolsets": list(toolsets),
        "rows": [row for _, row in rows.values()],
        "answers": answers,
    }


def _shown(call: Mapping[str, Any]) -> list[str]:
    """[name, arguments] as they are read; a script would lose the last digits of long numbers, and 1.0."""
    arguments = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call["arguments"].items())
    return [call["name"], ", ".join(arguments)]


def _safe_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
