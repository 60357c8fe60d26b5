"""Adapters that lie: in their configuration, in the header of their weights, and in the weights themselves."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fitcoach_tune.errors import MismatchError
from fitcoach_tune.training.adapter import load_adapter, load_weights
from tests.conftest import tiny_gemma
from tests.hostile.folders import ADAPTER
from tests.hostile.material import altered, fuzz, nearly, one_error

NAME = "model.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{NAME}.lora_{x}.weight" for x in "AB")
RANK, IN, OUT = 2, 32, 64
SOUND = {A: torch.full((RANK, IN), 0.5), B: torch.full((OUT, RANK), 0.5)}


def adapter(folder: Path, tensors=None, **config) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | config))
    tensors = SOUND if tensors is None else tensors
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def weights():
    return tiny_gemma(layers=1).state_dict()


@pytest.fixture
def model(weights):
    """A model of the size that the adapters are for."""
    found = tiny_gemma(layers=1)
    found.load_state_dict(weights)
    return found


def test_the_sound_one_loads(tmp_path, model):
    load_adapter(model, adapter(tmp_path))
    assert torch.equal(model.get_submodule(NAME).lora_A, SOUND[A])


TENSORS = {
    "a rank of nothing": ({A: torch.ones(0, IN), B: torch.ones(OUT, 0)}, "is no matrix of LoRA"),
    "a number": ({A: torch.tensor(1.0), B: SOUND[B]}, "is no matrix of LoRA"),
    "a vector": ({A: SOUND[A], B: torch.ones(OUT)}, "is no matrix of LoRA"),
    "three dimensions": ({A: torch.ones(RANK, IN, 1), B: SOUND[B]}, "is no matrix of LoRA"),
    "another rank in B": ({A: SOUND[A], B: torch.ones(OUT, RANK + 1)}, "does not fit this model"),
    "a B that would be repeated": ({A: SOUND[A], B: torch.ones(OUT, 1)}, "does not fit this model"),
    "another width": ({A: torch.ones(RANK, IN + 1), B: SOUND[B]}, "does not fit this model"),
    "integers": ({A: SOUND[A].int(), B: SOUND[B].int()}, "is no matrix of LoRA: torch.int32"),
    "complex numbers": ({A: SOUND[A], B: SOUND[B].to(torch.complex64)}, "is no matrix of LoRA"),
    "no number": ({A: SOUND[A] * float("nan"), B: SOUND[B]}, "has values that are not finite"),
    "infinity": ({A: SOUND[A], B: SOUND[B] / 0}, "has values that are not finite"),
    "a layer that is not there": ({A.replace("0", "9"): SOUND[A], B.replace("0", "9"): SOUND[B]}, "does not fit"),
    "a layer that is none": ({k.replace(NAME, "model.norm"): v for k, v in SOUND.items()}, "does not fit this model"),
    "the model itself": ({k.replace(NAME, ""): v for k, v in SOUND.items()}, "no loader would match"),
    "an attribute": ({k.replace(NAME, "config"): v for k, v in SOUND.items()}, "does not fit this model"),
    "a layer in a layer": (SOUND | {k.replace(NAME, f"{NAME}.base"): v for k, v in SOUND.items()}, "does not fit"),
    "tensors beside": (SOUND | {f"base_model.model.{NAME}.lora_magnitude_vector": torch.ones(1)}, "no loader would"),
    "a path for a key": (SOUND | {"../../x": torch.ones(1)}, "no loader would match: '../../x'"),
    "no tensor": ({}, "holds no tensor"),
}


@pytest.mark.parametrize(("tensors", "part"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_no_adapter(tmp_path, model, weights, tensors, part):
    with pytest.raises(MismatchError) as caught:
        load_adapter(model, adapter(tmp_path, tensors))
    one_error(caught.value, part, tmp_path)
    assert model.state_dict().keys() == weights.keys()  # nothing of it was put into the model


@pytest.mark.parametrize(("config", "part"), [
    ({"lora_alpha": 10**400}, "lora_alpha is not between 0 and"),
    ({"lora_alpha": 0}, "lora_alpha is not between 0 and"),
    ({"lora_alpha": -1.5}, "lora_alpha is not between 0 and"),
    ({"lora_alpha": True}, "lora_alpha: must be a number, not a boolean"),
    ({"lora_alpha": "4"}, "lora_alpha: must be a number, not text"),
    ({"r": 3}, "has rank 2, and not r = 3"),
    ({"r": 10**400}, "has rank 2, and not r = "),
    ({"r": "2"}, "r: must be a whole number"),
    ({"bias": ["none"]}, "bias: must be text"),
    ({"peft_type": ["LORA"] * 9999}, "which is not plain LoRA"),
    ({"rank_pattern": {"q_proj": 8}}, "uses rank_pattern"),
    ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
])  # fmt: skip
def test_configurations_that_are_no_adapter(tmp_path, model, config, part):
    with pytest.raises(MismatchError) as caught:
        load_adapter(model, adapter(tmp_path, **config))
    one_error(caught.value, part, tmp_path)


def header(text: bytes | dict, size: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with such a header, of a size that it may lie about."""
    text = json.dumps(text).encode() if isinstance(text, dict) else text
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(shape=(RANK, IN), dtype="F32", offsets=(0, RANK * IN * 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "nothing": b"",
    "half a size": b"\1\2",
    "a size beyond the file": header(b"{}", 1 << 20),
    "a size of exabytes": header(b"{}", (1 << 64) - 1),
    "a size without a header": header(b"", 0),
    "brackets": header(b"[" * 10_000),
    "deep": header(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "ten megabytes": header(b" " * 10_000_000),
    "null bytes": header(b"\0" * 64),
    "no UTF-8": header(b'{"\xff": 1}'),
    "a list": header(b"[]"),
    "a shape of exabytes": header({A: tensor((1 << 40, 1 << 40))}, data=bytes(256)),
    "a shape that overflows": header({A: tensor((1 << 63, 2))}, data=bytes(256)),
    "a negative shape": header({A: tensor((-1, 32))}, data=bytes(256)),
    "offsets beyond the file": header({A: tensor(offsets=(0, 1 << 40))}, data=bytes(256)),
    "offsets backwards": header({A: tensor(offsets=(256, 0))}, data=bytes(256)),
    "offsets over each other": header({A: tensor(), B: tensor(offsets=(128, 384))}, data=bytes(384)),
    "bytes between": header({A: tensor(offsets=(8, 264))}, data=bytes(264)),
    "bytes behind": header({A: tensor()}, data=bytes(300)),
    "a type that there is not": header({A: tensor(dtype="F33")}, data=bytes(256)),
    "a type that torch has not": header({A: tensor((RANK, IN), "F4", (0, 32))}, data=bytes(32)),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "a ZIP file, as torch.save writes": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(tmp_path, data):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    with pytest.raises(MismatchError) as caught:
        load_weights(path)
    one_error(caught.value, path)


@fuzz
@given(data=st.data())
def test_any_changed_adapter(weights, data):
    """Refused, or weights that fit."""
    model = tiny_gemma(layers=1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = adapter(Path(scratch))
        if data.draw(st.booleans()):
            changed = data.draw(nearly(ADAPTER))
            (folder / "adapter_config.json").write_text(json.dumps(changed))
        else:
            file = folder / "adapter_model.safetensors"
            file.write_bytes(data.draw(altered(file.read_bytes())))
        with contextlib.suppress(MismatchError):
            load_adapter(model, folder)
            assert all(value.isfinite().all() for value in model.state_dict().values())
