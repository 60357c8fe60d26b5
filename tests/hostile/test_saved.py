"""Saved datasets and Parquet files that somebody has tampered with."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune.dataset import read_examples, validate
from fitcoach_tune.errors import DataError
from tests.dataset.rows import TOOLS
from tests.hostile.material import altered, fuzz, nearly, one_error

ROWS = [{"user": f"say {i}", "assistant": "get_steps", "tools": json.dumps(TOOLS)} for i in range(3)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A dataset of one part, one of two, and a Parquet file."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(folder / "one")
    one.select([2, 0]).save_to_disk(folder / "some")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(folder / "two")
    one.to_parquet(folder / "rows.parquet")
    return folder


def read(path: Path) -> None:
    examples, _ = read_examples(str(path))
    validate(examples)


def test_they_are_sound_before(saved):
    for name in ("one", "some", "two", "rows.parquet"):
        read(saved / name)


@pytest.mark.parametrize("name", ["../one/data-00000-of-00001.arrow", "/etc/passwd", "..", ""])
def test_a_file_of_another_folder(saved, tmp_path, name):
    shutil.copytree(saved / "one", tmp_path / "mine")
    state = json.loads((tmp_path / "mine/state.json").read_text())
    state["_data_files"][0]["filename"] = name
    (tmp_path / "mine/state.json").write_text(json.dumps(state))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "mine")
    one_error(caught.value, f"it lists {name!r}, which leads out of its folder", tmp_path / "mine")


def test_a_part_of_another_folder(saved, tmp_path):
    shutil.copytree(saved / "two", tmp_path / "mine")
    (tmp_path / "mine/dataset_dict.json").write_text(json.dumps({"splits": ["../../one"]}))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "mine")
    one_error(caught.value, "it lists '../../one', which leads out of its folder")


def test_a_link_to_another_folder(saved, tmp_path):
    shutil.copytree(saved / "one", tmp_path / "mine")
    file = next((tmp_path / "mine").glob("*.arrow"))
    file.unlink()
    file.symlink_to(saved / "one" / file.name)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "mine")
    one_error(caught.value, "is a link out of its folder")


FILES = ["one/state.json", "one/dataset_info.json", "some/state.json", "two/dataset_dict.json", "two/train/state.json"]


@fuzz
@given(data=st.data())
def test_any_changed_part(saved, data):
    """Also such as make an offset point out of the file, or an index out of the rows."""
    with tempfile.TemporaryDirectory() as scratch:
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from(FILES))
            changed = json.dumps(data.draw(nearly(json.loads((saved / name).read_text())))).encode()
        else:
            arrows = sorted(str(file.relative_to(saved)) for file in saved.rglob("*.arrow"))
            name = data.draw(st.sampled_from([*arrows, "rows.parquet"]))
            changed = data.draw(altered((saved / name).read_bytes()))
        top = name.split("/")[0]
        place = Path(scratch, top)
        if (saved / top).is_dir():
            shutil.copytree(saved / top, place)
        Path(scratch, name).write_bytes(changed)
        try:
            read(place)
        except DataError as error:
            one_error(error)
