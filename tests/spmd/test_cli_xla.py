"""`--device tpu`, `xla-cpu` and `auto` as a user meets them: a run on virtual devices, and what can be missing."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fitcoach_tune import backends
from tests.conftest import QUICK

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("torch_xla"), reason="torch_xla is not installed")
EXACT = ["--lora-dropout", "0", "--gradient-accumulation-steps", "1"]


@pytest.fixture
def train(run_cli, tiny_base, rows_file):
    def train(*arguments, **options):
        return run_cli("train", "--model", tiny_base, "--dataset", rows_file, *QUICK, *arguments, **options)

    return train


def test_a_run_on_four_devices_is_the_run_on_a_cpu(train, tmp_path):
    """Loss by loss and tensor by tensor; PEFT reloads the adapter as part of the run."""
    common = [*EXACT, "--max-steps", "3"]
    train(*common, "--per-device-train-batch-size", "4", "--device", "cpu", "--output-dir", "plain", "-q", check=True)
    size = ["--per-device-train-batch-size", "1", "--per-device-eval-batch-size", "2"]
    done = train(*common, *size, "--device", "xla-cpu", "--num-devices", "4", "--output-dir", "xla", check=True)
    assert done.stdout.strip() == "xla"
    assert "on 4 virtual XLA devices on a CPU" in done.stderr
    assert "the first step is compiled" in done.stderr
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("plain", "xla")]
    device = records[1]["device"]
    assert (device["name"], device["count"], device["recompiled"]) == ("xla-cpu", 4, [])
    assert device["compilations"] == 3
    assert device["compile_seconds"] > 0
    assert "compilations" not in records[0]["device"]
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "xla")
    ]
    assert [m["loss"] for m in lines[1]] == pytest.approx([m["loss"] for m in lines[0]], rel=1e-4)
    assert records[1]["training"]["peak_memory_bytes"] > 0
    assert records[1]["check"]["loaded_by"] == "peft"
    assert records[1]["check"]["logit_difference"] < 1e-3
    plain, sharded = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "xla"))
    assert plain.keys() == sharded.keys()
    for key, value in plain.items():
        assert (sharded[key] - value).norm() <= 5e-4 * value.norm(), key


def test_nothing_is_saved_of_a_run_that_diverged(train, tmp_path):
    done = train(
        *EXACT, "--learning-rate", "1e38", "--max-grad-norm", "0", "--max-steps", "3",
        "--device", "xla-cpu", "--num-devices", "2", "--per-device-train-batch-size", "2", "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert re.search(r"error: step [23]: the (loss|gradient) is not finite", done.stderr)
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "no TPU device can be used"),
        (["--device", "xla-cpu", "--num-devices", "2", "--transformer-layer-cls-to-wrap", "Gemma3Layer"],
         "--transformer-layer-cls-to-wrap: the model has no layer of class Gemma3Layer"),
    ],
)  # fmt: skip
def test_refused(train, arguments, message):
    done = train(*arguments)
    assert done.returncode in (2, 7), done.stderr
    assert message in done.stderr
    assert "Gemma3DecoderLayer" in done.stderr or "--device xla-cpu" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch_xla'\", name='torch_xla')", "torch_xla is not installed"),
        ("raise ImportError('_XLAC.so: undefined symbol: _ZN5torch4lazy')", "torch_xla does not fit torch"),
    ],
)
def test_without_a_torch_xla_that_works(run_cli, tmp_path, package, message):
    """A package of that name stands first on the path and fails as the real one does."""
    folder = tmp_path / "site/torch_xla"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(package)
    for device, extra in (("tpu", "tpu"), ("xla-cpu", "xla")):
        done = run_cli("train", "--config", "offline", "--device", device, PYTHONPATH=str(folder.parent))
        assert done.returncode == 7, done.stderr
        assert message in done.stderr
        assert f"pip install 'fitcoach-tune[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_installed_torch_xla_is_no_tpu(tmp_path):
    """`auto` asks the hardware; on a CPU nothing imports torch_xla, transformers and PEFT included."""
    code = (
        "import sys\n"
        "from fitcoach_tune import backends, models\n"
        "import peft\n"
        "print(backends.make_backend('auto').name, any(m.startswith('torch_xla') for m in sys.modules))"
    )
    assert importlib.util.find_spec("torch_xla") is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu" if not backends.has_tpu() else "tpu", "False"]


def pci(folder: Path, *devices: tuple[str, str]) -> Path:
    for i, (vendor, device) in enumerate(devices):
        place = folder / f"0000:00:{i:02}.0"
        place.mkdir()
        (place / "vendor").write_text(vendor + "\n")
        (place / "device").write_text(device + "\n")
    return folder


def test_a_tpu_is_known_by_its_pci_id(tmp_path, monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    assert not backends.has_tpu(pci(tmp_path, ("0x1ae0", "0x0042"), ("0x10de", "0x2330")))  # Google's network card
    assert not backends.has_tpu(tmp_path / "nowhere")
    (tmp_path / "v5e").mkdir()
    assert backends.has_tpu(pci(tmp_path / "v5e", ("0x1ae0", "0x0063")))
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert not backends.has_tpu(tmp_path / "v5e")


def test_the_ids_are_those_of_torch_xla():
    """Read, not imported: importing it would start it."""
    source = Path(importlib.util.find_spec("torch_xla").origin).parent / "_internal/tpu.py"
    listed = re.search(r"_TPU_PCI_DEVICE_IDS = \[(.*?)\]", source.read_text(), re.DOTALL).group(1)
    testing = {"0x0056"}
    assert set(re.findall(r"0x[0-9a-f]{4}", listed)) - testing == backends._TPUS
