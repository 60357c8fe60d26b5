"""Many rows: in chunks, in several processes, through files. The set is the same, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fitcoach_tune import dataset, prepare, prepared_set, prepared_set_writer, processes, rendering
from fitcoach_tune.config import Config
from fitcoach_tune.errors import DataError, FitcoachTuneError, OutputError

from .conftest import SLEEP, STEPS, conversation, tool

NOTE = tool("note", text={"type": "string", "description": "What to note."})
TOOLSETS = [[STEPS, SLEEP], [SLEEP, STEPS, NOTE]]
LONG = 20_000  # rows, so that several processes work on them


def row(number: int) -> dict:
    """Two lists of tools, calls and words, equal questions with equal and with other answers, and a long one."""
    words = random.Random(number).sample(["steps", "sleep", "night", "walk", "week", "café", "走る", "please"], 4)
    query = " ".join(words if number % 7 else words * 40) if number % 5 else "How many steps?"
    call = [("get_steps", {}), ("get_sleep", {"days": number % 9})][number % 2]
    messages = conversation(query, text="None of them.") if number % 11 == 0 else conversation(query, call)
    if number % 3 == 0 and number % 11:
        messages += [
            {"role": "tool", "name": call[0], "content": {"value": number}},
            {"role": "assistant", "content": f"It is {number}."},
        ]
    more = {"acceptable_answers": ["get_steps"]} if number % 4 == 0 else {}
    return {"messages": messages, "tools": TOOLSETS[number % 2]} | more


def write(path: Path, rows: list[dict | str]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def settings(tiny_base, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [row(i) for i in range(60)])
    return Config(model=str(tiny_base), dataset=str(rows), data=str(tmp_path / "set"), test_size=0.3)


@pytest.fixture
def tiny_chunks(monkeypatch):
    def make(rows: int, cores: int) -> None:
        monkeypatch.setattr(rendering, "ROWS_AT_ONCE", rows)
        monkeypatch.setattr(processes, "cores", lambda: cores)
        monkeypatch.setattr(processes, "FEW", 4)

    return make


def contents(prepared: prepared_set.PreparedSet) -> list:
    parts = [(part, i) for part in (prepared.train, prepared.test) for i in range(len(part))]
    return [prepared.manifest, *((part[i].input_ids.tolist(), part[i].spans, part.example(i)) for part, i in parts)]


# ------------------------------------------------------------------------------------------------ chunks and processes


@pytest.mark.parametrize("excess", [{"max_length": 2000}, {"max_length": 190, "excess_length": "truncate"}], ids=str)
@pytest.mark.parametrize("split", ["grouped", "random"])
def test_the_set_does_not_depend_on_chunks_and_processes(settings, tiny_chunks, tmp_path, split, excess):
    config = settings.model_copy(update={"split": split, **excess})
    whole = prepare.prepare(config)
    assert whole.manifest["toolsets"] == 2
    assert whole.manifest["split"]["conflicts"]
    assert bool(whole.manifest["rows"]["dropped"]) is ("excess_length" in excess)
    for rows, cores in [(1, 1), (7, 1), (7, 2), (3, 4)]:
        tiny_chunks(rows, cores)
        assert contents(prepare.prepare(config, target=tmp_path / f"{rows}-{cores}")) == contents(whole)


def test_other_processes_do_the_work(tiny_chunks):
    tiny_chunks(1, 2)
    made = list(processes.in_order(lambda number: (number**2, os.getpid()), range(20)))
    assert [(number, square) for number, (square, _) in made] == [(i, i * i) for i in range(20)]
    workers = {worker for _, (_, worker) in made}
    assert os.getpid() not in workers
    assert len(workers) <= 2
    few = list(processes.in_order(lambda _: os.getpid(), range(processes.FEW)))
    assert {worker for _, worker in few} == {os.getpid()}


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_raised_comes_in_the_chunks_order(tiny_chunks, cores):
    def task(number: int) -> int:
        if number in (6, 7):
            time.sleep(0.2 * (number == 6))  # the later one is raised first
            raise DataError("odd", where=f"row {number}", hint="even it", details=["a line"])
        return number

    tiny_chunks(1, cores)
    done = []
    with pytest.raises(DataError) as caught:
        done.extend(number for number, _ in processes.in_order(task, range(30)))
    assert str(caught.value) == "row 6: odd\n  a line\nTo fix it: even it"


@pytest.mark.parametrize("cores", [1, 2])
def test_all_problems_of_all_chunks_are_told_in_order(settings, tiny_chunks, cores):
    """What is told of a tool once is told once, wherever its rows are read."""
    unsound = [{"name": "bad name", "parameters": {"type": "object", "properties": {}}}]
    bad = {
        3: "{broken",
        9: json.dumps({"user": "a", "assistant": "b", "tools": [{"nme": "x"}]}),
        15: json.dumps({"user": "a", "assistant": "b", "tools": unsound}),
        21: json.dumps(row(1) | {"messages": conversation("<eos>", ("get_steps", {}))}),
        33: json.dumps({"user": "a", "assistant": "b", "tools": [{"nme": "x"}]}),
        39: json.dumps({"user": "a", "assistant": "b", "tools": unsound}),
        45: '{"user": "a", "user": "b"}',
        51: json.dumps(row(1) | {"messages": conversation("?", ("get_stepz", {}))}),
    }
    rows = [bad.get(i, row(i)) for i in range(60)]
    rows.insert(30, "  ")
    write(Path(settings.dataset), rows)
    with pytest.raises(DataError) as whole:
        dataset.read_examples(settings.dataset)
    tiny_chunks(4, cores)
    with pytest.raises(DataError) as caught:
        prepare.prepare(settings)
    assert str(caught.value) == str(whole.value)
    assert re.findall(r"rows\.jsonl:(\d+)", str(caught.value)) == ["4", "10", "16", "22", "47", "53"]
    assert "6 problems in 60 rows" in str(caught.value)
    assert list(Path(settings.dataset).parent.iterdir()) == [Path(settings.dataset)]


def test_blank_lines_are_counted_through_all_chunks(settings, tiny_chunks):
    rows = [row(i) for i in range(40)]
    write(Path(settings.dataset), [line for r in rows for line in (r, "")])
    tiny_chunks(3, 2)
    assert prepare.prepare(settings).manifest["source"]["notes"] == ["blank lines skipped: 40"]


def test_a_large_file_of_rows_is_read_batch_by_batch(settings, monkeypatch, tmp_path):
    whole = prepare.prepare(settings)
    monkeypatch.setattr(prepared_set_writer, "_ROWS_PER_BATCH", 5)
    parted = prepare.prepare(settings, target=tmp_path / "parted")
    assert contents(parted)[1:] == contents(whole)[1:]
    for one, other in ((parted.train, whole.train), (parted.test, whole.test)):
        assert (one.largest_token, one.shortest_prompt) == (other.largest_token, other.shortest_prompt)
        with pytest.raises(IndexError):
            one[len(one)]
    assert np.array_equal(parted.prefix, whole.prefix)


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.fixture
def long_rows(tmp_path):
    return write(tmp_path / "long.jsonl", [row(i) for i in range(LONG)])


@pytest.fixture
def start(tiny_base, long_rows):
    """Start to prepare the long rows as a command; gives the process once other processes work for it."""
    started = []

    def begin() -> tuple[subprocess.Popen, list[int]]:
        command = [sys.executable, "-m", "fitcoach_tune", "prepare", "--model", str(tiny_base), "--quiet"]
        command += ["--dataset", long_rows.name, "--output-dir", "set", "--max-length", "2000"]
        life = subprocess.Popen(
            command, cwd=long_rows.parent, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(life)
        children = Path(f"/proc/{life.pid}/task/{life.pid}/children")
        while not (found := children.read_text().split()):
            assert life.poll() is None, life.stderr.read()
            time.sleep(0.01)
        return life, [int(pid) for pid in found]

    yield begin
    for life in started:
        life.kill()
        life.communicate()


needs_cores = pytest.mark.skipif(processes.cores() < 2, reason="one core, or no fork: one process")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_ended(pids: list[int]) -> bool:
    for _ in range(1000):
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.01)
    return False


@needs_cores
def test_a_killed_worker_is_one_clear_error(start, long_rows):
    life, workers = start()
    os.kill(workers[0], signal.SIGKILL)
    _, said = life.communicate(timeout=60)
    assert said.splitlines() == [
        "error: a process that worked on the rows was killed, perhaps because memory ran out",
        "To fix it: make memory free and run it again",
    ]
    assert life.returncode == FitcoachTuneError.exit_code
    assert all_ended(workers)
    assert list(long_rows.parent.iterdir()) == [long_rows]


@pytest.fixture
def busy(start):
    """The process and its workers after some seconds, in the midst of their work: one worker was held, so that however
    fast they are they cannot have ended.
    """

    def begin(seconds: float) -> tuple[subprocess.Popen, list[int]]:
        life, workers = start()
        os.kill(workers[0], signal.SIGSTOP)
        time.sleep(seconds)
        return life, workers

    return begin


@needs_cores
@pytest.mark.parametrize("wait", [0, 1.5])
def test_ctrl_c_leaves_nothing(busy, long_rows, wait):
    """It goes to all processes, as from a terminal."""
    life, workers = busy(wait)
    os.killpg(life.pid, signal.SIGINT)
    os.kill(workers[0], signal.SIGCONT)
    _, said = life.communicate(timeout=60)
    assert (said, life.returncode) == ("interrupted\n", 130)
    assert all_ended(workers)
    assert list(long_rows.parent.iterdir()) == [long_rows]


CTRL_C_AT_PANDAS = """
import signal, sys
class CtrlC:
    def find_spec(self, name, *_):
        if name == "pandas":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
