"""The rows of a prepared set as a dataset of the Hub: two Parquet files and a card, in one commit."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import hub
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import DataError, MismatchError
from fitcoach_tune.gold import gold_of
from fitcoach_tune.publish.markdown import table
from fitcoach_tune.publish.repository import File, Remote, Sent, Target
from fitcoach_tune.publish.selection import portable
from fitcoach_tune.publish.upload import Uploader

if TYPE_CHECKING:
    from fitcoach_tune.prepared_set import PreparedSet, PreparedSplit

_TEMPLATE = Path(__file__).with_name("dataset_card.jinja")
_TAG = "fitcoach-tune"
_FILES = {split: f"data/{split}-00000-of-00001.parquet" for split in ("train", "test")}
_CARD = "README.md"
# What an answer in words looks like among the acceptable ones; what it says does not matter.
_WORDS = "An answer in words."
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def push_rows(
    prepared: PreparedSet,
    repo_id: str,
    *,
    private: bool = False,
    ui: Console = SILENT,
    uploader: Uploader | None = None,
) -> Sent:
    """Publish the training and the held-out rows as the splits `train` and `test`.

    Raises:
        ConfigError: `repo_id` cannot be an id.
        DataError: a row accepts answers that a row of a dataset cannot state.
        MismatchError: there is a dataset of that name that this program did not make.
        AccessError: see `Uploader`.
    """
    hub.check_repo_id(repo_id, "--push-to-hub")
    target, uploader = Target(repo_id, kind="dataset", private=private), uploader or Uploader(ui)
    with tempfile.TemporaryDirectory(prefix="fitcoach-tune-push-") as name:
        folder = Path(name)
        sent = _stage(prepared, repo_id, folder)
        uploader.log_in(target)
        remote = uploader.look(target)
        if remote:
            _check_ours(target, remote)
        ui.note(f"publishing {len(prepared.train)} and {len(prepared.test)} rows as {target}")
        uploader.check_card(target, (folder / _CARD).read_text(encoding="utf-8"))
        removed = [path for path in _FILES.values() if not (folder / path).is_file()]
        return uploader.send(target, remote, sent, removed, "Rows prepared by fitcoach-tune")


def _check_ours(target: Target, remote: Remote) -> None:
    others = remote.hashes.keys() - {".gitattributes", _CARD}
    if others and _TAG not in (remote.card.get("tags") or []):
        raise MismatchError(
            "there is a dataset of that name that this program did not make",
            where=str(target),
            hint="choose another name",
        )


def _stage(prepared: PreparedSet, repo_id: str, folder: Path) -> list[File]:
    import pyarrow as pa
    from pyarrow import parquet

    (folder / "data").mkdir()
    splits = {"train": _rows(prepared.train), "test": _rows(prepared.test)}
    has_acceptable = any(row["acceptable_answers"] for rows in splits.values() for row in rows)
    names = ["messages", "tools", *(["acceptable_answers"] if has_acceptable else [])]
    schema = pa.schema([(name, pa.string()) for name in names])
    for split, rows in splits.items():
        if rows:
            parquet.write_table(pa.Table.from_pylist(rows, schema), folder / _FILES[split])
    present = {split: path for split, path in _FILES.items() if splits[split]}
    card = _card(prepared, repo_id, present, has_acceptable)
    (folder / _CARD).write_text(card, encoding="utf-8")
    return [File(path, folder / path) for path in (*present.values(), _CARD)]


def _rows(split: PreparedSplit) -> list[dict[str, str | None]]:
    return [as_row(split.example(index)) for index in range(len(split))]


def as_row(example: Example) -> dict[str, str | None]:
    """An example as JSON texts that `dataset.read_examples` reads back to an equal one.

    Raises:
        DataError: what it accepts is more than further answers can say (as rows of the Berkeley leaderboard do).
    """
    others = None
    if example.acceptable:
        answers = [[gold.call for gold in answer] for answer in example.acceptable.answers[1:]]
        if gold_of(example.gold, example.tools, answers) != example.acceptable:
            raise DataError(
                "what this row accepts cannot be stated as further answers",
                where=example.origin,
                hint="publish the file that it comes from",
            )
        calls = [[{"name": call.name, "arguments": call.arguments} for call in answer] for answer in answers]
        others = _text([answer or _WORDS for answer in calls])
    return {"messages": _text(example.messages), "tools": _text(example.tools), "acceptable_answers": others}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _card(prepared: PreparedSet, repo_id: str, present: dict[str, str], has_acceptable: bool) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    manifest = prepared.manifest
    rows, total = manifest["rows"], len(prepared.train) + len(prepared.test)
    data_files = [{"split": split, "path": path} for split, path in present.items()]
    data = DatasetCardData(
        task_categories=["text-generation"],
        size_categories=[next((text for most, text in _SIZES if total < most), "n>1M")],
        configs=[{"config_name": "default", "data_files": data_files}],
        tags=["function-calling", "tool-use", _TAG],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=repo_id.split("/")[1],
        repo_id=repo_id,
        acceptable=has_acceptable,
        summary=f"{total} conversations in which a person says something and an assistant calls a function, or answers "
        f"in words. {_toolset_text(prepared.toolsets)}",
        tools=_tools(prepared.toolsets),
        rows=f"`train` has {rows['train']} rows, `test` {rows['test']} that are held out. {_split_text(manifest)}",
        origin=_origin(manifest),
    )
    head, mark, body = str(card).partition("\n---\n")
    body = re.sub(r"(\|\n)\n+(?=\|)", r"\1", body)
    return head + mark + re.sub(r"\n{3,}", "\n\n", body).rstrip() + "\n"


def _toolset_text(toolsets: Sequence[list[dict]]) -> str:
    if len(toolsets) > 1:
        return f"The rows declare {len(toolsets)} different sets of functions."
    return "All rows declare these functions:"


def _tools(toolsets: Sequence[list[dict]]) -> str:
    if len(toolsets) > 1:
        return ""
    functions = [tool["function"] for tool in toolsets[0]]
    return table(("function", "what it does"), [(f"`{f['name']}`", f.get("description", "")) for f in functions])


def _split_text(manifest: dict[str, Any]) -> str:
    report, settings = manifest["split"], manifest["settings"]
    how = "near-duplicate questions stay on one side" if settings["split"] == "grouped" else "drawn at random"
    text = f"The split is by seed {settings['seed']}: {how}."
    if report["groups_on_both_sides"]:
        text += f" {report['groups_on_both_sides']} questions stand (nearly) equal on both sides all the same."
    return text


def _origin(manifest: dict[str, Any]) -> str:
    source, rows = manifest["source"], manifest["rows"]
    where = f"`{portable(source['name'])}` (SHA-256 `{source['sha256']}`)"
    if source["revision"]:
        where = f"[{source['name']}](https://huggingface.co/datasets/{source['name']}) at commit `{source['revision']}`"
    dropped = f"; {rows['dropped']} of {rows['read']} were left out as too long" if rows["dropped"] else ""
    version = manifest["versions"]["fitcoach_tune"]
    return f"{where}, read, checked and brought to one form by fitcoach-tune {version}{dropped}."
