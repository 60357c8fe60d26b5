"""The prepare verb: examples and a tokenizer in, a prepared set out. What is trained is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fitcoach_tune import __version__, dataset, files, functiongemma, models, rendering, splits
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import ConfigError, DataError, OutputError
from fitcoach_tune.prepared_set import FORMAT, MANIFEST, PreparedRow, PreparedSet, open_set, versions, write_set
from fitcoach_tune.training.batches import TokenizedRow, common_length


def fit_length(rows: list[PreparedRow], max_length: int, excess: str, examples: Sequence[Example]) -> list[PreparedRow]:
    """Apply `excess_length` to the rows that are longer than `max_length` tokens.

    `truncate` keeps the turns from the start that fit whole: a call is never cut, and a row of which no answer fits is
    dropped.

    Raises:
        DataError: there are longer rows and `excess` is `error`, or none is left.
    """
    longer = [row for row in rows if len(row.input_ids) > max_length]
    if not longer:
        return rows
    if excess == "error":
        lengths = np.array([len(row.input_ids) for row in rows])
        p50, p95 = np.percentile(lengths, [50, 95])
        raise DataError(
            f"{len(longer)} of {len(rows)} rows are longer than {max_length} tokens "
            f"(p50 {p50:.0f}, p95 {p95:.0f}, max {lengths.max()})",
            where="--max-length",
            details=[f"{examples[row.example].origin}: {len(row.input_ids)} tokens" for row in longer[:10]],
            hint=f"--max-length {lengths.max()} keeps all; --excess-length drop or truncate shortens the set",
        )
    kept = []
    for row in rows:
        if len(row.input_ids) <= max_length:
            kept.append(row)
        elif excess == "truncate" and (spans := tuple(s for s in row.spans if s[1] <= max_length)):
            kept.append(PreparedRow(row.input_ids[: spans[-1][1]], spans, row.example))
    if not kept:
        raise DataError("no row is left", where="--max-length", hint="allow longer rows")
    return kept


def cut(example: Example, answers: int) -> Example:
    """A conversation up to its `answers`-th assistant message; what is acceptable concerns the last one alone."""
    ends = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    if answers == len(ends):
        return example
    return replace(example, messages=example.messages[: ends[answers - 1] + 1], acceptable=None)


def common_prefix(rows: Sequence[TokenizedRow]) -> int:
    """Length of the longest common token prefix that leaves every row a prompt token before its first supervised
    one.
    """
    return common_length((row.input_ids for row in rows), min(row.spans[0][0] for row in rows) - 1)


# ---------------------------------------------------------------------------------------------------- the verb


def prepared_path(config: Config) -> Path:
    """Where the configured set is, or is to be made: the named folder, else one for each combination of the settings
    that shape it.
    """
    if config.data:
        return Path(config.data)
    slug = "".join(c if c.isalnum() else "-" for c in Path(config.dataset).stem.lower()).strip("-") or "set"
    return Path("output/prepared") / f"{slug}-{files.sha256_json(_settings(config))[:8]}"


def _settings(config: Config) -> dict[str, Any]:
    names = ("model", "model_revision", "dataset", "revision", "tools")
    shape = ("max_length", "excess_length", "test_size", "split", "seed")
    return config.model_dump(mode="json", include={*names, *shape})


def prepare(config: Config, ui: Console = SILENT, target: Path | None = None) -> PreparedSet:
    """Read, check, render, tokenize, split and write.

    Args:
        target: where to; by default `prepared_path`. An older set there is replaced when the new one is complete.

    Raises:
        DataError, AccessError, ConfigError, OutputError: see the functions that this calls.
    """
    target = target or prepared_path(config)
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError("it exists and is not a prepared set", where=str(target), hint="choose another --output-dir")
    ui.note(f"reading {config.dataset}")
    tools = dataset.read_tools(config.tools) if config.tools else None
    examples, source = dataset.read_examples(config.dataset, tools=tools, revision=config.revision)
    dataset.validate(examples)
    base = models.resolve(config.model, config.model_revision, ui)
    tokenizer = models.load_tokenizer(base.path)
    with ui.bar("tokenizing", len(examples)) as update:
        rows = []
        for row in rendering.tokenize(examples, tokenizer):
            rows.append(row)
            if len(rows) % 100 == 0 or len(rows) == len(examples):
                update(len(rows))
    kept = fit_length(rows, config.max_length, config.excess_length, examples)
    examples = [cut(examples[row.example], len(row.spans)) for row in kept]
    kept = [replace(row, example=i) for i, row in enumerate(kept)]
    parts, report = splits.split(examples, config.split, config.test_size, config.seed)
    if not len(parts[0]):
        raise ConfigError("no row is left to train on", where="--test-size", hint="hold out less, or bring more rows")
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "source": {
            "name": source.name,
            "revision": source.revision,
            "sha256": source.sha256,
            "tools_sha256": _tools_hash(tools),
            "notes": source.notes,
        },
        "settings": _settings(config),
        "model": {
            "name": base.reference if base.name != models.OFFLINE else base.name,
            "revision": base.revision,
            "tokenizer_sha256": models.tokenizer_hash(base.path),
            "template": "project" if rendering.uses_project_template(tokenizer) else "model",
        },
        "rows": {"read": len(rows), "dropped": len(rows) - len(kept), "train": len(parts[0]), "test": len(parts[1])},
        "tokens": _token_counts(kept),
        "prefix": {
            "tokens": (size := common_prefix(kept)),
            "sha256": files.sha256_json(kept[0].input_ids[:size].tolist()),
        },
        "split": report,
    }
    developers = {developer_text(e) for e in examples}
    manifest["developer"] = developers.pop() if len(developers) == 1 else None
    template = tokenizer.chat_template or functiongemma.chat_template()
    write_set(target, manifest, [[kept[i] for i in part] for part in parts], examples, template)
    return open_set(target)


def developer_text(example: Example) -> str:
    """A row's developer message; empty if it has none."""
    first = example.messages[0]
    return str(first["content"]) if first["role"] == "developer" else ""


