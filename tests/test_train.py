"""The train verb as a user runs it, on a tiny model over the real vocabulary: what it writes, refuses and keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from fitcoach_tune import config as configuration

from .conftest import QUICK, SLEEP, STEPS, conversation


@pytest.fixture
def train(run_cli, tiny_base, rows_file):
    def run(*extra, **kwargs):
        return run_cli(
            "train", "--model", tiny_base, "--dataset", rows_file, "--output-dir", "run", *QUICK, *extra, **kwargs
        )

    return run


def test_the_run_directory(finished_run, tiny_base):
    _, run, printed = finished_run
    names = {file.name for file in run.iterdir()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.resolved.yaml",
        "loss.png", "metrics.jsonl", "prompt.json", "run.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert {"path": "output/one", **record} == printed
    assert record["training"]["steps"] == 4
    assert record["training"]["resumed_at"] == []
    assert record["training"]["last_loss"] < record["training"]["first_loss"]
    assert len(record["training"]["eval_losses"]) == 2
    assert record["check"]["lora_b_norm"] > 0
    assert record["check"]["logit_difference"] < 1e-3 < record["check"]["logit_change_from_base"]
    # The price is rounded to a hundredth of a cent.
    assert record["price"]["total"] == pytest.approx(record["seconds"]["total"] / 1000, abs=1e-4)
    assert set(record["files"]) == names - {"run.json"}
    assert (run / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob("*.pt")) + list(run.glob("*.bin")) + list(run.glob("*.pkl"))
    modes = {file.stat().st_mode & 0o777 for file in run.iterdir()}
    assert modes == {0o666 & ~current_umask()}


def current_umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_metrics_have_a_line_a_step(finished_run):
    _, run, record = finished_run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all({"loss", "grad_norm", "learning_rate", "examples_per_second", "epoch"} <= line.keys() for line in lines)
    assert lines[-1]["eval_loss"] == record["training"]["eval_losses"][-1]["eval_loss"]


def test_the_resolved_config_repeats_the_run(finished_run, run_cli):
    """The file that a run leaves is a configuration that gives the same adapter again, bit for bit."""
    folder, run, _ = finished_run
    resolved = configuration.load_config(str(run / "config.resolved.yaml"))
    assert resolved.learning_rate == 1e-2
    run_cli("train", "--config", run / "config.resolved.yaml", "--output-dir", "output/again", cwd=folder, check=True)
    first, second = (load_file(folder / "output" / n / "adapter_model.safetensors") for n in ("one", "again"))
    assert all((first[k] == second[k]).all() for k in first)


def test_the_readmes_example_needs_no_package_of_ours(finished_run, run_example):
    """transformers and peft alone: same greedy call as the program's own engine."""
    folder, run, record = finished_run
    plain = run_example(run, "bed c", cwd=folder)
    from fitcoach_tune.infer import FunctionCaller

    limit = record["config"]["max_new_tokens"]
    caller = FunctionCaller.from_adapter(str(run), device="cpu", max_new_tokens=limit, constrained=False)
    assert caller("bed c").raw == plain
    assert len(plain) > 10


def test_a_finished_run_is_not_overwritten(finished_run, run_cli, tiny_base):
    folder, run, _ = finished_run
    before = {f.name: f.read_bytes() for f in run.iterdir()}
    done = run_cli("train", "--model", tiny_base, "--dataset", "rows.jsonl", "--output-dir", "output/one", cwd=folder)
    assert done.returncode == 6
    assert "a finished run is there already" in done.stderr
    assert "--force" in done.stderr
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before


def test_force_keeps_the_old_run(train, tmp_path):
    train("-q", check=True)
    first = (tmp_path / "run/run.json").read_text()
    done = train("--force", "--max-steps", "1", check=True)
    assert "kept as run.previous" in done.stderr
    assert (tmp_path / "run.previous/run.json").read_text() == first
    assert json.loads((tmp_path / "run/run.json").read_text())["training"]["steps"] == 1


