"""The Hub's check of a card's metadata, as far as its documentation says what it asks for."""

from __future__ import annotations

import re
from typing import Any

import yaml

_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# Of https://huggingface.co/docs/hub/repositories-licenses: those that occur here.
_LICENCES = {"gemma", "apache-2.0", "mit", "other"}


def problems(content: str, kind: str) -> list[str]:
    """What is wrong with the metadata of a README."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return []  # the Hub only warns that there is none
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"cannot be parsed: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is not a mapping"]
    found = [text for check in (_licence, _references, _texts, _index) for text in check(data)]
    return found + (_configs(data) if kind == "dataset" else [])


def _licence(data: dict[str, Any]) -> list[str]:
    return [] if data.get("license", "other") in _LICENCES else ['"license" must be one of the known licences']


def _references(data: dict[str, Any]) -> list[str]:
    found = []
    for key in ("base_model", "datasets"):
        value = data.get(key, [])
        names = value if isinstance(value, list) else [value]
        found += [f'"{key}" must be the id of a repository' for n in names if not _REPO_ID.fullmatch(str(n))]
    return found


def _texts(data: dict[str, Any]) -> list[str]:
    tags = data.get("tags", [])
    found = [] if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags) else ['"tags" must be texts']
    keys = ("library_name", "pipeline_tag", "base_model_relation", "pretty_name")
    return found + [f'"{key}" must be a text' for key in keys if not isinstance(data.get(key, ""), str)]


def _index(data: dict[str, Any]) -> list[str]:
    found = []
    for entry in data.get("model-index", []):
        if not isinstance(entry.get("name"), str) or not entry.get("results"):
            found.append('"model-index" entries need a name and results')
        for result in entry.get("results", []):
            named = result.get("task", {}).get("type") and all(
                result.get("dataset", {}).get(k) for k in ("type", "name")
            )
            measured = all(m.get("type") and m.get("value") is not None for m in result.get("metrics", [{}]))
            found += [] if named and measured else ['"model-index" results need a task, a dataset and metrics']
    return found


def _configs(data: dict[str, Any]) -> list[str]:
    ok = all(isinstance(c.get("config_name"), str) and c.get("data_files") for c in data.get("configs", []))
    return [] if ok else ['"configs" need a config_name and data_files']
