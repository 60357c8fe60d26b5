"""Checkpoints: whole or not there, whatever is killed, full, flipped or forged. All faults are real ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune import files
from fitcoach_tune.config import Config
from fitcoach_tune.errors import ConfigError, MismatchError, OutputError, TrainingError
from fitcoach_tune.training import checkpoint
from fitcoach_tune.training.checkpoint import Checkpoint, Snapshot, Store
from fitcoach_tune.training.metrics import StepMetrics

NAMES = ["adapter_model.safetensors", "manifest.json", "metrics.jsonl", "optimizer.safetensors", "state.json"]
RUN = {"data": {}, "base": {}, "config": {}, "device": {"first": 1, "count": 1}, "versions": {}, "batch_size": 4}


def metrics(step: int) -> StepMetrics:
    # Numbers with no short decimal form.
    return StepMetrics(
        step, step / 3, 1 / (step + 2), step * 0.1, 5e-5 / 3, 10 / 7, 11, 0.1 + 0.2 if step == 2 else None
    )


def snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    lora = {f"base_model.model.{n}.lora_A.weight": torch.randn(4, 6, generator=generator) for n in "ab"}
    state = {f"{key}.exp_avg": torch.randn(4, 6, generator=generator) for key in lora}
    counts = {f"{key}.step": torch.tensor(float(step)) for key in lora}
    return Snapshot(lora, state | counts, [metrics(i + 1) for i in range(step)])


def state(**more) -> dict:
    return {"run": RUN, "seconds": 1.5, "resumed_at": [], **more}


def assert_same(found: Checkpoint, expected: Snapshot) -> None:
    for part in ("lora", "optimizer"):
        mine, theirs = getattr(found.snapshot, part), getattr(expected, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert found.snapshot.metrics == expected.metrics


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 2 and 3."""
    store = Store(tmp_path / "checkpoints", 2)
    for step in (2, 3):
        store.save(snapshot(step), state())
    return store.folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------ writing