def is_current(prepared: PreparedSet, config: Config) -> bool:
    """Whether preparing again would read the same rows and tools with the same program. The Hub is not asked."""
    manifest, path = prepared.manifest, Path(config.dataset)
    if manifest["versions"]["fitcoach_tune"] != __version__ or path.is_dir():
        return False
    if path.is_file() and dataset.file_hash(path) != manifest["source"]["sha256"]:
        return False
    return manifest["source"]["tools_sha256"] == _tools_hash(dataset.read_tools(config.tools) if config.tools else None)


def _tools_hash(tools: list[dict] | None) -> str | None:
    return files.sha256_json(tools) if tools else None


def _token_counts(rows: Sequence[TokenizedRow]) -> dict[str, Any]:
    lengths = np.array([len(row.input_ids) for row in rows])
    p50, p95 = (int(v) for v in np.percentile(lengths, [50, 95]))
    supervised = sum(len(row.supervised) for row in rows)
    return {"total": int(lengths.sum()), "supervised": supervised, "p50": p50, "p95": p95, "max": int(lengths.max())}


def summary(manifest: dict[str, Any]) -> str:
    """A prepared set in one line."""
    rows, tokens, prefix = manifest["rows"], manifest["tokens"], manifest["prefix"]["tokens"]
    return (
        f"{rows['train']} rows to train on, {rows['test']} held out; {tokens['p50']} tokens a row "
        f"(p95 {tokens['p95']}, max {tokens['max']}), of which the first {prefix} are shared and computed once a step; "
        f"{tokens['supervised']} trained"
    )


def warnings(manifest: dict[str, Any]) -> list[str]:
    """What a user should look at before training on a set."""
    report, found = manifest["split"], list(manifest["source"]["notes"])
    if report["duplicates"] or report["near_duplicates"]:
        found.append(f"{report['duplicates']} rows repeat a question, {report['near_duplicates']} nearly do")
    if report["groups_on_both_sides"]:
        count = report["groups_on_both_sides"]
        found.append(f"{count} questions stand (nearly) equal on both sides: the held-out accuracy will flatter")
    if report["conflicts"]:
        found.append(f"{report['conflicts']} questions have several answers: {'; '.join(report['conflicting'])}")
    if manifest["rows"]["dropped"]:
        found.append(f"{manifest['rows']['dropped']} over-long rows were dropped")
    if not manifest["rows"]["test"]:
        found.append("no row is held out: nothing can be evaluated")
    return found