def test_what_was_not_finished_never_replaces_what_was(train, tmp_path):
    train("-q", check=True)
    first = (tmp_path / "run/run.json").read_text()
    for _ in range(2):  # it moves the finished one; the second time there is only what the first has left
        failed = train("--force", "--learning-rate", "1e30", "--lora-dropout", "0")
        assert failed.returncode == 8, failed.stderr
    assert "kept as run.unfinished" in failed.stderr
    assert (tmp_path / "run.previous/run.json").read_text() == first
    train("--force", "--max-steps", "1", "-q", check=True)
    assert (tmp_path / "run.previous/run.json").read_text() == first


def test_a_folder_without_a_name_of_its_own_does_not_step_aside(train, tmp_path):
    train("-q", check=True)
    done = train("--force", "--output-dir", ".", cwd=tmp_path / "run")
    assert done.returncode == 6
    assert "--output-dir ." in done.stderr


def test_a_name_misspelt_is_no_reason_to_train_on_other_rows(run_cli, tiny_base, tmp_path):
    """A preset names rows, too; they would be prepared and trained on in place of those that were meant."""
    done = run_cli(
        "train", "--config", "offline", "--model", tiny_base, "--data", "sett", "--output-dir", "run", *QUICK
    )
    assert done.returncode == 2
    assert "--data sett: there is no prepared set" in done.stderr
    assert "fitcoach-tune prepare --output-dir sett" in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == []


