"""Small rows for the tests of the harder sets."""

from __future__ import annotations

from fitcoach_tune.evaluate.hard import HardSet, hard_sets
from fitcoach_tune.evaluate.turns import Turn
from fitcoach_tune.functiongemma import TRIGGER, Call
from fitcoach_tune.gold import Gold, gold_of

NAMES = ["tool-order", "distractors", "gold-removed", "renamed", "typos", "casing", "unserved"]
SILENT = Gold(((),))


def tool(name: str, description: str = "", **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


STEPS = tool("get_steps", "Steps of the day.")
SLEEP = tool("get_sleep", "Sleep of the last days. See also get_steps.", days={"type": "integer"})
LOG = tool("log_meal", "Write down a meal.", meal={"type": "string", "description": "As in get_sleep."})
TOOLS = [STEPS, SLEEP, LOG]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def calling(*calls: tuple[str, dict]) -> dict:
    entries = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {**says(""), "tool_calls": entries}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def result(name: str, content) -> dict:
    return {"role": "tool", "name": name, "content": content}


def turn(query: str, *calls: tuple[str, dict], tools=TOOLS, before=(), after=(), origin="rows.jsonl:1") -> Turn:
    messages = [{"role": "developer", "content": TRIGGER}, *before, user(query), *after]
    return Turn(messages, tools, gold_of([Call(*call) for call in calls], tools), origin)


def made(name: str, *turns: Turn, seed: int = 0) -> HardSet | None:
    return next((found for found in hard_sets(turns, seed) if found.name == name), None)


def only(name: str, given: Turn, seed: int = 0) -> Turn:
    (derived,) = made(name, given, seed=seed).turns
    return derived