def test_what_is_read_is_what_was_written(tmp_path) -> None:
    path = checkpoint.write(tmp_path, snapshot(3), state(epoch=1.25))
    assert path == tmp_path / "step-3"
    assert names(path) == NAMES
    found = checkpoint.read(path)
    assert_same(found, snapshot(3))
    assert found.state == state(epoch=1.25, step=3)
    assert found.snapshot.step == 3


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    """Every file whole, and the folder's list of them; and after the renaming the list that has the new name."""
    synced, real = [], os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        found = os.fstat(handle)
        synced.append((found.st_ino, found.st_size, (tmp_path / "step-3").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    path = checkpoint.write(tmp_path, snapshot(3), state())
    before = {inode: size for inode, size, renamed in synced if not renamed}
    for file in path.iterdir():
        assert before[file.stat().st_ino] == file.stat().st_size, file.name
    assert path.stat().st_ino in before
    assert [inode for inode, _, renamed in synced if renamed] == [tmp_path.stat().st_ino]


def test_the_beginning_can_be_saved(tmp_path) -> None:
    assert checkpoint.read(checkpoint.write(tmp_path, snapshot(0), state())).snapshot.metrics == []


@pytest.mark.parametrize(("mask", "for_files", "for_folders"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
def test_modes_follow_the_umask(tmp_path, mask, for_files, for_folders) -> None:
    before = os.umask(mask)
    try:
        path = checkpoint.write(tmp_path / "c", snapshot(1), state())
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {for_files}
    assert path.stat().st_mode & 0o777 == for_folders


def test_the_newest_are_kept(tmp_path) -> None:
    store = Store(tmp_path, 2)
    kept = []
    for step in (0, 1, 2, 3):
        store.save(snapshot(step), state())
        kept.append(checkpoint.steps(tmp_path))
        assert store.newest == tmp_path / f"step-{step}"
    assert kept == [[0], [0, 1], [1, 2], [2, 3]]
    assert names(tmp_path) == ["step-2", "step-3"]


def test_steps_are_ordered_as_numbers_and_nothing_else_is_one(tmp_path) -> None:
    for name in ("step-10", "step-9", "step-x", "step-", ".step-11.abc.incomplete", "step-12.replaced", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [9, 10]
    assert checkpoint.steps(tmp_path / "nowhere") == []


def test_what_lies_after_the_step_that_was_resumed_goes_once_there_is_a_new_one(folder) -> None:
    """Step 3 was damaged and skipped: counted as one of two it would push out the checkpoint that is good."""
    (folder / "step-3/state.json").write_text("{}")
    store = Store(folder, 2, resumed=2)
    assert store.newest == folder / "step-2"
    store.save(snapshot(4), state())
    assert checkpoint.steps(folder) == [2, 4]


def test_a_checkpoint_may_be_written_again(folder) -> None:
    """Of a step that was damaged, or that the run comes to for the second time."""
    (folder / "step-3/metrics.jsonl").write_bytes(b"")
    Store(folder, 2, resumed=2).save(snapshot(3), state())
    assert_same(checkpoint.read(folder / "step-3"), snapshot(3))
    assert names(folder) == ["step-2", "step-3"]


@pytest.mark.parametrize(("part", "key", "value"), [
    ("lora", "base_model.model.a.lora_A.weight", float("nan")),
    ("lora", "base_model.model.b.lora_A.weight", float("inf")),
    ("optimizer", "base_model.model.b.lora_A.weight.exp_avg", float("-inf")),
])  # fmt: skip
def test_weights_that_are_not_finite_are_refused(part, key, value) -> None:
    taken = snapshot(3)
    checkpoint.check_finite(taken)
    getattr(taken, part)[key][1, 2] = value
    with pytest.raises(TrainingError, match=f"^step 3: the update made {key} not finite"):
        checkpoint.check_finite(taken)


@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ("all-linear",), ("no_such_layer",)])
def test_sizes_are_known_before_the_model_is(make_tiny, optim, targets) -> None:
    from fitcoach_tune.training import adapter
    from fitcoach_tune.training.optim import make_optimizer

    config, model = Config(optim=optim, target_modules=targets, lora_r=4), make_tiny()
    expected = [0, 0]
    if targets != ("no_such_layer",):
        adapter.attach(model, rank=4, alpha=8, dropout=0.0, target_modules=list(targets), seed=0)
        lora = adapter.trained_parameters(model)
        tensors = checkpoint.optimizer_tensors(make_optimizer(config, lora.values()), lora)
        expected = [sum(t.nbytes for t in part.values()) for part in (lora, tensors)]
        assert min(expected) > 0
    assert checkpoint.sizes(model.config, config) == expected


def test_restoring_refuses_tensors_that_do_not_fit() -> None:
    target = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    checkpoint.restore(target, {"a": torch.ones(2, 3), "b": torch.tensor(5.0)})
    assert target["a"].sum() == 6
    assert target["b"] == 5
    for bad in ({"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2), "b": torch.ones(())},
                {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(())},
                {"a": torch.ones(2, 3), "b": torch.ones(()), "c": torch.ones(())}):  # fmt: skip
        with pytest.raises(MismatchError, match=r"does not fit this model: [abc] differs"):
            checkpoint.restore(target, bad)


# ------------------------------------------------------------------------------------------------ damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_is_skipped_by_name_and_the_one_before_is_used(folder, name, damage) -> None:
    damage(folder / "step-3" / name)
    warnings = []
    found = checkpoint.newest(folder, warnings.append)
    assert_same(found, snapshot(2))
    (warning,) = warnings
    assert warning.startswith(f"the checkpoint {folder / 'step-3'} is skipped: ")
    assert name in warning or name == "manifest.json"


def test_none_valid_is_an_error_that_says_what_is_wrong_with_each(folder) -> None:
    cut(folder / "step-2/optimizer.safetensors")
    (folder / "step-3/state.json").unlink()
    with pytest.raises(MismatchError, match="none of the checkpoints there can be used") as caught:
        checkpoint.newest(folder, lambda _: None)
    size = (folder / "step-2/optimizer.safetensors").stat().st_size
    assert caught.value.details == [
        "step-3: state.json is missing",
        f"step-2: optimizer.safetensors has {size:,} bytes, not {size + 2}",
    ]
    assert caught.value.where == str(folder)
    with pytest.raises(MismatchError, match="the run there has no checkpoint"):
        checkpoint.newest(folder / "nowhere", lambda _: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return checkpoint.write(tmp_path_factory.mktemp("whole"), snapshot(2), state())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_is_read_as_something_else(whole, data) -> None:
    file = whole / data.draw(st.sampled_from(NAMES))
    before = file.read_bytes()
    at, value = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(before)
    changed[at] ^= value
    file.write_bytes(changed)
    try:
        found = checkpoint.read(whole)
    except MismatchError:
        found = None
    finally:
        file.write_bytes(before)
    if found:
        assert file.name == "manifest.json"  # a byte of its layout
        assert_same(found, snapshot(2))


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "scheduler.pkl", "x.ckpt", "rng_state.pth"])
def test_pickles_are_refused_by_name(folder, name) -> None:
    """As an other trainer leaves them; unpickling this one would make a file."""
    trap = folder / "sprung"
    (folder / "step-3" / name).write_bytes(f"cbuiltins\nopen\n(V{trap}\nVw\ntR.".encode())
    warnings = []
    assert checkpoint.newest(folder, warnings.append).snapshot.step == 2
    assert f"it holds {name}, a file that can hold code" in warnings[0]
    with pytest.raises(MismatchError, match="a file that can hold code is never read"):
        checkpoint.read(folder / "step-3" / name)
    assert not trap.exists()


@pytest.mark.parametrize(("manifest", "message"), [
    ("[]", "not a checkpoint of this version"),
    ('{"format": 2}', "not a checkpoint of this version"),
    ('{"format": 1}', "the manifest does not list adapter_model.safetensors"),
    ('{"format": 1, "files": {"adapter_model.safetensors": 3}}', "does not list adapter_model.safetensors"),
    ('{"format": 1, "files": {"../../secret": {}}}', "it lists '../../secret', which leads out of its folder"),
    ('{"format": 1, "files": {"adapter_model.safetensors": {"bytes": [], "sha256": {}}}}', "bytes, not"),
    ("[" * 100_000, "a checkpoint is damaged"),
])  # fmt: skip
def test_manifests_that_lie(folder, manifest, message) -> None:
    (folder / "step-3/manifest.json").write_text(manifest)
    with pytest.raises(MismatchError, match=message):
        checkpoint.read(folder / "step-3")


def forge(path: Path, **contents: str) -> None:
    """Put other contents into a checkpoint, with a manifest that agrees."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, text in contents.items():
        file = path / {"state": "state.json", "metrics": "metrics.jsonl", "lora": "adapter_model.safetensors"}[name]
        file.write_text(text)
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": files.sha256_file(file)}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("contents", [
    {"state": "[]"}, {"state": "{}"}, {"state": '{"step": 3}'}, {"state": '{"step": 3, "run": []}'}, {"state": "nul"},
    {"state": json.dumps(state(step=3, run={**RUN, "config": None}))},
    {"state": json.dumps(state(step=3, run={**RUN, "batch_size": "64"}))},
    {"state": json.dumps(state(step=3, seconds="1"))}, {"state": json.dumps(state(step=3, resumed_at=None))},
    {"state": json.dumps(state(step=2))}, {"state": "[" * 100_000},
    {"metrics": ""}, {"metrics": "{}\n{}\n{}\n"}, {"metrics": "1\n2\n3\n"}, {"lora": "not safetensors"}, {"lora": ""},
])  # fmt: skip
def test_contents_that_are_none(folder, contents) -> None:
    forge(folder / "step-3", **contents)
    with pytest.raises(MismatchError, match="the checkpoint is damaged"):
        checkpoint.read(folder / "step-3")


def test_a_place_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        checkpoint.read(tmp_path / "step-9")
    with pytest.raises(MismatchError, match="not a checkpoint"):
        checkpoint.read(tmp_path)


# ------------------------------------------------------------------------------------------------ full and read-only


@contextlib.contextmanager
def disk(folder: Path, size: str):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_where_and_how_much(tmp_path) -> None:
    with disk(tmp_path / "disk", "128k") as small:
        store = Store(small / "checkpoints", 1)
        store.save(snapshot(1), state())
        (small / "full").write_bytes(bytes(128 << 10 >> 1))
        taken = snapshot(2)
        taken.lora["big"] = torch.zeros(1 << 14)
        with pytest.raises(OutputError, match="cannot write") as caught:
            store.save(taken, state())
        size = int(caught.value.what.split()[2].replace(",", ""))
        assert (1 << 16) < size < (1 << 16) + 10_000
        assert "No space left on device" in caught.value.what
        assert caught.value.where == str(small / "checkpoints/step-2")
        assert names(small / "checkpoints") == ["step-1"]
        assert_same(checkpoint.newest(store.folder, lambda _: None), snapshot(1))
        (small / "full").unlink()  # somebody makes room: the next one is written, and only then the old one goes
        store.save(snapshot(3), state())
        assert names(small / "checkpoints") == ["step-3"]


def test_a_disk_that_became_read_only_keeps_what_is_there(tmp_path) -> None:
    with disk(tmp_path / "disk", "128k") as small:
        store = Store(small / "checkpoints", 1)
        store.save(snapshot(1), state())
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True, capture_output=True)
        with pytest.raises(OutputError, match="Read-only file system"):
            store.save(snapshot(2), state())
        assert_same(checkpoint.newest(store.folder, lambda _: None), snapshot(1))


# ------------------------------------------------------------------------------------------------ killed

# Saves again and again, each time in a child that kills itself one line of the saving code later; the parent looks at
# what is left as the next run would. The kills are exhaustive as far as Python goes: they stand before every line of
# the two modules that write.
KILL_EVERYWHERE = """
import json, os, shutil, signal, sys
from pathlib import Path
from fitcoach_tune import files
from fitcoach_tune.training import checkpoint
from tests.training.test_checkpoint import assert_same, snapshot, state

base, place = Path(sys.argv[1]), sys.argv[2]
watched = {files.__file__, checkpoint.__file__}
store = checkpoint.Store(base / "before", 2)
for step in (1, 2):
    store.save(snapshot(step), state())
if place == "again":  # the new checkpoint takes the place of one that is there
    checkpoint.write(base / "before", snapshot(3), state())
    (base / "before/step-3/state.json").unlink()
outcomes, point, ended = [], 0, False
while not ended:
    point += 1
    folder = base / "now"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base / "before", folder)
    child = os.fork()
    if child == 0:
        left = point

        def trace(frame, event, _):
            global left
            if frame.f_code.co_filename not in watched:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        checkpoint.Store(folder, 2, resumed=2).save(snapshot(3), state())
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found = checkpoint.newest(folder, lambda _: None)
    assert_same(found, snapshot(found.snapshot.step))
    outcomes.append(found.snapshot.step)
    # The next run goes on from it, and leaves nothing of this one.
    files.sweep(folder)
    checkpoint.Store(folder, 2, resumed=found.snapshot.step).save(snapshot(4), state())
    left_there = sorted(p.name for p in folder.iterdir())
    assert left_there == [f"step-{found.snapshot.step}", "step-4"], left_there
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("place", ["new", "again"])
def test_killed_at_every_line_of_a_save_a_whole_checkpoint_is_left(place) -> None:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # waiting for a disk would add nothing but time
    with tempfile.TemporaryDirectory(dir=memory) as base:
        done = subprocess.run(
            [sys.executable, "-c", KILL_EVERYWHERE, base, place],
            cwd=Path(__file__).parents[2], capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 40
    assert outcomes == sorted(outcomes)  # the old one up to the rename, and the new one from there on
    assert set(outcomes) == {2, 3}