def test_a_log_in_the_run_is_not_a_part_of_it(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").touch()  # as a run that did not come far has left it
    (tmp_path / "run/log.txt").write_text("begun\n")
    train("-q", check=True)
    assert "log.txt" not in json.loads((tmp_path / "run/run.json").read_text())["files"]


def test_a_set_is_not_taken_for_another_one(train, tmp_path, rows_file):
    """With `--data`, what is asked of the rows has to be what the set was made with; and newer rows are spoken of."""
    train("--data", "set", "--max-steps", "1", "-q", check=True)
    other = train("--data", "set", "--dataset", "other.jsonl", "--test-size", "0.5", "--force")
    assert other.returncode == 2
    for part in ("set set was made otherwise", "--dataset other.jsonl, and it has", "--test-size 0.5, and it has 0.3"):
        assert part in other.stderr
    rows_file.write_text(rows_file.read_text() + rows_file.read_text().replace("alpha", "aleph"))
    again = train("--data", "set", "--max-steps", "1", "--force", check=True)
    assert "using the prepared set set, made from" in again.stderr
    assert "has changed since then" in again.stderr
    assert train("--data", "set", "--dry-run").returncode == 6  # a run is there


def test_paths_at_home(train, tmp_path):
    """`~` behind an equals sign, which no shell expands, for the rows, the set and the run."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/rows.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    flags = [f"--{name}=~/{place}" for name, place in [("dataset", "rows.jsonl"), ("data", "set"), ("output-dir", "r")]]
    done = train(*flags, "--max-steps", "1", "-q", check=True, HOME=str(tmp_path / "home"))
    assert done.stdout.strip() == str(tmp_path / "home/r")
    assert {"r", "rows.jsonl", "set"} <= {path.name for path in (tmp_path / "home").iterdir()}
    assert not (tmp_path / "~").exists()


def test_changed_rows_are_prepared_again(train, tmp_path, rows_file):
    train("-q", check=True)
    rows_file.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:-4]))
    done = train("--force", check=True)
    assert "again: it, its tools or this program may have changed" in done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["data"]["rows"]["read"] == 16


def test_changed_tools_are_prepared_again(run_cli, tiny_base, tmp_path):
    """Rows without tools of their own, and a file of tools whose description changes between two runs."""
    rows = [conversation(f"walk {w} {w}", ("get_steps", {})) for w in ("alpha", "bravo", "charlie", "delta")]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in rows))
    flags = ["--model", tiny_base, "--dataset", "bare.jsonl", "--tools", "tools.json", "--output-dir", "run", *QUICK]
    (tmp_path / "tools.json").write_text(json.dumps([STEPS]))
    run_cli("train", *flags, "-q", check=True)
    assert "using the prepared set" in run_cli("train", *flags, "--force", check=True).stderr
    (tmp_path / "tools.json").write_text(json.dumps([STEPS]).replace("Does get_steps.", "Counts."))
    done = run_cli("train", *flags, "--force", check=True)
    assert "again: it, its tools or this program may have changed" in done.stderr
    assert "Counts." in (tmp_path / "run/prompt.json").read_text()


def test_a_prepared_set_brings_its_own_settings(run_cli, train, rows_file, tiny_base, tmp_path):
    run_cli(
        "prepare",
        "--dataset",
        rows_file,
        "--model",
        tiny_base,
        "--output-dir",
        "set",
        "--test-size",
        "0.5",
        "-q",
        check=True,
    )
    train("--data", "set", "-q", check=True)
    resolved = yaml.safe_load((tmp_path / "run/config.resolved.yaml").read_text())
    assert resolved["test_size"] == 0.5
    assert resolved["data"] == "set"
    (tmp_path / "set/train.arrow").write_bytes(b"")
    done = train("--data", "set", "--force")
    assert done.returncode == 5
    assert "train.arrow has changed" in done.stderr
    assert (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--lora-r", "0", "--learning-rate", "-1"], 2, "2 settings cannot be used"),
    (["--target-modules", "q_prj"], 2, "choose from down_proj"),
    (["--device", "cuda"], 7, "no cuda device"),
    (["--device", "tpu"], 7, "--device tpu"),
    (["--num-devices", "2"], 7, "torchrun"),
    (["--lora-alpha", "1e7"], 2, "--lora-alpha"),
    (["--model", "no/such/folder"], 2, "no such folder"),
    (["--config", "ofline"], 2, "did you mean offline"),
    (["--learning-rate", "1e30", "--max-grad-norm", "0"], 8, "is not finite"),
])  # fmt: skip
def test_bad_input_gets_one_clear_error(train, tmp_path, flags, code, message):
    done = train(*flags)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/run.json").exists()


def test_an_output_that_cannot_be_written_is_found_before_training(train, tmp_path):
    (tmp_path / "file").write_text("")
    done = train("--output-dir", "file/run")
    assert done.returncode == 6
    assert "file" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    done = train("--output-dir", "mine")
    assert done.returncode == 6
    assert "not a run of this program" in done.stderr


def test_tensorboard(train, tmp_path):
    pytest.importorskip("tensorboard")
    train("--report-to", "tensorboard", "-q", check=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_trackio(train, tmp_path):
    done = train("--report-to", "trackio", check=True, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.stdout.strip() == "run"
    script = (
        "from trackio.sqlite_storage import SQLiteStorage as s\n"
        "import json; print(json.dumps([[m['step'], m['loss']] for m in s.get_logs('fitcoach-tune', 'run')]))"
    )
    read = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert json.loads(read.stdout) == [[line["step"], line["loss"]] for line in lines]


def test_two_processes_give_the_same_adapter_as_one(train, run_cli, tiny_base, rows_file, tmp_path):
    """torchrun with gloo, two processes of two rows against one of four; 14 rows leave a partial last batch."""
    shared = ["--lora-dropout", "0", "--gradient-accumulation-steps", "2"]
    train(*shared, "--per-device-train-batch-size", "4", "-q", check=True)
    arguments = ["train", "--model", tiny_base, "--dataset", rows_file, "--output-dir", "two", *QUICK, *shared]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
         "--nproc-per-node", "2", "-m", "fitcoach_tune", *map(str, arguments),
         "--per-device-train-batch-size", "2", "--device", "cpu"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (value - two[key]).norm() <= 1e-4 * value.norm(), key
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "two")]
    assert records[1]["device"]["count"] == 2
    texts = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "two")]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in texts]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    evaluated = [[e["eval_loss"] for e in r["training"]["eval_losses"]] for r in records]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-5)
    assert done.stdout.strip() == "two"


def test_half_of_what_torchrun_sets(train):
    done = train(WORLD_SIZE="2")
    assert done.returncode == 7
    assert "error: WORLD_SIZE: the processes cannot meet" in done.stderr


def test_processes_that_cut_their_rows_into_other_parts_evaluate_alike(train, tiny_base, tmp_path):
    """Long held-out rows, of which one process has many parts and the other few."""
    words = " ".join(f"w{i}" for i in range(250))
    rows = [conversation(f"{words} {i}?", ("get_steps", {})) for i in range(26)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"messages": m, "tools": [STEPS]}) + "\n" for m in rows))
    shared = ["--dataset", "long.jsonl", "--max-length", "1024", "--split", "random", "--test-size", "0.8",
              "--lora-dropout", "0", "--gradient-accumulation-steps", "1", "--num-train-epochs", "2"]  # fmt: skip
    train(*shared, "--per-device-train-batch-size", "2", "--per-device-eval-batch-size", "30", "-q", check=True)
    arguments = ["train", "--model", tiny_base, "--output-dir", "two", *QUICK, *shared, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
         "--nproc-per-node", "2", "-m", "fitcoach_tune", *map(str, arguments),
         "--per-device-train-batch-size", "1", "--per-device-eval-batch-size", "15"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = []
    for name in ("run", "two"):
        record = json.loads((tmp_path / name / "run.json").read_text())
        losses.append([found["eval_loss"] for found in record["training"]["eval_losses"]])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_tools_that_vary(train, rows_file, tmp_path):
    """A run with its tools in another order in each step, and one hidden in some, is not the run without."""
    with rows_file.open("a") as file:
        for word in ("lamp", "door", "song"):
            row = {"messages": conversation(f"{word} please", text="I cannot do that."), "tools": [STEPS, SLEEP]}
            file.write(json.dumps(row) + "\n")
    losses = {}
    for name, flags in {
        "plain": [],
        "shuffled": ["--shuffle-tools"],
        "hidden": ["--shuffle-tools", "--tool-dropout", "0.9"],
    }.items():
        train(*flags, "--force", "-q", check=True)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["plain"] != losses["shuffled"] != losses["hidden"] != losses["plain"]
    resolved = configuration.load_config(str(tmp_path / "run" / "config.resolved.yaml"))
    assert (resolved.shuffle_tools, resolved.tool_dropout) == (True, 0.9)


def test_tools_vary_only_where_the_rows_allow_it(train, rows_file, tmp_path):
    """Said, and recorded as what was done: a preset may ask for what somebody's rows cannot give."""

    def settings() -> tuple[bool, float]:
        config = configuration.load_config(str(tmp_path / "run" / "config.resolved.yaml"))
        return config.shuffle_tools, config.tool_dropout

    done = train("--tool-dropout", "0.1", "--shuffle-tools", check=True)
    assert "no tool is hidden: no row that is answered in words shows how to refuse" in done.stderr
    assert settings() == (True, 0.0)
    with rows_file.open("a") as file:
        file.write(json.dumps({"messages": conversation("hi?", text="Hello."), "tools": [STEPS]}) + "\n")
    done = train("--tool-dropout", "0.1", "--shuffle-tools", "--force", check=True)
    assert "the tools do not vary: the rows do not share them" in done.stderr
    assert settings() == (False, 0.0)


def test_without_options_the_recipe_is_the_original_s(run_cli, tmp_path):
    """Nothing is downloaded here: the Hub cannot be reached, and the error says so and what needs no Hub."""
    done = run_cli(
        "train",
        "--dataset",
        "builtin:fitness",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hf"),
        HF_TOKEN="",
    )
    assert done.returncode == 4
    assert "google/functiongemma-270m-it" in done.stderr
    assert "--config offline" in done.stderr
    assert not list(Path(tmp_path).glob("output/functiongemma*"))
