"""The prepare verb: examples and a tokenizer in, a prepared set out. What is trained is decided here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fitcoach_tune import __version__, dataset, files, functiongemma, interrupts, models, rendering, splits
from fitcoach_tune.config import Config, flag
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import ConfigError, OutputError
from fitcoach_tune.prepared_rows import examples_in, make_rows, save_examples
from fitcoach_tune.prepared_set import FORMAT, MANIFEST, PreparedSet, is_set, open_set, versions
from fitcoach_tune.prepared_set_writer import Spool, write_set

DATA_SETTINGS = ("dataset", "revision", "tools", "max_length", "excess_length", "test_size", "split")
"""What decides which rows a set has."""


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
    if target.exists() and not is_set(target) and (not target.is_dir() or any(target.iterdir())):
        raise OutputError("it exists and is not a prepared set", where=str(target), hint="choose another --output-dir")
    ui.note(f"reading {config.dataset}")
    interrupts.ready_pyarrow()
    tools = dataset.read_tools(config.tools) if config.tools else None
    reading = dataset.Reading(config.dataset, tools=tools, revision=config.revision)
    with Spool(target) as read, Spool(target) as made:
        toolsets = save_examples(reading, read)
        source = reading.source
        base = models.resolve(config.model, config.model_revision, ui)
        tokenizer = models.load_tokenizer(base.path)
        with ui.bar("tokenizing", source.rows) as update:
            kept = make_rows(read, made, toolsets, tokenizer, config, update)
        facts = kept.facts

        def example(row: int) -> Example:
            return examples_in(made.take(np.array([row])).to_pydict(), toolsets)[0]

        parts, report = splits.split_facts(facts, config.split, config.test_size, config.seed, example)
        if not len(parts[0]):
            what, hint = "no row is left to train on", "hold out less, or bring more rows"
            raise ConfigError(what, where="--test-size", hint=hint)
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
            "rows": {
                "read": source.rows,
                "dropped": source.rows - len(facts),
                "train": len(parts[0]),
                "test": len(parts[1]),
            },
            "tokens": kept.token_counts(),
            "prefix": {"tokens": len(kept.prefix), "sha256": files.sha256_json(kept.prefix.tolist())},
            "split": report,
            "developer": kept.developers.pop() if len(kept.developers) == 1 else None,
        }
        template = tokenizer.chat_template or functiongemma.chat_template()
        write_set(target, manifest, made, parts, toolsets, facts.toolsets, template)
    return open_set(target)


def is_current(prepared: PreparedSet, config: Config) -> bool:
    """Whether preparing again would read the same rows and tools with the same program. The Hub is not asked."""
    manifest = prepared.manifest
    if manifest["versions"]["fitcoach_tune"] != __version__ or Path(config.dataset).is_dir():
        return False
    if manifest["settings"]["dataset"] != config.dataset or rows_have_changed(prepared):
        return False
    return manifest["source"]["tools_sha256"] == _tools_hash(dataset.read_tools(config.tools) if config.tools else None)


def rows_have_changed(prepared: PreparedSet) -> bool:
    """Whether the file that a set was made from is there, and has other rows now."""
    path = Path(prepared.manifest["settings"]["dataset"])
    return path.is_file() and dataset.file_hash(path) != prepared.manifest["source"]["sha256"]


def check_asked(config: Config, given: Mapping[str, Any]) -> None:
    """Refuse settings of the data that somebody asks for, where the named set was made with others; and a set that is
    not there, unless it is said what to make it of: what a preset says would be trained on in place of a name misspelt.

    Args:
        given: what was asked for by setting name; None if nothing was.

    Raises:
        ConfigError: says which differ, or that there is no such set.
        MismatchError: the set is damaged.
    """
    path = prepared_path(config)
    if config.data is None:
        return
    if not (path / MANIFEST).is_file():
        if given.get("data") and not given.get("dataset"):
            make = f"fitcoach-tune prepare --output-dir {shlex.quote(str(path))}"
            hint = f"make it with `{make}`, or give --dataset, too"
            raise ConfigError("there is no prepared set", where=f"--data {path}", hint=hint)
        return
    made = open_set(path).manifest["settings"]
    asked = [name for name in DATA_SETTINGS if given.get(name) is not None and made[name] != getattr(config, name)]
    if asked:
        raise ConfigError(
            f"the prepared set {path} was made otherwise",
            where=", ".join(map(flag, asked)),
            details=[f"{flag(name)} {getattr(config, name)}, and it has {made[name]}" for name in asked],
            hint="name another --data, where a set is made with these, or leave them out",
        )


def _tools_hash(tools: list[dict] | None) -> str | None:
    return files.sha256_json(tools) if tools else None


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
