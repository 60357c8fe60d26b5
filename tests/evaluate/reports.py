"""Invented evaluations, judged and counted by the functions that do it in a real one; and a reader of report pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from fitcoach_tune import fitness
from fitcoach_tune.evaluate.metrics import Scored, measure
from fitcoach_tune.evaluate.page import render_page
from fitcoach_tune.evaluate.score import judge
from fitcoach_tune.evaluate.statistics import Comparison
from fitcoach_tune.functiongemma import TRIGGER, Call, render, render_call
from fitcoach_tune.gold import gold_of

TOOLS = fitness.tools()
Row = tuple[str, Sequence[Call], Mapping[str, str]]
"""What is asked, the calls that are wanted, and what each model says."""


def said(*calls: Call) -> str:
    return "".join(map(render_call, calls)) + "<start_function_response>"


def as_json(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def make_set(
    rows: Sequence[Row],
    name: str = "test",
    title: str = "Held-out rows",
    tools: Sequence[dict] = TOOLS,
    models: Sequence[str] = ("base", "tuned"),
    compare: bool = True,
    head: str = TRIGGER,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A set and its samples, judged and counted by the functions that do it in an evaluation."""
    declared = tuple(tool["function"]["name"] for tool in tools)
    prefix = render([{"role": "developer", "content": head}], tools)
    scored, samples = {model: [] for model in models}, []
    for i, (query, gold_calls, answers) in enumerate(rows):
        gold = gold_of(gold_calls, tools)
        for model in models:
            verdict = judge(answers[model], gold, tools)
            tokens, stopped = len(answers[model]) // 4 + 1, len(answers[model]) < 500
            seconds = 0.5 + i % 7 / 10
            scored[model].append(Scored(gold, verdict, declared, seconds, tokens, stopped))
            samples.append(
                {
                    "set": name,
                    "model": model,
                    "id": f"{name}/{i}",
                    "origin": f"rows.jsonl:{i + 1}",
                    "query": query,
                    "prompt": f"{prefix}<start_of_turn>user\n{query}<end_of_turn>\n<start_of_turn>model\n",
                    "tools": list(declared),
                    "gold": [as_json([call.call for call in answer]) for answer in gold.answers],
                    "raw": answers[model],
                    "calls": as_json(verdict.calls),
                    "text": verdict.text,
                    "right": verdict.right,
                    "error": verdict.error,
                    "detail": verdict.detail,
                    "seconds": seconds,
                    "tokens": tokens,
                    "stopped": stopped,
                }
            )
    right = {model: [row.verdict.right for row in rows] for model, rows in scored.items()}
    return {
        "name": name,
        "title": title,
        "description": "Rows that were not trained on.",
        "n": len(rows),
        "models": [
            {"name": model, "metrics": measure(rows, len(rows) / 2).as_dict()} for model, rows in scored.items()
        ],
        "comparison": comparison(name, right) if compare else None,
    }, samples


def comparison(name: str, right: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    base, tuned = right["base"], right["tuned"]
    ids = {
        change: [f"{name}/{i}" for i, pair in enumerate(zip(base, tuned, strict=True)) if pair == case]
        for change, case in (("worse", (True, False)), ("better", (False, True)))
    }
    return {"baseline": "base", "model": "tuned", **Comparison.of(base, tuned).as_dict(), **ids}


def make_report(*sets: tuple[dict[str, Any], list[dict[str, Any]]], gates: Sequence[dict] = ()) -> tuple[dict, list]:
    """`results` and `samples` of these sets, the main one first."""
    results = {
        "schema_version": 1,
        "finished": "2026-03-09T10:11:12+00:00",
        "versions": {"fitcoach_tune": "0.1.0", "transformers": "5.23.0", "torch": "2.9.0", "python": "3.11.2"},
        "adapter": {"name": "output/fitness-offline", "base": "offline", "sha256": "ab" * 32},
        "data": {"name": "output/prepared", "split": "test", "sha256": "cd" * 32},
        "settings": {
            "max_new_tokens": 128,
            "batch_size": 32,
            "strings": "exact",
            "seed": 42,
            "device": "x86_64 cpu, 2 threads",
            "dtype": "bf16",
        },
        "sets": [test_set for test_set, _ in sets],
        "gates": list(gates),
    }
    return results, [sample for _, samples in sets for sample in samples]


# ------------------------------------------------------------------------------------------------ invented answers

STEPS, HEART, SLEEP = Call("get_steps", {}), Call("get_heart_rate", {}), Call("get_sleeping_minutes", {})
WORDS = "I cannot help with that.<end_of_turn>"


def row(base: str, tuned: str, query: str = "How many steps?", gold: Sequence[Call] = (STEPS,)) -> Row:
    return query, gold, {"base": base, "tuned": tuned}


def eight_rows() -> list[Row]:
    """Tuned gets six right that base does not; base gets one right that tuned does not; both are wrong once."""
    rows = [row(WORDS, said(STEPS), f"Steps, please, number {i}") for i in range(6)]
    rows.append(row(WORDS, said(HEART), "How far did I walk?"))
    rows.append(row(said(STEPS), said(Call("get_sleep_metrics", {})), "How is my walking?"))
    return rows


def better(n: int) -> list[Row]:
    return [row(WORDS, said(STEPS)) for _ in range(n)]


class Reader(HTMLParser):
    """What a page holds: its elements, its visible text, the cells of its table rows, its links, its data."""

    VOID = frozenset({"meta", "link", "input", "img"})

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.hidden: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(page)
        self.close()
        self.text = squeeze(" ".join(self.words))

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in self.hidden:
            self.hidden[inside].append(data)
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = squeeze(f"{self.rows[-1][-1]} {data}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def links(self) -> list[str]:
        return [attributes["href"] for attributes in self.all("a")]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.hidden["script"][0])

    def row(self, beginning: str) -> list[str]:
        """The cells of the only table row whose first cell begins so, without that cell."""
        (found,) = [row for row in self.rows if row[0].startswith(beginning)]
        return found[1:]


def squeeze(text: str) -> str:
    return " ".join(text.split())


def read(*sets: tuple[dict, list], gates: Sequence[dict] = ()) -> Reader:
    found = Reader(render_page(*make_report(*sets, gates=gates)))
    assert found.open == []
    return found
