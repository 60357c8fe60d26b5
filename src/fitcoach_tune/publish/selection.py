"""Which files of a run leave this machine: an allow-list, checked against the hashes that training recorded.

Nothing else is ever sent: no metrics, checkpoint or optimizer state, no answers of an evaluation, and no file that
happens to lie in the folder. What is sent names no folder of this machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fitcoach_tune import files, functiongemma, models, reading, runs
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.evaluate.evaluation import EVAL_FOLDER, RESULTS_NAME
from fitcoach_tune.evaluate.results import SCHEMA_VERSION
from fitcoach_tune.publish.card_evaluation import knows_rows
from fitcoach_tune.publish.model_card import Facts
from fitcoach_tune.strict_json import misfit
from fitcoach_tune.training.names import CONFIG_NAME, WEIGHTS_NAME

SETTINGS_NAME = "config.resolved.yaml"
CARD_NAME = "README.md"
_ADAPTER = (WEIGHTS_NAME, CONFIG_NAME)
_MERGED = ("model.safetensors", "config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_NEEDED = (*_ADAPTER, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", SETTINGS_NAME)
_MADE = (SETTINGS_NAME, RESULTS_NAME, runs.RUN_NAME, "generation_config.json", "NOTICE", CARD_NAME)
ALLOWED = (*_ADAPTER, *_MERGED, *_TOKENIZER, runs.PROMPT_NAME, *_MADE)
"""Every name that a push may create, replace or take away."""

_RECORD = {
    "base": {"name": str, "reference": str},
    "data": {"data_sha256": str, "source": {"sha256": str}},
    "files": {str: str},
    "config": dict,
}
_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"


def check_run(run: runs.Run) -> None:
    """Refuse a run that should not be seen by others.

    Raises:
        MismatchError: another program made it, its save check did not pass, its B is zero, or a file is not the one
            that was saved.
    """
    from fitcoach_tune.training.adapter import load_weights
    from fitcoach_tune.training.check import TOLERANCE

    where = str(run.path)
    if not run.record:
        what = "it has no run.json, so nobody can say how it was made"
        raise MismatchError(what, where=where, hint="push a run that `fitcoach-tune train` finished")
    if flaw := misfit(run.record, _RECORD):
        raise MismatchError(f"a run directory is damaged: {flaw}", where=where, hint="train it again")
    check = run.record.get("check")
    known = misfit(check, dict.fromkeys(("logit_difference", "logit_change_from_base"), float)) is None
    difference, moved = (check["logit_difference"], check["logit_change_from_base"]) if known else (1.0, 0.0)
    if not difference <= TOLERANCE or not difference < moved:
        what = "its save check did not pass: the saved files do not give the trained model"
        raise MismatchError(what, where=where, hint="train it again")
    for name in (*_NEEDED, *_TOKENIZER, runs.PROMPT_NAME):
        _check_file(run, name)
    load_weights(run.path / WEIGHTS_NAME)


def _check_file(run: runs.Run, name: str) -> None:
    expected, file = run.record.get("files", {}).get(name), run.path / name
    if expected is None and not file.exists() and name not in _NEEDED:
        return
    if not file.is_file():
        raise MismatchError(f"{name} is missing", where=str(run.path), hint="train it again")
    if expected is None or files.sha256_file(file) != expected:
        what = f"{name} is not the file that training saved"
        raise MismatchError(what, where=str(run.path), hint="restore it, or train again")


def newest_results(run: runs.Run) -> dict[str, Any] | None:
    """The newest evaluation in the run's folder of exactly this adapter; one on rows that it was trained on only if
    there is no other.
    """
    form = {"adapter": {"sha256": str}, "data": {"sha256": str, "split": str}, "finished": str}
    found = []
    for file in sorted((run.path / EVAL_FOLDER).glob(f"*/{RESULTS_NAME}")):
        results = reading.read_json(file, "an evaluation", {})
        if results.get("schema_version") != SCHEMA_VERSION:
            continue
        if flaw := misfit(results, form):
            raise MismatchError(f"an evaluation is damaged: {flaw}", where=str(file), hint="evaluate it again")
        if results["adapter"]["sha256"] == run.sha256:
            found.append(results)

    return max(found, key=lambda results: (not knows_rows(run.record, results), results["finished"]), default=None)


def portable(value: Any) -> Any:
    """A JSON value whose paths to somewhere else on this machine are cut to their last name."""
    if isinstance(value, dict):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [portable(part) for part in value]
    return (
        Path(value).name
        if isinstance(value, str) and value.startswith(("/", "~/", "./", "../")) and len(value) > 1
        else value
    )


def stage(
    run: runs.Run, results: dict[str, Any] | None, repo_id: str, merged: dict[str, Any] | None, folder: Path
) -> Facts:
    """Put what is to be sent into `folder`: copies of the run's files, and what is made for publication.

    Args:
        merged: what `merging.merge` found when it put the merged weights into `folder`; None publishes the adapter.

    Raises:
        MismatchError: a file changed while it was copied.
    """
    record = portable(run.record)
    results = portable(results)
    for name in (*([] if merged else _ADAPTER), *_TOKENIZER, runs.PROMPT_NAME):
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, folder / name)
            if files.sha256_file(folder / name) != run.record["files"][name]:
                raise MismatchError(f"{name} changed while it was copied", where=str(run.path), hint="push it again")
    base = record["base"]
    base["reference"] = models.OFFLINE if base["name"] == models.OFFLINE else base["reference"]
    if not merged:
        _name_base(folder / CONFIG_NAME, base["reference"])
    if results:
        # As the published files have it, so that they can be told to be of this evaluation.
        results["adapter"]["sha256"] = runs.Run(repo_id, folder, {}).sha256 if not merged else run.sha256
        _write(folder / RESULTS_NAME, results)
    prompt = reading.read_json(folder / runs.PROMPT_NAME, "a run") if (folder / runs.PROMPT_NAME).is_file() else None
    facts = Facts(repo_id, record, results, prompt, merged)
    try:
        _make(facts, folder)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        what = f"{runs.RUN_NAME} or {RESULTS_NAME} does not say what a model card needs: {error!r}"
        raise MismatchError(what, where=str(run.path), hint="train and evaluate it again") from None
    return facts


def _name_base(config_file: Path, name: str) -> None:
    """Let the adapter's configuration name its base as run.json does, where it names a folder of this machine."""
    config = reading.read_json(config_file, "an adapter", {})
    if config.get("base_model_name_or_path") != name:
        _write(config_file, config | {"base_model_name_or_path": name})


def _make(facts: Facts, folder: Path) -> None:
    import yaml

    from fitcoach_tune.publish.model_card import model_card

    tokens = functiongemma.CONTROL_TOKENS
    generation = {
        "bos_token_id": tokens[functiongemma.BOS],
        "do_sample": False,
        "eos_token_id": [tokens[token] for token in functiongemma.STOP_TOKENS],
        "max_new_tokens": facts.record["config"]["max_new_tokens"],
        "pad_token_id": tokens[functiongemma.PAD],
    }
    _write(folder / "generation_config.json", generation)
    settings = yaml.safe_dump(facts.record["config"], sort_keys=False, allow_unicode=True)
    (folder / SETTINGS_NAME).write_text(settings, encoding="utf-8")
    (folder / "NOTICE").write_text(_NOTICE, encoding="utf-8")
    (folder / CARD_NAME).write_text(model_card(facts), encoding="utf-8")
    published = {file.name: files.sha256_file(file) for file in sorted(folder.iterdir())}
    record = facts.record | ({"merged": facts.merged} if facts.merged else {}) | {"files": published}
    _write(folder / runs.RUN_NAME, record)


def _write(path: Path, value: Any) -> None:
    path.write_text(files.to_json(value), encoding="utf-8")
