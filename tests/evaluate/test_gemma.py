"""The model for answering is transformers' own to the last bit; what is not plainly it is left to transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fitcoach_tune import models
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.evaluate import gemma
from fitcoach_tune.evaluate.generate import Generator
from fitcoach_tune.training import adapter
from fitcoach_tune.training.prefix import Packing, hidden_states, use_layouts
from tests.conftest import tiny_gemma


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    model = tiny_gemma(window=8, layers=4, num_key_value_heads=2)
    for parameter in model.parameters():  # norms that are all alike would hide a swapped name
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy, to change."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, remove: tuple[str, ...] = (), **values) -> None:
    file = folder / "config.json"
    kept = {name: value for name, value in json.loads(file.read_text()).items() if name not in remove}
    file.write_text(json.dumps(kept | values))


def base(folder: Path) -> models.Base:
    return models.Base("it", None, folder)


def states(model, prefix: int, blocks: list[tuple[int, int]]) -> torch.Tensor:
    layout = Packing.build(prefix, blocks, window=8)
    positions = layout.position_ids(1)
    ids = torch.randint(0, 320, positions.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return hidden_states(model, ids, positions, layout)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_same_bits_as_transformers(saved, tmp_path, dtype, adapted):
    own, other = gemma.load(base(saved), dtype), models.load_model(base(saved), dtype)
    use_layouts(other)
    if adapted:
        taught = models.load_model(base(saved), "fp32")
        adapter.attach(taught, rank=2, alpha=4, dropout=0.0, target_modules=["all-linear"], seed=1)
        for parameter in adapter.trained_parameters(taught).values():
            parameter.data.normal_(std=0.2)
        save_file(adapter.trained_parameters(taught), tmp_path / adapter.WEIGHTS_NAME)
        settings = {"peft_type": "LORA", "lora_alpha": 4, "r": 2}
        (tmp_path / adapter.CONFIG_NAME).write_text(json.dumps(settings))
        own, other = (adapter.load_adapter(model, tmp_path) for model in (own, other))
    for prefix, blocks in [(0, [(1, 30)]), (20, [(3, 5), (1, 12)])]:
        expected = states(other, prefix, blocks)
        assert expected.isfinite().all()
        assert torch.equal(states(own, prefix, blocks), expected)
    assert own.lm_head.weight is own.model.embed_tokens.weight
    assert torch.equal(own.lm_head.weight, other.lm_head.weight)


def test_the_same_answers_as_transformers(saved):
    prompts = [[2, *range(10, 30), last] for last in (5, 40, 77)]
    made = []
    for model in (gemma.load(base(saved), "fp32"), models.load_model(base(saved), "fp32")):
        generator = Generator(model)
        generator.warm(prompts[0][:15])
        made.append(generator.generate(prompts, 20))
    assert made[0] == made[1]


def test_a_configuration_as_it_was_written_before_version_5(folder, saved):
    """FunctionGemma's own on the Hub has it like this."""
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    change(
        folder,
        remove=("rope_parameters",),
        rope_scaling=None,
        rope_theta=rope["full_attention"]["rope_theta"],
        rope_local_base_freq=rope["sliding_attention"]["rope_theta"],
        torch_dtype="float32",
        _sliding_window_pattern=6,
    )
    found = [states(gemma.load(base(place), "fp32"), 5, [(2, 4)]) for place in (folder, saved)]
    assert torch.equal(*found)
    other = models.load_model(base(folder), "fp32")
    use_layouts(other)
    assert torch.equal(states(other, 5, [(2, 4)]), found[0])


@pytest.mark.parametrize("values", [
    {"hidden_activation": "silu"},
    {"attention_bias": True},
    {"use_bidirectional_attention": True},
    {"final_logit_softcapping": 30.0},
    {"attn_logit_softcapping": 50.0},
    {"tie_word_embeddings": False},
    {"a_setting_of_tomorrow": 1},
    {"rope_theta": 10000.0},
    {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}}},
    {"rope_parameters": ["full_attention", "sliding_attention"]},
    {"layer_types": None},
    {"layer_types": ["full_attention"] * 3},
    {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]},
    {"rms_norm_eps": 0},
    {"rms_norm_eps": True},
    {"query_pre_attn_scalar": "16"},
    {"num_attention_heads": 3},
    {"hidden_size": 16},
])  # fmt: skip
def test_what_is_not_plainly_gemma_is_left_to_transformers(folder, values):
    change(folder, **values)
    assert gemma.load(base(folder), "fp32") is None


@pytest.mark.parametrize("spoil", [
    lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
    lambda tensors: tensors.update({"lm_head.weight": torch.zeros(320, 32)}),
    lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}),
    lambda tensors: tensors.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}),
], ids=["missing", "more", "another shape", "integers"])  # fmt: skip
def test_other_weights_are_left_to_transformers(folder, spoil):
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert gemma.load(base(folder), "fp32") is None


def test_several_files_are_left_to_transformers(folder):
    (folder / models.INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    assert gemma.load(base(folder), "fp32") is None
    (folder / models.INDEX_NAME).unlink()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert gemma.load(base(folder), "fp32") is None


@pytest.mark.parametrize(("values", "part"), [
    ({"model_type": "trap"}, "this is a trap model"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "this is a quantized model"),
    ({"num_hidden_layers": 1000, "layer_types": ["full_attention"] * 1000}, "its configuration describes"),
    ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
])  # fmt: skip
def test_lies_are_refused_as_by_models(folder, values, part):
    change(folder, **values)
    with pytest.raises(MismatchError, match=part):
        gemma.load(base(folder), "fp32")


def test_damaged_weights_are_refused(folder):
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"\x80\x04." + bytes(size))
    with pytest.raises(MismatchError, match="the model cannot be loaded"):
        gemma.load(base(folder), "fp32")
