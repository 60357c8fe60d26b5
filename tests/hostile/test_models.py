"""Base models and tokenizers that name code to be run, or are not what they say: nothing runs, nothing is loaded."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcoach_tune import functiongemma, models
from fitcoach_tune.errors import MismatchError
from tests.conftest import tiny_gemma
from tests.hostile.material import fuzz, nearly, one_error

# Every class and hook that a configuration can name a file for.
TRAP = """
import pathlib
pathlib.Path(__file__).with_name("sprung").touch()
from transformers import Gemma3ForCausalLM as TrapModel, Gemma3TextConfig as TrapConfig, GemmaTokenizer as TrapTokenizer
"""
AUTO_MAP = {
    "AutoConfig": "trap.TrapConfig",
    "AutoModel": "trap.TrapModel",
    "AutoModelForCausalLM": "trap.TrapModel",
    "AutoTokenizer": ["trap.TrapTokenizer", "trap.TrapTokenizer"],
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_gemma(layers=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(offline_base, tmp_path_factory):
    """FunctionGemma's tokenizer with its first 300 tokens alone, which loads at once."""
    folder = tmp_path_factory.mktemp("tokenizer")
    whole = json.loads((offline_base.path / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["vocab"] = {token: i for token, i in whole["model"]["vocab"].items() if i < 300}
    whole["model"]["merges"] = []
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < 300]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    shutil.copy(offline_base.path / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text(functiongemma.chat_template())
    return folder


@pytest.fixture
def folder(model_folder, tokenizer_folder, tmp_path):
    """Both, to be spoiled."""
    shutil.copytree(model_folder, tmp_path / "base")
    shutil.copytree(tokenizer_folder, tmp_path / "base", dirs_exist_ok=True)
    return tmp_path / "base"


@pytest.fixture
def trap(folder, monkeypatch):
    """With code beside them, and somebody at the terminal who says yes to every question."""
    (folder / "trap.py").write_text(TRAP)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    yield
    assert not (folder / "sprung").exists()
    assert not any(name.split(".")[-1] == "trap" for name in sys.modules)


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def base(folder: Path) -> models.Base:
    return models.Base("it", None, folder)


def refused(load, *parts) -> None:
    with pytest.raises(MismatchError) as caught:
        load()
    one_error(caught.value, *parts)


# Code -----------------------------------------------------------------------------------------------------------------


def test_code_that_a_model_names_is_not_run(folder, trap):
    change(folder / "config.json", auto_map=AUTO_MAP, trust_remote_code=True)
    loaded = models.load_model(base(folder), "fp32")
    assert type(loaded).__module__.startswith("transformers.models.gemma3")
    assert not hasattr(loaded.config, "auto_map")
    models.load_model(base(folder), "fp32", weights=False)
    change(folder / "config.json", model_type="trap")
    refused(lambda: models.load_model(base(folder), "fp32"), "this is a trap model", "--model it")


def test_code_that_a_tokenizer_names_is_not_run(folder, trap):
    values = {"auto_map": AUTO_MAP, "tokenizer_class": "TrapTokenizer", "trust_remote_code": True}
    change(folder / "tokenizer_config.json", **values)
    change(folder / "config.json", auto_map=AUTO_MAP, model_type="trap")
    assert type(models.load_tokenizer(folder)).__module__ == "transformers.models.gemma.tokenization_gemma"
    change(folder / "tokenizer_config.json", auto_map=AUTO_MAP["AutoTokenizer"])  # as it was written once
    models.load_tokenizer(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_that_a_model_names_is_not_fetched(folder, key):
    change(folder / "config.json", **{key: "somebody/kernels-that-run"})
    loaded = models.load_model(base(folder), "fp32")
    assert loaded.config._attn_implementation == "sdpa"


def test_an_adapter_in_a_base_is_not_put_onto_it(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    refused(lambda: models.load_model(base(folder), "fp32"), "holds an adapter as well", folder)


@pytest.mark.parametrize(("name", "part"), [
    ("pytorch_model.bin", "its weights are no safetensors: pytorch_model.bin"),
    ("../other.safetensors", "leads out of its folder"),
    ("/tmp/other.safetensors", "leads out of its folder"),
])  # fmt: skip
def test_an_index_that_names_other_files(folder, name, part):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: models.load_model(base(folder), "fp32"), part, folder)


# Lies -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "part"), [
    ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers is 1000000000"),
    ({"num_hidden_layers": 1000, "layer_types": ["full_attention"] * 1000}, "its configuration describes"),
    ({"vocab_size": 10**7}, "its configuration describes"),
    ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
    ({"hidden_size": -32}, "hidden_size is -32"),
    ({"head_dim": "16"}, "head_dim"),
    ({"intermediate_size": None}, "intermediate_size"),
    ({"max_position_embeddings": 10**400}, "max_position_embeddings"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "this is a quantized model"),
    ({"model_type": ["gemma3_text"]}, "model_type: must be text"),
    ({"final_logit_softcapping": 30.0}, "soft-capping"),
    ({"rope_parameters": {"full_attention": {"rope_type": "trap"}}}, ""),
    ({"layer_types": ["no_attention"] * 2}, ""),
    ({"hidden_activation": "os.system"}, ""),
    ({"dtype": "os.system"}, ""),
])  # fmt: skip
def test_configurations_that_lie(folder, values, part):
    change(folder / "config.json", **values)
    refused(lambda: models.load_model(base(folder), "fp32"), part)


def test_weights_that_are_none(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\x80\x04." + os.urandom(file.stat().st_size))
    refused(lambda: models.load_model(base(folder), "fp32"), "the model cannot be loaded", folder)


@fuzz
@given(data=st.data())
def test_any_changed_configuration(model_folder, data):
    """What it describes is laid out without weights, or refused."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "base")
        folder.mkdir()
        os.link(model_folder / "model.safetensors", folder / "model.safetensors")
        changed = data.draw(nearly(json.loads((model_folder / "config.json").read_text())))
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            models.load_model(base(folder), "bf16", weights=False)
            models.context_length(folder)
        except MismatchError as error:
            one_error(error)


# Tokenizers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "part"), [
    ("{{ raise_exception('not today') }}", "not today"),
    ("{% for message in messages %}", "TemplateSyntaxError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
    ("{% include '/etc/passwd' %}", "TypeError"),
    ("{{ messages[9].content.text }}", "UndefinedError"),
])  # fmt: skip
def test_templates_that_cannot_be_rendered(folder, template, part):
    (folder / "chat_template.jinja").write_text(template)
    refused(lambda: models.load_tokenizer(folder), "the tokenizer cannot be loaded", part, folder)


def test_several_templates(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/other.jinja").write_text("{{ 1 }}")
    refused(lambda: models.load_tokenizer(folder), "it has several chat templates", folder)


@pytest.mark.parametrize(("values", "part"), [
    ({"fast_tokenizer_files": ["../../tokenizer.9.json"]}, "this tokenizer has several versions"),
    ({"added_tokens_decoder": {"x": 1}}, "the tokenizer cannot be loaded"),
    ({"bos_token": ["<bos>"]}, "the tokenizer cannot be loaded"),
    ({"init_inputs": [1, 2, 3]}, "the tokenizer cannot be loaded"),
])  # fmt: skip
def test_tokenizers_that_are_another(folder, values, part):
    change(folder / "tokenizer_config.json", **values)
    refused(lambda: models.load_tokenizer(folder), part, folder)


@fuzz
@given(data=st.data())
def test_any_changed_tokenizer(tokenizer_folder, data):
    """Refused, or FunctionGemma's to the last control token."""
    name = data.draw(st.sampled_from(["tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "base")
        shutil.copytree(tokenizer_folder, folder)
        sound = json.loads((folder / name).read_text()) if (folder / name).exists() else {"bos_token": "<bos>"}
        (folder / name).write_text(json.dumps(data.draw(nearly(sound))))
        try:
            found = models.load_tokenizer(folder)
        except MismatchError as error:
            one_error(error, "base")
        else:
            tokens = functiongemma.CONTROL_TOKENS
            assert found.convert_tokens_to_ids(list(tokens)) == list(tokens.values())
