"""Makes the rows of the built-in dataset: each hand-written phrase once, put on the screen in one of many ways.

The phrases lie in `phrases/`, one a line. What the generator adds is what does not change a label: words before the
question, and how people write (casing, punctuation, slips, chat spelling, speech recognition). It needs the standard
library alone, and equal seeds give equal rows.

    python -m fitcoach_tune.fitness.generator > queries.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

DEVELOPER = "You are a model that can do function calling with the following functions"

FUNCTIONS = {
    "steps": "get_steps",
    "goal": "get_daily_step_goal",
    "progress": "get_step_goal_progress",
    "sleep": "get_sleeping_minutes",
    "active": "get_active_minutes",
    "heart": "get_heart_rate",
    "battery": "get_body_battery_level",
}
"""The functions by label, in the order in which the model is shown them."""

ANSWERS = {
    "other-day": "I can only see today and last night.",
    "not-measured": "I have no reading of that.",
    "action": "I can't do that, I can only read your fitness data.",
    "advice": "I can't advise on that, I can only read your fitness data.",
    "off-topic": "I can't help with that, I can only read your fitness data.",
    "chat": "Ask me about your steps, sleep, active minutes, heart rate or body battery.",
}
"""What the assistant says to a query that no function serves, by its kind."""

_PHRASES = Path(__file__).resolve().parent / "phrases"
_CHAT_SPELLING = {
    "you": "u", "your": "ur", "are": "r", "please": "pls", "thanks": "thx", "today": "2day", "tonight": "2nite",
    "have": "hav", "minutes": "mins", "because": "cos", "what": "wat", "want to": "wanna", "going to": "gonna",
    "got to": "gotta", "before": "b4", "though": "tho", "okay": "k", "people": "ppl", "and": "n", "to": "2", "for": "4",
}  # fmt: skip
_CHAT_WORD = re.compile(rf"\b({'|'.join(sorted(_CHAT_SPELLING, key=len, reverse=True))})\b", re.IGNORECASE)
_FILLERS = ("um", "uh", "er", "like", "you know", "hmm", "well", "ok so", "right so", "let me see")


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """Make the dataset.

    Returns:
        `{"id", "messages": [developer, user, assistant]}` rows in random order, one for each phrase. An id begins with
        the labels, after the language's code where it is not English: `steps-001`, `sleep+heart-004`,
        `de-battery-002`, `unserved:advice-017`.
    """
    rng = Random(seed)
    openers = [line for (line,) in _lines("openers")]
    numbers: dict[str, int] = {}
    made = []
    for kind, label, phrase in _phrases():
        query = _written(phrase, rng, openers if label in FUNCTIONS and kind == "en" else [])
        name = label if kind == "en" else f"{kind}-{label}"
        numbers[name] = numbers.get(name, 0) + 1
        made.append(row(f"{name}-{numbers[name]:03d}", label, query if kind == "en" else _bare(phrase, rng)))
    rng.shuffle(made)
    return made


def row(name: str, label: str, query: str) -> dict[str, Any]:
    """A row from its id, its label (`steps`, `sleep+heart`, `unserved:advice`) and what the user says."""
    if label.startswith("unserved:"):
        answer = {"role": "assistant", "content": ANSWERS[label.removeprefix("unserved:")]}
    else:
        names = [FUNCTIONS[part] for part in label.split("+")]
        calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in names]
        answer = {"role": "assistant", "tool_calls": calls}
    asked = [{"role": "developer", "content": DEVELOPER}, {"role": "user", "content": query}]
    return {"id": name, "messages": [*asked, answer]}


def _phrases() -> Iterator[tuple[str, str, str]]:
    """All phrases as (language, label, text)."""
    for label in FUNCTIONS:
        for (text,) in _lines(label):
            yield "en", label, text
    for label, text in _lines("parallel"):
        yield "en", label, text
    for kind, text in _lines("unserved"):
        yield "en", f"unserved:{kind}", text
    for language, label, text in _lines("languages"):
        yield language, label, text


def _lines(name: str) -> Iterator[list[str]]:
    for line in (_PHRASES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield line.split("\t")


# ------------------------------------------------------------------------------------------------ how it is written


def _written(text: str, rng: Random, openers: list[str]) -> str:
    """A phrase as somebody may write it. One that stands as it was typed in a hurry is left alone."""
    if text[0].islower():
        return text
    if openers and rng.random() < 0.15:
        text = _opened(text, rng.choice(openers))
    ways: list[tuple[float, Callable[[str, Random], str]]] = [
        (0.52, _as_it_is),
        (0.10, _without_end),
        (0.08, _lower),
        (0.08, _lower_without_marks),
        (0.10, _slipped),
        (0.06, _chatty),
        (0.04, _spoken),
        (0.02, _shouted),
    ]
    (way,) = rng.choices([way for _, way in ways], [share for share, _ in ways])
    return way(text, rng)


def _opened(text: str, opener: str) -> str:
    """Words before the question, which goes on in lower case after a comma or none."""
    continues = opener[-1] not in ".!?:"
    keeps_capital = re.match(r"(I|I'\w+|[A-Z]{2,}\w*)\b", text)
    return f"{opener} {text[0].lower() + text[1:] if continues and not keeps_capital else text}"


def _bare(text: str, rng: Random) -> str:
    """A phrase of another language: as it is, or without its last mark."""
    return text.rstrip("?.!？。！؟। ") if rng.random() < 0.3 else text


def _as_it_is(text: str, rng: Random) -> str:
    return text


def _without_end(text: str, rng: Random) -> str:
    return text.rstrip(".?! ")


def _lower(text: str, rng: Random) -> str:
    return text.lower()


def _lower_without_marks(text: str, rng: Random) -> str:
    return " ".join(re.sub(r"[.,](?!\d)|(?<!\d):|:(?!\d)|[?!;'’\"]", "", text.lower()).split())


def _slipped(text: str, rng: Random) -> str:
    """One slip for about every twenty letters: two swapped, one left out, or one doubled."""
    for _ in range(max(1, sum(map(str.isalpha, text)) // 20)):
        words = list(re.finditer(r"[A-Za-z]{4,}", text))
        if not words:
            break
        word = rng.choice(words)
        at = rng.randrange(word.start() + 1, word.end() - 1)
        here, following = text[at], text[at + 1]
        slip = rng.choice([following + here, following, here + here + following])
        text = text[:at] + slip + text[at + 2 :]
    return text


def _chatty(text: str, rng: Random) -> str:
    """Chat spelling, of each word that has one as likely as not, in lower case and without a last mark."""
    found = _CHAT_WORD.sub(lambda m: _CHAT_SPELLING[m[0].lower()] if rng.random() < 0.5 else m[0], text)
    return found.lower().rstrip(".?! ").replace("'", "")


def _spoken(text: str, rng: Random) -> str:
    """As speech recognition hears a person who thinks while speaking."""
    words = _lower_without_marks(text, rng).split()
    words.insert(rng.randrange(len(words)), rng.choice(_FILLERS))
    return " ".join(words)


def _shouted(text: str, rng: Random) -> str:
    return text.upper()


if __name__ == "__main__":
    for made in rows():
        sys.stdout.write(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")
