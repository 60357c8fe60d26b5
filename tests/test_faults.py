"""What happens to a run when its machine fails it: signals, kills, full and read-only disks, damage. All real."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitcoach_tune import files
from fitcoach_tune.training import checkpoint

from .conftest import STEPS, conversation
from .lives import SAVING, At, Lives

# 14 rows in steps of 8, in two micro-batches: two steps an epoch, the second with padding.
QUICK = ["--dtype", "fp32", "--optim", "adamw", "--learning-rate", "1e-2", "--lora-r", "4", "--lora-dropout", "0.1"]
SHORT = ["--num-train-epochs", "4", "--save-steps", "2"]


class World:
    """A folder with rows, a base, and the runs that the tests make of them."""

    def __init__(self, lives, folder, base):
        self.lives, self.folder, self.base = lives, folder, base

    def arguments(self, output, *more):
        return ["train", "--model", self.base, "--dataset", "rows.jsonl", "--output-dir", output, *QUICK, *SHORT, *more]

    def train(self, output, *more, code=0, at=None):
        return self.lives.run(*self.arguments(output, *more), cwd=self.folder, code=code, at=at)

    def resume(self, output, *more, code=0):
        return self.train(output, "--resume-from-checkpoint", "auto", *more, code=code)

    def copy(self, source, name):
        shutil.copytree(self.folder / source, self.folder / name)
        return self.folder / name

    def result(self, output):
        """The adapter, and the metrics but for the speed."""
        lines = [json.loads(line) for line in (self.folder / output / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["examples_per_second"]
        return (self.folder / output / "adapter_model.safetensors").read_bytes(), lines


@pytest.fixture(scope="module")
def world(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]
    rows = [conversation(f"{a} {b}?", ("get_steps", {})) for a, b in zip(words * 2, words + words[::-1], strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": m, "tools": [STEPS]}) + "\n" for m in rows))
    with Lives() as lives:
        yield World(lives, folder, tiny_base)


@pytest.fixture(scope="module")
def straight(world):
    """The result of a run that nothing disturbed."""
    world.train("straight")
    return world.result("straight")


@pytest.fixture(scope="module")
def stopped(world):
    """A run that SIGTERM has stopped after step 3 of 8, and what it said: two of them, each during a save."""
    life = world.train("stopped", code=10, at=At(*SAVING, (2, 3), signal="SIGTERM"))
    return "stopped", life


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------ signals


def test_sigterm_finishes_the_step_saves_and_says_how_to_go_on(world, straight, stopped):
    """The second SIGTERM arrives while the save is being written, and changes nothing."""
    name, life = stopped
    assert "SIGTERM: stopping as soon as all is saved\n" in life.err
    assert "SIGTERM: still saving\n" in life.err
    command = f"fitcoach-tune train --config {name}/config.resolved.yaml --resume-from-checkpoint auto"
    assert life.err.endswith(f"error: {name}: stopped by SIGTERM after step 3 of 8, and saved\nTo go on: {command}\n")
    assert life.out == ""
    assert checkpoint.steps(world.folder / name / "checkpoints") == [2, 3]
    world.copy(name, "again")
    arguments = [part.replace("stopped/", "again/") for part in command.split()[1:]]
    # The file names the folder that it was written for.
    world.lives.run(*arguments, "--output-dir", "again", cwd=world.folder)
    assert world.result("again") == straight
    record = json.loads((world.folder / "again/run.json").read_text())
    assert record["training"]["resumed_at"] == [3]
    assert record["config"]["resume_from_checkpoint"] is None
    assert not (world.folder / "again/checkpoints").exists()


def test_a_checkpoint_says_which_run_it_is_of_and_where_in_it(world, stopped):
    folder = world.folder / stopped[0] / "checkpoints/step-3"
    assert {file.suffix for file in folder.iterdir()} == {".json", ".jsonl", ".safetensors"}
    state = json.loads((folder / "state.json").read_text())
    assert [state[key] for key in ("step", "epoch", "seed")] == [3, 1.5, 42]
    assert state["scheduler"] == {"type": "constant", "step": 3, "steps": 8}
    assert state["rng"].startswith("none to keep: ")
    run = state["run"]
    hashes = [run["data"][f"{what}_sha256"] for what in ("data", "tools", "template")]
    hashes += [run["base"][f"{what}_sha256"] for what in ("weights", "tokenizer")]
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in hashes)
    assert run["base"]["weights_sha256"] == files.sha256_json([files.sha256_file(world.base / "model.safetensors")])
    assert run["base"].keys() >= {"name", "revision"}
    assert run["versions"].keys() >= {"fitcoach_tune", "torch", "transformers", "python"}
    assert run["config"]["lora_dropout"] == 0.1


def test_ctrl_c_during_a_long_run(world):
    """Sent from outside, at whatever the run is doing, and twice more while it saves, where it waits for them; what is
    saved is what was reported.
    """
    long = world.arguments("long", "--num-train-epochs", "100000", "--save-steps", "1000000")
    life = world.lives.start(*long, cwd=world.folder, at=At(*SAVING, (2,), signal="SIGSTOP"))
    metrics = world.folder / "long/metrics.jsonl"
    life.until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    life.send("SIGINT")
    life.until(lambda: life.state == "stopped")
    for _ in range(2):
        life.send("SIGINT")
    life.send("SIGCONT")
    assert life.wait() == 10
    assert life.err.count("SIGINT: stopping as soon as all is saved\n") == 1
    assert life.err.count("SIGINT: still saving\n") == 1  # signals that wait become one
    lines = metrics.read_text().splitlines()
    assert f"stopped by SIGINT after step {len(lines)} of 200000, and saved" in life.err
    found = checkpoint.newest(world.folder / "long/checkpoints", pytest.fail)
    assert [json.dumps(m.as_dict()) for m in found.snapshot.metrics] == lines
    assert "Traceback" not in life.err


def test_ctrl_c_before_training_begins_leaves_nothing(world, straight):
    """While the prepared set is opened: there is nothing to save."""
    life = world.train("early", code=130, at=At("open", "manifest.json", (1,), signal="SIGINT"))
    assert life.err.endswith("interrupted\n")
    assert not (world.folder / "early").exists()


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 0), ("SIGKILL", -9)])
def test_a_signal_when_all_is_trained_and_the_adapter_is_being_saved(world, straight, signal, code):
    """The rest takes seconds, and is done; killed in the midst of it, the run goes on from its last checkpoint."""
    name = f"late-{signal}"
    world.train(name, code=code, at=At("open", ".README.md.", (1,), signal=signal))
    if code:
        assert not (world.folder / name / "run.json").exists()
        assert "going on after step 8" in world.resume(name).err
    assert world.result(name) == straight
    assert (world.folder / name / "run.json").exists()


def free_port():
    """A port that stays free until it is used: below those that the system gives to whoever asks for any."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are in use")


