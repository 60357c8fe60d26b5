"""Run directories: a PEFT adapter with all that is needed to use it, check it and explain it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcoach_tune import files, functiongemma, hub, models, reading
from fitcoach_tune.errors import AccessError, DataError, MismatchError
from fitcoach_tune.strict_json import Maybe
from fitcoach_tune.tools import check_tools
from fitcoach_tune.training.names import CONFIG_NAME, WEIGHTS_NAME

RUN_NAME = "run.json"
PROMPT_NAME = "prompt.json"
RUNS_FOLDER = Path("output")
PREVIOUS, UNFINISHED = ".previous", ".unfinished"
"""What the name of a run ends in that made room for another one."""
OWN_FILES = (CONFIG_NAME, WEIGHTS_NAME, RUN_NAME, PROMPT_NAME, *models.TOKENIZER_FILES, models.TEMPLATE_NAME)
_DTYPES = ("bf16", "fp32")
# Of run.json, what more than its readers' own messages depend on.
_RECORD = {
    "base": Maybe({"name": str, "revision": Maybe(str, missing=False), "tokenizer_sha256": str, "weights_sha256": str}),
    "config": Maybe({"dtype": Maybe(str), "hub_model_id": Maybe(str)}),
    "data": Maybe(
        {
            "path": str,
            "source": {"sha256": str},
            "data_sha256": str,
            "tools_sha256": str,
            "template_sha256": str,
        }
    ),
    "files": Maybe({str: str}),
}
_PROMPT = {"developer": Maybe(str), "tools": list}


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
        form = {"base_model_name_or_path": Maybe(str), "revision": Maybe(str)}
        config = reading.read_json(self.path / CONFIG_NAME, "an adapter", form)
        name = config.get("base_model_name_or_path")
        if not name:
            raise MismatchError("the adapter does not name its base model", where=str(self.path), hint="give --model")
        return name, config.get("revision")

    @property
    def sha256(self) -> str:
        """Hash of what the adapter computes: its weights and its configuration."""
        return files.sha256_json([files.sha256_file(self.path / name) for name in (WEIGHTS_NAME, CONFIG_NAME)])

    @property
    def dtype(self) -> str:
        """Precision of the base that it was trained on."""
        return self.record.get("config", {}).get("dtype") or _DTYPES[0]

    def prompt(self, tools: list[dict] | None = None) -> dict[str, Any]:
        """What stands before a question: {"developer": …, "tools": […], "trained_with": […] or None}.

        Args:
            tools: to declare instead of those that the adapter was trained with.

        Raises:
            MismatchError: no tools are given, and the adapter names none or was trained with several sets of them; or
                what it names cannot be used.
        """
        file = self.path / PROMPT_NAME
        saved = _read_prompt(file) if file.is_file() else None
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
    path, commit = reading.user_path(name, option), None
    if not path.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise AccessError("no such folder", where=f"{option} {name}", hint="train first, or name a finished run")
        repo_id, _, revision = name.partition("@")
        path = hub.download(repo_id, revision or None, OWN_FILES, what="adapter")
        commit = path.name
    if not (path / CONFIG_NAME).is_file() or not (path / WEIGHTS_NAME).is_file():
        raise MismatchError(
            "this folder holds no finished adapter", where=str(path), hint="train to the end, or name another folder"
        )
    for file in filter(lambda file: (path / file).exists(), OWN_FILES):
        reading.check_own(path / file, "an adapter")
    reading.read_json(path / CONFIG_NAME, "an adapter", {})
    record = _read_record(path / RUN_NAME) if (path / RUN_NAME).is_file() else {}
    for file, expected in record.get("files", {}).items():
        own = reading.check_listed(path, file, "a run directory")
        if not own.exists():
            continue
        reading.check_own(own, "a run directory")
        if files.sha256_file(own) != expected:
            raise MismatchError(
                f"{file} has changed since it was saved", where=str(path), hint="train or download it again"
            )
    return Run(name, path, record, commit)


def _read_record(path: Path) -> dict[str, Any]:
    record = reading.read_json(path, "a run directory", _RECORD)
    record = {key: value for key, value in record.items() if value is not None}
    dtype = record.get("config", {}).get("dtype")
    if dtype not in (None, *_DTYPES):
        raise MismatchError(f"a run directory is damaged: config.dtype is {dtype!r}", where=str(path))
    return record


def _read_prompt(path: Path) -> dict[str, Any]:
    """What an adapter was trained with; its tools are as sound as those of rows, or it is refused."""
    saved = reading.read_json(path, "an adapter", _PROMPT)
    try:
        tools = check_tools(saved["tools"], path.name) if saved["tools"] else []
    except DataError as error:
        what = f"the adapter's tools cannot be used: {'; '.join([error.what, *error.details])}"
        raise MismatchError(what, where=str(path), hint="train or download it again") from None
    return {"developer": saved.get("developer"), "tools": tools}


def newest_run(folder: Path = RUNS_FOLDER) -> str:
    """The finished run in `folder` that was saved last.

    Raises:
        AccessError: there is none.
    """
    found = [file for file in folder.glob(f"*/{RUN_NAME}") if not file.parent.name.endswith(PREVIOUS)]
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
