"""The wheel: what it carries, and that the program works from it alone, outside a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def program(unpacked, tmp_path):
    """Run the unpacked wheel's program, with nothing of the checkout on the path."""

    def run(*arguments):
        keep = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "-m", "fitcoach_tune", *arguments],
            cwd=tmp_path, env=keep | {"PYTHONPATH": str(unpacked), "COLUMNS": "120"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


def test_it_carries_every_file_that_the_program_reads(unpacked):
    package = unpacked / "fitcoach_tune"
    sources = {f.relative_to(ROOT / "src") for f in (ROOT / "src").rglob("*") if f.is_file() and f.suffix != ".pyc"}
    configs = {Path("fitcoach_tune/configs") / f.name for f in (ROOT / "configs").iterdir()}
    carried = {f.relative_to(unpacked) for f in package.rglob("*") if f.is_file()}
    assert carried == sources | configs
    for name in (
        "configs/original.yaml", "configs/offline.yaml", "fitness/queries.jsonl", "fitness/tools.json",
        "fitness/README.md", "functiongemma/template.jinja", "evaluate/hard.json", "evaluate/report.html.j2",
        "evaluate/report.css", "evaluate/report.js",
    ):  # fmt: skip
        checkout = ROOT / name if name.startswith("configs") else ROOT / "src/fitcoach_tune" / name
        assert (package / name).read_bytes() == checkout.read_bytes()


def test_its_metadata(unpacked):
    (information,) = unpacked.glob("*.dist-info")
    assert "fitcoach-tune = fitcoach_tune.cli:main" in (information / "entry_points.txt").read_text()
    metadata = (information / "METADATA").read_text()
    assert "\nName: fitcoach-tune\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert {f.name for f in information.rglob("*") if f.is_file()} >= {"LICENSE", "NOTICE"}


def test_its_presets_resolve(program):
    """The configuration is found, so that the complaint is about the setting; its other values are in force."""
    for preset in ("offline", "original"):
        done = program("train", "--config", preset, "--lora-r", "0", "--dry-run")
        assert done.returncode == 2, done.stderr
        assert "--lora-r" in done.stderr
        assert "no such configuration" not in done.stderr
    done = program("train", "--config", "ofline")
    assert done.returncode == 2
    assert "did you mean offline?" in done.stderr


def test_its_dataset_and_template_load(unpacked, tmp_path):
    script = (
        "import fitcoach_tune\n"
        "from fitcoach_tune.dataset import read_examples, validate\n"
        "from fitcoach_tune.functiongemma import chat_template, render\n"
        "from fitcoach_tune.config import load_config, presets\n"
        "examples, source = read_examples('builtin:fitness')\n"
        "validate(examples)\n"
        "assert chat_template() and render(examples[0].messages, examples[0].tools)\n"
        "assert load_config('offline').model == 'offline'\n"
        "print(source.rows, *sorted(presets()), fitcoach_tune.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows, *names, place = done.stdout.split()
    assert int(rows) == len((ROOT / "src/fitcoach_tune/fitness/queries.jsonl").read_text().splitlines())
    assert names == sorted(f.stem for f in (ROOT / "configs").iterdir())
    assert Path(place).is_relative_to(unpacked)
