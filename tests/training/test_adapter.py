"""LoRA against PEFT's own, and adapter files that must not be loaded."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from fitcoach_tune.errors import MismatchError
from fitcoach_tune.training import adapter

IDS = torch.arange(3, 40)[None]


def attach(model, targets=("q_proj", "down_proj"), **overrides):
    settings = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": list(targets), "seed": 1}
    return adapter.attach(model, **{**settings, **overrides})


@pytest.fixture
def peft_folder(make_tiny, tmp_path):
    """An adapter that PEFT made and saved, with random B."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(make_tiny(), config)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    return tmp_path, model.eval()(input_ids=IDS).logits


def test_loads_what_peft_saved(make_tiny, peft_folder):
    folder, expected = peft_folder
    torch.testing.assert_close(adapter.load_adapter(make_tiny(), folder)(input_ids=IDS).logits, expected)


def test_peft_loads_what_we_save(make_tiny, peft_folder):
    folder, _ = peft_folder
    model = make_tiny()
    attach(model)
    for _, layer in adapter.lora_layers(model):
        layer.lora_B.data.normal_(std=0.1)
    save_file(adapter.trained_parameters(model), folder / adapter.WEIGHTS_NAME)
    reloaded = PeftModel.from_pretrained(make_tiny(), folder)
    torch.testing.assert_close(reloaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_the_parameters_are_peft_s_in_name_shape_and_number(make_tiny, peft_folder):
    folder, _ = peft_folder
    model = make_tiny()
    count = attach(model)
    saved = load_file(folder / adapter.WEIGHTS_NAME)
    made = adapter.trained_parameters(model)
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in saved.items()}
    assert count == sum(t.numel() for t in saved.values())
    assert [p for p in model.parameters() if p.requires_grad] == list(made.values())


def test_a_new_adapter_changes_nothing_and_starts_as_peft_starts(make_tiny):
    model = make_tiny()
    expected = model(input_ids=IDS).logits
    attach(model, targets=["all-linear"])
    assert torch.equal(model(input_ids=IDS).logits, expected)
    layers = dict(adapter.lora_layers(model))
    assert {name.rsplit(".", 1)[-1] for name in layers} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for layer in layers.values():
        bound = (6 / (1 + 5) / layer.base.in_features) ** 0.5  # Kaiming uniform with a = √5
        assert 0.8 * bound < layer.lora_A.abs().max() <= bound
        assert layer.lora_A.dtype == torch.float32


def test_the_start_is_a_function_of_the_seed(make_tiny):
    first, again, other = make_tiny(), make_tiny(), make_tiny()
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        torch.manual_seed(0 if model is first else 9)  # the global generator has no part in it
        attach(model, seed=seed)
    pick = [next(adapter.lora_layers(m))[1].lora_A for m in (first, again, other)]
    assert torch.equal(pick[0], pick[1])
    assert not torch.equal(pick[0], pick[2])


def spoil_keys(folder):
    """The known FSDP bug: wrapper names in the keys, which PEFT ignores, so that the base answers alone."""
    tensors = load_file(folder / adapter.WEIGHTS_NAME)
    save_file(
        {k.replace("layers.", "layers._orig_module."): v for k, v in tensors.items()}, folder / adapter.WEIGHTS_NAME
    )


def zero_b(folder):
    tensors = load_file(folder / adapter.WEIGHTS_NAME)
    save_file({k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}, folder / adapter.WEIGHTS_NAME)


def truncate(folder):
    file = folder / adapter.WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-100])


def lose_half_a_layer(folder):
    tensors = load_file(folder / adapter.WEIGHTS_NAME)
    tensors.pop(next(k for k in tensors if "lora_B" in k))
    save_file(tensors, folder / adapter.WEIGHTS_NAME)


def set_config(**values):
    def change(folder):
        file = folder / adapter.CONFIG_NAME
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


@pytest.mark.parametrize(("spoil", "message"), [
    (spoil_keys, "_orig_module"),
    (zero_b, "every LoRA B is zero"),
    (truncate, "not a readable adapter"),
    (lose_half_a_layer, "does not fit this model"),
    (set_config(lora_alpha=None), "lora_alpha"),
    (set_config(use_dora=True), "use_dora"),
    (set_config(bias="all"), "bias"),
    (set_config(peft_type="IA3"), "IA3"),
])  # fmt: skip
def test_refuses(make_tiny, peft_folder, spoil, message):
    folder, _ = peft_folder
    spoil(folder)
    with pytest.raises(MismatchError, match=message):
        adapter.load_adapter(make_tiny(), folder)


def test_refuses_another_model(make_tiny, peft_folder):
    with pytest.raises(MismatchError, match="does not fit this model"):
        adapter.load_adapter(make_tiny(hidden_size=48), peft_folder[0])
