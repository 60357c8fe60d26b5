"""Files that somebody else may have made: what is refused before it is read, and what strict JSON refuses."""

from __future__ import annotations

import pytest

from fitcoach_tune import files, reading
from fitcoach_tune.errors import MismatchError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "this is not a prepared set: manifest.json is missing"),
        (b"", "a prepared set is damaged"),
        (b'{"half": ', "a prepared set is damaged"),
        (b'"\xff"', "a prepared set is damaged"),
        (b"[" * 100_000, "a prepared set is damaged"),
    ],
)
def test_read_json_says_what_is_wrong(tmp_path, content, message) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MismatchError, match=message) as caught:
        reading.read_json(path, "a prepared set")
    assert str(tmp_path) in str(caught.value.where)


def test_read_json_of_a_folder(tmp_path) -> None:
    with pytest.raises(MismatchError, match="is damaged"):
        reading.read_json(tmp_path, "a prepared set")


def test_read_json_reads_what_to_json_wrote(tmp_path) -> None:
    value = {"b": [1, 2.5, None], "a": "größer"}
    files.write_atomic(tmp_path / "v.json", files.to_json(value))
    assert reading.read_json(tmp_path / "v.json", "it") == value
    assert (tmp_path / "v.json").read_text(encoding="utf-8").endswith("}\n")
