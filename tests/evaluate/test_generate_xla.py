"""Generation on virtual XLA devices: the answers of plain torch, and one graph for each kind of work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fitcoach_tune import cli
from fitcoach_tune.evaluate.compiled import Shape
from fitcoach_tune.evaluate.generate import STOP_IDS, Generator
from tests.evaluate import xla_generate_worker as worker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What four devices answered."""
    folder = tmp_path_factory.mktemp("generate")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", worker.__name__, "4", str(folder / "found.json")],
        cwd=ROOT,
        env={**os.environ, "FITCOACH_TUNE_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name in worker.CASES if name != "bf16"])  # whose ties fall either way
def test_answers_are_those_of_plain_torch(found, name):
    case = worker.CASES[name]
    expected, _ = worker.answer(case, Generator(worker.make_model(case)))
    assert found[name]["answers"] == expected


@pytest.mark.parametrize("name", worker.CASES)
def test_each_answer_is_told_once(found, name):
    for answers, told in zip(found[name]["answers"], found[name]["told"], strict=True):
        assert sorted(told) == [[i, answer] for i, answer in enumerate(answers)]


def test_rows_are_told_as_they_stop(found):
    (told,) = found["stops"]["told"]
    lengths = [len(answer) for _, answer in told]
    assert [n > 9 for n in lengths] == sorted(n > 9 for n in lengths)  # what the first fetch found comes first
    assert any(n <= 9 for n in lengths)


def test_constraints_are_refused(found):
    assert "cannot be constrained" in found["constrained"]
    assert "--device xla-cpu" in found["constrained"]
    assert "--unconstrained" in found["constrained"]


def test_rows_stop_on_their_own(found):
    """For the case above to mean anything: at several tokens, early ones, and not within one fetch."""
    (answers,) = found["stops"]["answers"]
    stopped = {len(answer) for answer in answers if answer[-1] in STOP_IDS}
    assert len(stopped) > 2
    assert min(stopped) <= 8 < max(stopped)
    assert all(token not in STOP_IDS for answer in answers for token in answer[:-1])


@pytest.mark.parametrize("name", worker.CASES)
def test_each_graph_is_compiled_once(found, name):
    """Other lengths, fewer rows, a second part of long prompts, another token: no reason to compile."""
    case, compiled = worker.CASES[name], dict(found[name]["compiled"])
    assert compiled.pop("prefix", None) == ([1] if case["prefix"] else None)
    assert compiled.pop("cache") == [int(name == "bf16")]  # converted there; float32 is sent
    assert ("decode" in compiled) == (case["limit"] > 1)
    compiled.pop("decode", None)
    assert set(compiled) == {"prefill", "fetch"}
    for kind, uses in found[name]["compiled"].items():
        assert uses == [int(kind != "cache" or name == "bf16")] + [0] * (len(uses) - 1), kind
    batches = sum(-(-len(lengths) // (size or len(lengths))) for lengths, size in case["calls"])
    parts = 2 if name == "long" else 1
    assert compiled["prefill"] == [1] + [0] * (batches * parts - 1)


def test_bfloat16_answers(found):
    (answers,) = found["bf16"]["answers"]
    limit = worker.CASES["bf16"]["limit"]
    assert all(len(answer) == limit or answer[-1] in STOP_IDS for answer in answers)
    assert len({tuple(answer) for answer in answers}) > 1


def test_a_second_compilation_is_an_error(found):
    assert "graph was compiled a second time" in found["refused"]
    assert "the prefill 4x32x1+3 behind 0 of model " in found["refused"]


def test_several_hosts_are_refused(found):
    assert "one of 2 hosts" in found["among_hosts"]
    assert "run it on one host" in found["among_hosts"]


@pytest.mark.parametrize(
    ("longest", "rows", "expected"),
    [
        (1, 1, Shape(4, 32, 1, 9)),
        (32, 4, Shape(4, 32, 1, 9)),
        (33, 5, Shape(8, 64, 1, 9)),
        (512, 8, Shape(8, 512, 1, 9)),
        (513, 8, Shape(8, 288, 2, 9)),
        (1100, 8, Shape(8, 384, 3, 9)),
    ],
)
def test_shapes(longest, rows, expected):
    shape = Shape.of(longest, rows, 9, groups=4)
    assert shape == expected
    assert longest <= shape.width == shape.capacity - 9


def test_infer_prints_what_it_prints_on_a_cpu(finished_run, run_cli, monkeypatch, tmp_path):
    folder, run, _ = finished_run
    arguments = ["infer", "bed c", "--max-new-tokens", "10", "--unconstrained", "--json", "--adapter", str(run)]
    on_xla = ["--device", "xla-cpu", "--num-devices", "2"]
    done = run_cli(*arguments, *on_xla, cwd=folder, FITCOACH_TUNE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)
    plain = CliRunner().invoke(cli.app, [*arguments, "--device", "cpu"])
    assert plain.exit_code == 0, plain.stderr
    assert json.loads(done.stdout) == json.loads(plain.stdout)


def test_eval_finds_what_it_finds_on_a_cpu(finished_run, run_cli, monkeypatch, tmp_path):
    """Base beside tuned: each is another set of graphs, on the same two devices. Constrained answers are left out."""
    folder, run, _ = finished_run
    arguments = [
        "eval",
        "--split",
        "all",
        "--batch-size",
        "3",
        "--max-new-tokens",
        "10",
        "--json",
        "--adapter",
        str(run),
    ]
    on_xla = ["--device", "xla-cpu", "--num-devices", "2", "--report", str(tmp_path / "xla")]
    done = run_cli(*arguments, *on_xla, cwd=folder, FITCOACH_TUNE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "constrained answers are not made on xla-cpu" in done.stderr
    monkeypatch.chdir(folder)
    report = ["--device", "cpu", "--unconstrained", "--report", str(tmp_path / "cpu")]
    plain = CliRunner().invoke(cli.app, [*arguments, *report])
    assert plain.exit_code == 0, plain.stderr
    same = ("set", "model", "id", "prompt", "raw", "tokens", "stopped", "error")
    xla, cpu = (
        [
            [json.loads(line)[key] for key in same]
            for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()
        ]
        for name in ("xla", "cpu")
    )
    assert len(xla) == 2 * 16
    assert xla == cpu
    refused = run_cli(*arguments, *on_xla, "--constrained", cwd=folder, FITCOACH_TUNE_CACHE=str(tmp_path / "cache"))
    assert refused.returncode == 7
    assert "--unconstrained" in refused.stderr
