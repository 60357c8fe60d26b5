"""Run directories: a PEFT adapter with all that is needed to use it, check it and explain it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcoach_tune import files, functiongemma, hub, models
from fitcoach_tune.errors import AccessError, MismatchError
from fitcoach_tune.training.names import CONFIG_NAME, WEIGHTS_NAME

RUN_NAME = "run.json"
PROMPT_NAME = "prompt.json"
RUNS_FOLDER = Path("output")
_ADAPTER_FILES = [CONFIG_NAME, WEIGHTS_NAME, RUN_NAME, PROMPT_NAME, "tokenizer*.json", "*.jinja"]


@dataclass(frozen=True)
class Run:
    """A finished run: an adapter's folder, opened and checked.

    Attributes:
        name: as the user gave it.
        path: the folder on this machine.
        record: run.json; empty for an adapter that another program made.
        revision: the commit of an adapter from the Hub, resolved when it was opened; None for a folder.
    """

    name: str
    path: Path
    record: dict[str, Any]
    revision: str | None = None

    @property
    def base_name(self) -> tuple[str, str | None]:
        """The base model's name and revision."""
        if base := self.record.get("base"):
            return base["name"], base["revision"]
        config = _read_object(self.path / CONFIG_NAME, "an adapter")
        name = config.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise MismatchError("the adapter does not name its base model", where=str(self.path), hint="give --model")
        return name, config.get("revision")

    @property
    def sha256(self) -> str:
        """Hash of what the adapter computes: its weights and its configuration."""
        return files.sha256_json([files.sha256_file(self.path / name) for name in (WEIGHTS_NAME, CONFIG_NAME)])

    @property
    def dtype(self) -> str:
        return self.record.get("config", {}).get("dtype", "bf16")

    def prompt(self, tools: list[dict] | None = None) -> dict[str, Any]:
        """What stands before a question: {"developer": …, "tools": […], "trained_with": […] or None}.

        Args:
            tools: to declare instead of those that the adapter was trained with.

        Raises:
            MismatchError: no tools are given, and the adapter names none or was trained with several sets of them.
        """
        file = self.path / PROMPT_NAME
        saved = files.read_json(file, "a run directory") if file.is_file() else None
        if not saved and not tools:
            raise MismatchError(
                "this adapter does not say which tools it was trained with", where=str(self.path), hint="give --tools"
            )
        trained_with = saved["tools"] if saved else None
        developer = saved["developer"] if saved else functiongemma.TRIGGER
        return {"developer": developer, "tools": tools or trained_with, "trained_with": trained_with}


def open_run(name: str, option: str = "--adapter") -> Run:
    """Open an adapter from a folder or from the Hub (`owner/name` or `owner/name@revision`), and check its files.

    `option` is the flag that named it, for messages.

    Raises:
        AccessError: there is no such folder or repository.
        MismatchError: it is not an adapter, or a file differs from its record.
    """
    path, commit = Path(name).expanduser(), None
    if not path.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise AccessError("no such folder", where=f"{option} {name}", hint="train first, or name a finished run")
        repo_id, _, revision = name.partition("@")
        path = hub.download(repo_id, revision or None, _ADAPTER_FILES, what="adapter")
        commit = path.name
    if not (path / CONFIG_NAME).is_file() or not (path / WEIGHTS_NAME).is_file():
        raise MismatchError(
            "this folder holds no finished adapter", where=str(path), hint="train to the end, or name another folder"
        )
    _read_object(path / CONFIG_NAME, "an adapter")
    record = _read_object(path / RUN_NAME, "a run directory") if (path / RUN_NAME).is_file() else {}
    for file, expected in record.get("files", {}).items():
        if (path / Path(file).name).is_file() and files.sha256_file(path / Path(file).name) != expected:
            raise MismatchError(
                f"{file} has changed since it was saved", where=str(path), hint="train or download it again"
            )
    return Run(name, path, record, commit)


def _read_object(path: Path, what: str) -> dict[str, Any]:
    value = files.read_json(path, what)
    if not isinstance(value, dict):
        raise MismatchError(f"{what} is damaged: the file holds no JSON object", where=str(path))
    return value


def newest_run(folder: Path = RUNS_FOLDER) -> str:
    """The finished run in `folder` that was saved last.

    Raises:
        AccessError: there is none.
    """
    found = [file for file in folder.glob(f"*/{RUN_NAME}") if not file.parent.name.endswith(".previous")]
    if not found:
        raise AccessError("there is no finished run here", where=str(folder), hint="train first, or give --adapter")
    return str(max(found, key=lambda file: file.stat().st_mtime_ns).parent)


def check_base(run: Run, base: models.Base) -> None:
    """Refuse to put an adapter on another base model than it was trained on.

    Raises:
        MismatchError: says what differs.
    """
    recorded = run.record.get("base")
    if not recorded:
        return
    if recorded["tokenizer_sha256"] != models.tokenizer_hash(base.path):
        what = "its tokenizer differs"
    elif (recorded["name"], recorded["revision"]) != (base.name, base.revision) or not base.revision:
        # A pinned revision cannot have changed; hashing its weights would only cost time.
        if recorded["weights_sha256"] == models.weights_hash(base.path):
            return
        what = "its weights differ"
    else:
        return
    raise MismatchError(
        f"the adapter was trained on {recorded['name']}, and {base.name} is another base model: {what}",
        where=str(run.path),
        hint=f"use --model {recorded['name']}, or leave --model out",
    )
