"""What an evaluation asks: rows of a prepared set or of any source, as prompts, and the harder sets made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitcoach_tune import dataset, prepared_set, reading, rendering, runs
from fitcoach_tune.console import Console
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import ConfigError, DataError, MismatchError
from fitcoach_tune.evaluate.results import QuestionSet
from fitcoach_tune.evaluate.turns import Turn, turns_of

if TYPE_CHECKING:
    from fitcoach_tune.prepared_set import PreparedSet
    from fitcoach_tune.tokenizer import AnyTokenizer

_TITLES = {"test": "Held-out rows", "train": "Training rows", "all": "All rows"}
_TOKENIZED_AT_ONCE = 1000


@dataclass(frozen=True)
class Rows:
    """Examples to ask, and where they come from.

    Attributes:
        name: of the prepared set's folder, or of the source.
        split: `test`, `train` or `all`.
        sha256: of the data; source_sha256: of what they were prepared from, if they were, else the same.
        chat_template: that they were prepared with; None if they were not.
    """

    name: str
    split: str
    sha256: str
    source_sha256: str
    examples: list[Example]
    chat_template: str | None


def read_rows(run: runs.Run, data: str | None, split: str | None, ui: Console) -> Rows:
    """The rows to ask: of a prepared set (by default the one that the adapter was trained with), or of any source.

    Raises:
        MismatchError: the set is damaged, or the adapter was trained with another one.
        ConfigError: the split has no rows, or the source has no splits.
        DataError, AccessError: see `dataset.read_examples`.
    """
    if data is not None and not (reading.user_path(data, "--data") / prepared_set.MANIFEST).is_file():
        return _read_source(run, data, split, ui)
    prepared, split = _matching_set(run, data), split or "test"
    parts = [getattr(prepared, part) for part in (("train", "test") if split == "all" else (split,))]
    examples = [part.example(i) for part in parts for i in range(len(part))]
    if not examples:
        raise ConfigError("the split has no rows", where=f"--split {split}", hint="prepare with a larger --test-size")
    manifest = prepared.manifest
    hashes = manifest["data_sha256"], manifest["source"]["sha256"]
    if run.record.get("data", {}).get("data_sha256") != hashes[0]:
        _warn_of_trained(run, hashes[1], ui)
    return Rows(str(prepared.path), split, *hashes, examples, prepared.chat_template)


def _read_source(run: runs.Run, data: str, split: str | None, ui: Console) -> Rows:
    if split not in (None, "all"):
        what, hint = "these rows are not a prepared set, and have no splits", "leave it out; all rows are asked"
        raise ConfigError(what, where=f"--split {split}", hint=hint)
    tools = run.prompt()["tools"] if (run.path / runs.PROMPT_NAME).is_file() else None
    examples, source = dataset.read_examples(data, tools=tools)
    dataset.validate(examples)
    for note in source.notes:
        ui.warn(note)
    _warn_of_trained(run, source.sha256, ui)
    return Rows(data, "all", source.sha256, source.sha256, examples, None)


def _warn_of_trained(run: runs.Run, source_sha256: str, ui: Console) -> None:
    if source_sha256 == run.record.get("data", {"source": {}})["source"].get("sha256"):
        ui.warn("the adapter was trained on a part of these rows")


def _matching_set(run: runs.Run, data: str | None) -> PreparedSet:
    recorded = run.record.get("data")
    if data is None and not recorded:
        raise MismatchError("the adapter does not say what it was trained on", where=str(run.path), hint="give --data")
    prepared = prepared_set.open_set(reading.user_path(data, "--data") if data else Path(recorded["path"]))
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


def question_sets(rows: Rows, tokenizer: AnyTokenizer, room: int, hard_seed: int | None) -> list[QuestionSet]:
    """The rows as prompts, and unless `hard_seed` is None the harder sets made from them.

    Args:
        room: most tokens of a prompt.

    Raises:
        DataError: a prompt is longer.
    """
    turns = [turn for example in rows.examples for turn in turns_of(example)]
    description = f"The rows of {rows.name}, as they are."
    found = [_as_prompts(rows.split, _TITLES[rows.split], description, turns, tokenizer, room)]
    if hard_seed is not None:
        from fitcoach_tune.evaluate.hard import hard_sets

        for made in hard_sets(turns, hard_seed):
            name = f"hard/{made.name}"
            found.append(_as_prompts(name, made.title, made.description, made.turns, tokenizer, room))
    return found


def _as_prompts(
    name: str, title: str, description: str, turns: Sequence[Turn], tokenizer: AnyTokenizer, room: int
) -> QuestionSet:
    render, prompts = rendering.make_renderer(tokenizer), []
    texts = [render(turn.messages, turn.tools, add_generation_prompt=True) for turn in turns]
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        part = texts[start : start + _TOKENIZED_AT_ONCE]
        prompts += tokenizer(part, add_special_tokens=False)["input_ids"]
    for turn, prompt in zip(turns, prompts, strict=True):
        if len(prompt) > room:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, and {room} fit before an answer",
                where=turn.origin,
                hint="shorten the row, or lower --max-new-tokens",
            )
    return QuestionSet(name, title, description, list(turns), texts, prompts)
