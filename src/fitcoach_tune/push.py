"""The push verb: a finished, evaluated run out, as one commit in a repository of the Hub."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcoach_tune import hub, reading, runs
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import ConfigError, MismatchError
from fitcoach_tune.publish import selection
from fitcoach_tune.publish.model_card import Facts
from fitcoach_tune.publish.repository import File, Remote, Sent, Target
from fitcoach_tune.publish.upload import Uploader
from fitcoach_tune.training.names import CONFIG_NAME

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".msgpack", ".h5")


@dataclass(frozen=True)
class Options:
    """What to push, and where to.

    Attributes:
        repo_id: owner/name; by default what the run's configuration names.
        private: make the repository private, if it has to be made.
        branch: the main one if None; made if it is not there.
        message: of the commit.
        merged: merged bf16 weights instead of the adapter.
        allow_unevaluated: push an adapter that was never evaluated.
    """

    repo_id: str | None = None
    private: bool = False
    branch: str | None = None
    message: str | None = None
    merged: bool = False
    allow_unevaluated: bool = False


@dataclass(frozen=True)
class Plan:
    """What is about to be sent.

    Attributes:
        files: that the commit adds or replaces; the repository's other files stay.
        removed: files of an earlier push that have no place beside these; taken away if they are there.
        card: the model card.
    """

    target: Target
    files: tuple[File, ...]
    removed: tuple[str, ...]
    card: str
    message: str
    facts: Facts

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "repo_id": self.target.repo_id,
            "branch": self.target.branch or "main",
            "private": self.target.private,
            "message": self.message,
            "files": [{"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in self.files],
        }


@contextlib.contextmanager
def planned(adapter: str, options: Options, ui: Console = SILENT) -> Iterator[Plan]:
    """Check a run and gather what would be sent, in a temporary folder; nothing is sent.

    Args:
        adapter: a run's folder.

    Raises:
        ConfigError: no repository is named, or its name cannot be one; the adapter is not a folder.
        MismatchError: the run should not be published; see `selection.check_run` and `merging.merge`.
    """
    if not reading.user_path(adapter, "--adapter").is_dir():
        raise ConfigError("only a run on this machine can be pushed", where=f"--adapter {adapter}")
    run = runs.open_run(adapter)
    repo_id = options.repo_id or run.record.get("config", {}).get("hub_model_id")
    if not repo_id:
        hint = "give --repo-id YOUR_NAME/NAME, or set hub_model_id in the configuration"
        raise ConfigError("no repository is named", where="--repo-id", hint=hint)
    hub.check_repo_id(repo_id, "--repo-id")
    selection.check_run(run)
    results = selection.newest_results(run)
    if results is None and not options.allow_unevaluated:
        raise MismatchError(
            "it was never evaluated as it is now",
            where=str(run.path),
            hint=f"run `fitcoach-tune eval --adapter {adapter}`, or --allow-unevaluated to publish it all the same",
        )
    with tempfile.TemporaryDirectory(prefix="fitcoach-tune-push-") as folder:
        yield _stage(run, results, repo_id, options, Path(folder), ui)


def _stage(
    run: runs.Run, results: dict[str, Any] | None, repo_id: str, options: Options, folder: Path, ui: Console
) -> Plan:
    merged = None
    if options.merged:
        from fitcoach_tune.publish.merging import merge

        ui.note("merging the adapter into its base, and comparing the logits")
        merged = merge(run, folder, ui)
    facts = selection.stage(run, results, repo_id, merged, folder)
    if not merged and not facts.is_on_hub and not facts.is_offline:
        ui.warn("the base model is a folder of this machine, so nobody else can load the adapter; consider --merged")
    present = [name for name in selection.ALLOWED if (folder / name).is_file()]
    return Plan(
        target=Target(repo_id, branch=options.branch, private=options.private),
        files=tuple(File(name, folder / name) for name in present),
        removed=tuple(name for name in selection.ALLOWED if name not in present),
        card=(folder / selection.CARD_NAME).read_text(encoding="utf-8"),
        message=options.message or f"{'Merged weights' if merged else 'Adapter'} by fitcoach-tune",
        facts=facts,
    )


def send(plan: Plan, uploader: Uploader, confirm: Callable[[Remote | None], None] = lambda _: None) -> Sent:
    """Push what was planned, as one commit.

    Args:
        confirm: is shown what is there now (None: nothing is), and raises to stop.

    Raises:
        AccessError, MismatchError: see `Uploader`; the repository holds an adapter or model of another base.
    """
    uploader.log_in(plan.target)
    remote = uploader.look(plan.target)
    if remote:
        _check_same_base(plan, uploader, remote)
    confirm(remote)
    uploader.check_card(plan.target, plan.card)
    return uploader.send(plan.target, remote, plan.files, plan.removed, plan.message)


def describe(plan: Plan, remote: Remote | None) -> list[str]:
    """What is about to happen, in lines: where to, each file with its size, and what is taken away."""
    total = sum(file.size for file in plan.files)
    if remote is None:
        state = "new, private" if plan.target.private else "new, public unless your account says otherwise"
    else:
        state = {True: "private", False: "public"}.get(remote.private, "there already")
    gone = [name for name in plan.removed if remote and name in remote.hashes]
    return [
        f"{len(plan.files)} files, {_size(total)}, as one commit to {plan.target} ({state}):",
        *(f"  {_size(file.size):>9}  {file.path}" for file in plan.files),
        *(f"    removed  {name}" for name in gone),
    ]


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000 or unit == "MB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _check_same_base(plan: Plan, uploader: Uploader, remote: Remote) -> None:
    theirs = _bases(plan, uploader, remote)
    ours = {plan.facts.record["base"]["reference"], plan.facts.base_model}
    if theirs and not ours & set(theirs):
        what = f"the repository is there already, for another base model: {', '.join(theirs)}, not {plan.facts.base}"
    elif not theirs and any(name.endswith(_WEIGHTS) for name in remote.hashes):
        what = "the repository holds weights already, and does not say of which base model"
    else:
        return
    raise MismatchError(what, where=str(plan.target), hint="choose another --repo-id or --revision")


def _bases(plan: Plan, uploader: Uploader, remote: Remote) -> list[str]:
    """What the repository's files say they are based on."""
    for name, keys in ((runs.RUN_NAME, ("base", "reference")), (CONFIG_NAME, ("base_model_name_or_path",))):
        if name in remote.hashes:
            try:
                found = json.loads(uploader.read(plan.target, remote, name))
                return [str(functools.reduce(dict.__getitem__, keys, found))]
            except (ValueError, KeyError, TypeError):
                return [f"one that its {name} does not name"]
    named = remote.card.get("base_model") or []
    return [named] if isinstance(named, str) else list(named)