def start_two(world, outputs, more, faults=(None, None)):
    """Two processes that train together, as torchrun would start them."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        world.lives.start(
            *world.arguments(output, "--device", "cpu", *more),
            cwd=world.folder, at=at, RANK=str(rank), LOCAL_RANK=str(rank), **shared,
        )
        for rank, (output, at) in enumerate(zip(outputs, faults, strict=True))
    ]  # fmt: skip


def test_two_processes_stop_together_and_one_goes_on(world):
    """SIGTERM reaches one of two; both end after the same step. One process then takes the whole batch."""
    epochs = ["--num-train-epochs", "3"]
    at = At(*SAVING, (2,), signal="SIGTERM")  # only the process that writes meets a save
    lives = start_two(world, ["two", "two"], epochs, (at, None))
    assert [life.wait() for life in lives] == [10, 10], "\n".join(life.err for life in lives)
    assert all("after step 3 of 3" in life.err for life in lives)
    assert "torchrun --nproc-per-node 2 -m fitcoach_tune train --config two/config.resolved.yaml" in lives[0].err
    life = world.resume("two", "--device", "cpu", *epochs)
    assert "changed since the checkpoint: devices: 1 now, 2 before" in life.err
    assert "a step stays at 16 rows: 4 on each device, 4 times" in life.err
    assert [line["step"] for line in world.result("two")[1]] == [1, 2, 3]


def test_processes_that_find_different_checkpoints_do_not_wait_for_each_other(world, stopped):
    """As on two hosts whose disks are not the same."""
    world.copy(stopped[0], "here")
    lives = start_two(world, ["here", "there"], ["--resume-from-checkpoint", "auto"])
    assert [life.wait() for life in lives] == [5, 5], "\n".join(life.err for life in lives)
    assert all("the processes have found different checkpoints" in life.err for life in lives)


# ------------------------------------------------------------------------------------------------ kills


EVERY = tuple(range(1, 100))


def kill_and_resume(world, name, arguments, kills, draw):
    """Start and kill a run, and start it again, so many times; then let it end.

    It waits at each save, so that on a busy machine it does not run away from who is to kill it: it is let go on at
    most twice, and killed in the midst of the steps up to its next save, of which there are two.
    """
    metrics = world.folder / name / "metrics.jsonl"
    arguments = [*world.arguments(name, *arguments), "--resume-from-checkpoint", "auto"]
    for _ in range(kills):
        life = world.lives.start(*arguments, cwd=world.folder, at=At(*SAVING, EVERY, signal="SIGSTOP"))
        for _ in range(draw.randint(1, 2)):
            life.until(lambda life=life: life.state == "stopped")
            before = metrics.read_text().count("\n") if metrics.exists() else 0
            life.send("SIGCONT")
        wanted = before + draw.randrange(2)
        life.until(lambda wanted=wanted: metrics.exists() and metrics.read_text().count("\n") >= wanted)
        life.send("SIGKILL")
        assert life.wait() == -9
    return world.lives.run(*arguments, cwd=world.folder)


def test_killed_five_times_it_ends_with_the_same_adapter(world):
    """kill -9 at some moment of a run of 24 steps; no line of the metrics is missing or there twice."""
    arguments = ["--num-train-epochs", "12", "--save-steps", "2"]
    world.train("undisturbed", *arguments)
    kill_and_resume(world, "killed", arguments, 5, random.Random(7))
    assert world.result("killed") == world.result("undisturbed")
    assert [line["step"] for line in world.result("killed")[1]] == list(range(1, 25))
    record = json.loads((world.folder / "killed/run.json").read_text())
    resumed = record["training"]["resumed_at"]  # where the starts began on whose way the end lies
    assert resumed == sorted(set(resumed))
    assert resumed[-1] > 0


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_it_was_killed(world, straight):
    """The first is frozen in the middle of its third save, and then killed there."""
    first = world.lives.start(*world.arguments("one"), cwd=world.folder, at=At(*SAVING, (3,), signal="SIGSTOP"))
    first.until(lambda: first.state == "stopped")
    before = tree(world.folder / "one")
    for more in ([], ["--force"], ["--resume-from-checkpoint", "auto"]):
        second = world.train("one", *more, code=6)
        assert f"another run is writing there: process {first.pid} on {socket.gethostname()}" in second.err
        assert "Traceback" not in second.err
    assert tree(world.folder / "one") == before
    first.send("SIGKILL")
    assert first.wait() == -9
    assert (world.folder / "one/.lock").exists()
    world.resume("one")
    assert world.result("one") == straight
    assert not list((world.folder / "one").rglob(".*"))


# ------------------------------------------------------------------------------------------------ what is there stays


def test_a_run_that_is_not_finished_is_not_overwritten(world, stopped):
    folder = world.copy(stopped[0], "kept")
    before = tree(folder)
    life = world.train("kept", code=6)
    assert "a run that is not finished is there, with a checkpoint of step 3" in life.err
    assert "`fitcoach-tune train --config kept/config.resolved.yaml --resume-from-checkpoint auto` goes on" in life.err
    assert "--force trains anew" in life.err
    world.train("kept", "--resume-from-checkpoint", "straight/checkpoints/step-2", code=2)
    world.train("kept", "--resume-from-checkpoint", "auto", "--force", code=2)
    assert tree(folder) == before
    life = world.train("kept", "--force", "--max-steps", "1")
    assert "the run that was there is kept as kept.previous" in life.err
    assert tree(world.folder / "kept.previous") == before
    assert len(world.result("kept")[1]) == 1


def test_a_finished_run_is_not_gone_on_with(world, straight):
    assert "a finished run is there already" in world.resume("straight", code=6).err


def test_auto_begins_where_nothing_has_begun(world):
    """So that one command, given again and again, carries a run through."""
    (world.folder / "fresh").mkdir()
    (world.folder / "fresh/metrics.jsonl").touch()  # killed before its first checkpoint
    life = world.resume("fresh", "--max-steps", "1")
    assert "no run has begun there yet: starting at the beginning" in life.err


def test_without_checkpoints_there_is_nothing_to_go_on_with(world):
    world.train("none", "--save-steps", "0", "--max-steps", "2")
    assert not (world.folder / "none/checkpoints").exists()
    (world.folder / "none/run.json").unlink()  # as if it had been killed before it ended
    life = world.resume("none", "--save-steps", "0", "--max-steps", "2", code=5)
    assert "the run there has no checkpoint" in life.err


# ------------------------------------------------------------------------------------------------ another run


def test_another_run_is_refused_and_everything_that_differs_is_listed(world, stopped):
    folder = world.copy(stopped[0], "other")
    before = tree(folder)
    life = world.resume("other", "--learning-rate", "2e-2", "--seed", "1", "--save-steps", "3", code=5)
    assert "this checkpoint is of another run" in life.err
    assert "--learning-rate: 0.01 in the checkpoint, 0.02 now" in life.err
    assert "--seed: 42 in the checkpoint, 1 now" in life.err
    assert "--save-steps" not in life.err
    rows = (world.folder / "rows.jsonl").read_text()
    (world.folder / "rows2.jsonl").write_text(rows.replace("golf", "polo"))
    life = world.resume("other", "--dataset", "rows2.jsonl", code=5)
    assert "the prepared rows: " in life.err
    assert "--dataset: rows.jsonl in the checkpoint, rows2.jsonl now" in life.err
    base = world.folder / "base"
    shutil.copytree(world.base, base)
    with (base / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\x3f")
    life = world.resume("other", "--model", base, "--data", "output/prepared/" + prepared_name(folder), code=5)
    assert "the base model's weights: " in life.err
    assert "--model: " in life.err
    assert life.err.count(" in the checkpoint, ") == 2
    assert tree(folder) == before


def prepared_name(folder):
    found = checkpoint.newest(folder / "checkpoints", pytest.fail)
    return Path(found.state["run"]["config"]["data"]).name


def test_the_save_cadence_may_change_and_is_said(world, straight, stopped):
    """With a number asked for, so many checkpoints are kept after the run, beside what belongs to the adapter."""
    world.copy(stopped[0], "cadence")
    life = world.resume("cadence", "--save-steps", "5", "--save-total-limit", "9")
    assert "changed since the checkpoint: --save-steps: 2 before, 5 now" in life.err
    assert world.result("cadence") == straight
    assert checkpoint.steps(world.folder / "cadence/checkpoints") == [2, 3, 5, 8]
    listed = json.loads((world.folder / "cadence/run.json").read_text())["files"]
    assert not [name for name in listed if "step" in name or "checkpoint" in name]


def test_going_on_elsewhere_leaves_the_source_as_it_is(world, straight, stopped):
    before = tree(world.folder / stopped[0])
    world.train("elsewhere", "--resume-from-checkpoint", f"{stopped[0]}/checkpoints/step-2")
    assert world.result("elsewhere") == straight
    assert tree(world.folder / stopped[0]) == before


# ------------------------------------------------------------------------------------------------ damage


def test_a_damaged_checkpoint_is_skipped_by_name(world, straight, stopped):
    folder = world.copy(stopped[0], "damaged")
    file = folder / "checkpoints/step-3/optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "los')  # the last line of a run that was killed while it wrote
    life = world.resume("damaged")
    assert (
        "warning: the checkpoint damaged/checkpoints/step-3 is skipped: optimizer.safetensors has changed" in life.err
    )
    assert "going on after step 2, from damaged/checkpoints/step-2" in life.err
    assert world.result("damaged") == straight


def test_without_a_whole_checkpoint_nothing_begins_anew(world, stopped):
    folder = world.copy(stopped[0], "ruined")
    for step in (2, 3):
        (folder / f"checkpoints/step-{step}/manifest.json").unlink()
    before = tree(folder)
    life = world.resume("ruined", code=5)
    assert "none of the checkpoints there can be used" in life.err
    assert "step-3: this is not a checkpoint: manifest.json is missing" in life.err
    assert tree(folder) == before


def test_a_pickle_is_refused_by_name(world, stopped):
    folder = world.copy(stopped[0], "pickled")
    (folder / "checkpoints/step-3/optimizer.pt").write_bytes(b"\x80\x04.")
    life = world.resume("pickled", "--resume-from-checkpoint", "pickled/checkpoints/step-3", code=5)
    assert "it holds optimizer.pt, a file that can hold code: nothing of it is read" in life.err


def test_nothing_is_unpickled_and_no_pickle_is_left(world, straight, stopped):
    """Python announces each class and function that a pickle names; the first one would kill the run."""
    world.copy(stopped[0], "unpickled")
    arguments = world.arguments("unpickled", "--resume-from-checkpoint", "auto", "--save-total-limit", "9")
    world.lives.run(*arguments, cwd=world.folder, at=At("pickle.find_class", "", EVERY, signal="SIGKILL"))
    assert world.result("unpickled") == straight
    written = [path for path in (world.folder / "unpickled").rglob("*") if path.is_file()]
    assert len(written) > 20
    kinds = {path.suffix for path in written}
    assert kinds == {".json", ".jsonl", ".safetensors", ".yaml", ".jinja", ".png", ".md"}


# ------------------------------------------------------------------------------------------------ disks


@contextlib.contextmanager
def disk(folder, size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def test_a_disk_that_is_too_small_is_found_before_the_model_is_loaded(world):
    """The base's weights are no weights: loading them would be another error."""
    broken = world.copy(os.path.relpath(world.base, world.folder), "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with disk(world.folder / "tight", "20m") as small:
        life = world.train(small / "run", "--model", broken, code=6)
        # r 4 on q, k, v and o (32 to 64, 16, 16, and 64 to 32) of two layers; two more numbers for each in AdamW.
        lora = 2 * 4 * ((32 + 64) + (32 + 16) + (32 + 16) + (64 + 32))
        size = 4 * lora + (broken / "tokenizer.json").stat().st_size + 3 * 4 * (lora + 2 * lora + 2 * 8)
        assert f"error: {small / 'run'}: cannot write {size:,} bytes: No space left on device" in life.err
        assert list(small.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True, capture_output=True)
        life = world.train(small / "run", "--model", broken, code=6)
        assert f"error: {small / 'run'}: cannot write: Read-only file system" in life.err


@pytest.mark.parametrize(("place", "reason"), [
    ("locked/run", "Permission denied"), ("rows.jsonl/run", "Not a directory"), ("locked/../" + "n" * 300, "too long"),
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_found_before_the_model_is_loaded(world, place, reason):
    """What the modes forbid is forbidden to root as well: see `powers`."""
    (world.folder / "locked").mkdir(mode=0o555, exist_ok=True)
    life = world.train(place, "--model", "there-is-none", code=6)
    assert re.search(rf"error: .*{place}.*: .*{reason}\n", life.err)
    assert "Traceback" not in life.err
    assert list((world.folder / "locked").iterdir()) == []


@pytest.mark.parametrize(("file", "opened", "step"), [
    ("metrics.jsonl", "/metrics.jsonl', 'a", 0), ("adapter_config.json", "/.adapter_config.json.", 8),
    ("tokenizer.json", "/.tokenizer.json.", 8),
])  # fmt: skip
def test_a_disk_that_fills_up_while_something_else_is_written(world, straight, file, opened, step):
    """The metrics, or a part of the finished adapter; with room again the run goes on from its last checkpoint."""
    with disk(world.folder / f"filling-{step}-{file}", "80m") as small:
        life = world.train(small / "run", code=6, at=At("open", opened, (1,), fill=str(small)))
        where = re.escape(str(small / "run" / file))
        assert re.search(rf"error: {where}: cannot write [\d,]+ bytes: No space left on device\n", life.err), life.err
        assert "Traceback" not in life.err
        assert checkpoint.newest(small / "run/checkpoints", pytest.fail).snapshot.step == step
        (small / "full").unlink()
        world.resume(small / "run")
        assert world.result(small / "run") == straight


def test_a_disk_that_fills_up_while_saving(world, straight):
    with disk(world.folder / "filling", "80m") as small:
        life = world.train(small / "run", code=6, at=At(*SAVING, (3,), fill=str(small)))
        checkpoints = small / "run/checkpoints"
        assert f"error: {checkpoints / 'step-4'}: cannot write " in life.err
        assert " bytes: No space left on device" in life.err
        assert "Traceback" not in life.err
        assert sorted(path.name for path in checkpoints.iterdir()) == ["step-0", "step-2"]
        (small / "full").unlink()
        world.resume(small / "run")
        assert world.result(small / "run") == straight


# ------------------------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_values_that_are_not_finite_in_the_last_step(world, dtype):
    """A rate of 1e30 leaves the first update finite and no further loss."""
    name = f"spoiled-{dtype}"
    wild = [
        "--learning-rate",
        "1e30",
        "--max-grad-norm",
        "0",
        "--max-steps",
        "2",
        "--save-steps",
        "1",
        "--dtype",
        dtype,
    ]
    life = world.train(name, *wild, code=8)
    assert "error: step 2: the loss is not finite" in life.err
    rows = life.err.split("training rows of this step: ")[1].splitlines()[0].split(", ")
    assert len(rows) == 6  # 14 - 8
    for row in rows:
        number, _, origin = row.partition(" ")
        assert 0 <= int(number) < 14
        assert origin.startswith("(rows.jsonl:")
    assert f"the last checkpoint is kept: {name}/checkpoints/step-1" in life.err
    found = checkpoint.newest(world.folder / name / "checkpoints", pytest.fail)
    assert found.snapshot.step == 1
    checkpoint.check_finite(found.snapshot)
    assert not (world.folder / name / "adapter_model.safetensors").exists()


# ------------------------------------------------------------------------------------------------ the soak


def processor_seconds(pid):
    """What a process has used so far: its clock, as clock_getcpuclockid(3) names it on Linux."""
    return time.clock_gettime(~pid << 3 | 2)


@pytest.mark.soak
def test_killed_fifty_times_it_ends_with_the_same_adapter(world):
    """Processes as a user starts them, killed at any moment, those of starting and ending included.

    The moments are counted in processor time, so that a busy machine does not move them all to the start of a run.
    """
    draw, kills = random.Random(2024), 0
    arguments = ["--num-train-epochs", "1000", "--save-steps", "5"]  # longer than fifty starts come
    unsoaked, soaked = (
        [sys.executable, "-m", "fitcoach_tune", *map(str, world.arguments(name, *arguments)), *more]
        for name, more in (("unsoaked", []), ("soaked", ["--resume-from-checkpoint", "auto"]))
    )
    subprocess.run(unsoaked, cwd=world.folder, check=True, capture_output=True)
    began = time.monotonic()
    while True:
        moment = draw.uniform(0, 15) if kills < 50 else None
        with subprocess.Popen(soaked, cwd=world.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
            while moment and run.poll() is None and processor_seconds(run.pid) < moment:
                time.sleep(0.005)
            if moment and run.poll() is None:
                run.kill()
                kills += 1
                run.wait()
                if (world.folder / "soaked/run.json").exists():  # killed when all was done, but before it could say so
                    break
                continue
            said = run.stderr.read().decode()
        assert run.returncode == 0, said
        break
    assert kills == 50, f"the run ended after {kills} kills"
    assert world.result("soaked") == world.result("unsoaked")
    resumed = json.loads((world.folder / "soaked/run.json").read_text())["training"]["resumed_at"]
    print(f"50 kills, {len(resumed)} of the starts resumed at {resumed}, {time.monotonic() - began:.0f} s")