from fitcoach_tune import cli
cli.main()
"""


@needs_cores
def test_ctrl_c_while_pyarrow_imports_pandas(tiny_base, long_rows):
    """Which it does at its first conversion to numpy, dropping all that is raised meanwhile."""
    arguments = ["prepare", "--model", tiny_base, "--dataset", long_rows.name, "--output-dir", "set", "--quiet"]
    command = [sys.executable, "-c", CTRL_C_AT_PANDAS, *map(str, arguments)]
    done = subprocess.run(command, cwd=long_rows.parent, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "interrupted\n", 130)
    assert list(long_rows.parent.iterdir()) == [long_rows]


@needs_cores
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_no_others_and_no_files(busy, long_rows, number):
    life, workers = busy(0.5)
    life.send_signal(number)
    os.kill(workers[0], signal.SIGCONT)
    _, said = life.communicate(timeout=60)
    assert (said, life.returncode) == ("", -number)
    assert all_ended(workers)
    assert list(long_rows.parent.iterdir()) == [long_rows]


def test_a_disk_that_fills_up_names_the_set_and_the_bytes(settings, tiny_chunks, tmp_path):
    import resource

    tiny_chunks(10, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with EFBIG, as on a small disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write [\d,]+ bytes: File too large") as caught:
            prepare.prepare(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.where == settings.data
    assert list(tmp_path.iterdir()) == [Path(settings.dataset)]
