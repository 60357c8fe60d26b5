"""The tokenizer that is read without transformers gives the same tokens; what is not plainly Gemma's is left to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcoach_tune import functiongemma, models
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.tokenizer import Tokenizer, load_tokenizer

KEPT = 1000


@pytest.fixture(scope="module")
def library(offline_base):
    """As transformers reads it."""
    with models.quiet_libraries():
        from transformers import GemmaTokenizer

        return GemmaTokenizer.from_pretrained(offline_base.path)


@pytest.fixture(scope="module")
def small(offline_base, tmp_path_factory) -> Path:
    """FunctionGemma's tokenizer with its first tokens alone, which loads at once."""
    folder = tmp_path_factory.mktemp("tokenizer")
    whole = json.loads((offline_base.path / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["vocab"] = {token: i for token, i in whole["model"]["vocab"].items() if i < KEPT}
    whole["model"]["merges"] = [
        m for m in whole["model"]["merges"] if {*m, "".join(m)} <= whole["model"]["vocab"].keys()
    ]
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < KEPT]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    shutil.copy(offline_base.path / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text(functiongemma.chat_template())
    return folder


@pytest.fixture
def folder(small, tmp_path) -> Path:
    shutil.copytree(small, tmp_path / "it")
    return tmp_path / "it"


def change(file: Path, **values) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


def is_plain(folder: Path) -> bool:
    return isinstance(load_tokenizer(folder), Tokenizer)


PIECES = st.sampled_from(
    [*functiongemma.CONTROL_TOKENS, "<unused7>", "<0x0A>", "<table>", "▁", "\n\n", "  ", ":{}", "żółw"]
)
TEXTS = st.lists(st.text() | PIECES, max_size=6).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, literally=st.booleans(), begin=st.booleans())
def test_the_same_tokens_and_text(tokenizer, library, text, literally, begin):
    assert isinstance(tokenizer, Tokenizer)
    how = {"split_special_tokens": literally, "add_special_tokens": begin}
    ids = tokenizer(text, **how)["input_ids"]
    assert ids == library(text, **how)["input_ids"]
    assert tokenizer([text, "a"], **how)["input_ids"] == [ids, library("a", **how)["input_ids"]]
    control = functiongemma.CONTROL_TOKENS["<end_of_turn>"]
    assert tokenizer.backend_tokenizer.encode("<end_of_turn>", add_special_tokens=False).ids == [control]
    assert tokenizer.convert_ids_to_tokens(ids) == library.convert_ids_to_tokens(ids)
    for skip in (False, True):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 262143), max_size=8))
def test_the_same_text_of_any_tokens(tokenizer, library, ids):
    assert tokenizer.decode(ids) == library.decode(ids)


def test_the_same_vocabulary(tokenizer, library):
    assert tokenizer.get_vocab() == library.get_vocab()
    assert len(tokenizer) == len(library) == 262144
    found, expected = (
        {i: (t.content, t.special, t.normalized, t.lstrip, t.rstrip, t.single_word) for i, t in known.items()}
        for known in (tokenizer.added_tokens_decoder, library.added_tokens_decoder)
    )
    assert found == expected
    names = ["<bos>", "no such token", "<0x00>"]
    assert tokenizer.convert_tokens_to_ids(names) == library.convert_tokens_to_ids(names)


def test_any_template_is_rendered_by_transformers(folder):
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ tools }}{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, Tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    with models.quiet_libraries():
        from transformers import GemmaTokenizer

        library = GemmaTokenizer.from_pretrained(folder)
    assert text == "<bos><eos><pad><unk>Nonehi" == library.apply_chat_template(messages, tokenize=False)
    found, expected = (each.apply_chat_template(messages)["input_ids"] for each in (tokenizer, library))
    assert found == expected


def test_a_given_template_takes_the_place_of_its_own(folder):
    assert load_tokenizer(folder, "{{ messages[0].role }}").chat_template == "{{ messages[0].role }}"
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template is None
    change(folder / "tokenizer_config.json", chat_template="{{ 1 }}")  # as it was kept before version 5
    assert load_tokenizer(folder).chat_template == "{{ 1 }}"


def listed(folder: Path, **changed) -> dict:
    """Added tokens as tokenizer_config.json listed them before version 5."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    found = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokens}
    found["7"] |= changed
    return found


def test_settings_as_they_were_written_before_version_5_are_plain(folder):
    """FunctionGemma's own on the Hub has it like this."""
    change(
        folder / "tokenizer_config.json",
        added_tokens_decoder=listed(folder),
        boi_token="<start_of_image>" if "<start_of_image>" in (folder / "tokenizer.json").read_text() else "<mask>",
        extra_special_tokens={"image_token": "<pad>"},
        add_bos_token=True,
        sp_model_kwargs=None,
        processor_class="Gemma3Processor",
    )
    change(folder / "special_tokens_map.json", bos_token={"content": "<bos>", "special": True}, boi_token="<mask>")
    assert is_plain(folder)


@pytest.mark.parametrize("values", [
    {"split_special_tokens": True},
    {"a_setting_of_tomorrow": 1},
    {"mask_token": "a new token"},
    {"extra_special_tokens": ["a new token"]},
    {"additional_special_tokens": ["a new token"]},
    {"unk_token": "<pad>"},
    {"tokenizer_file": "/etc/passwd"},
    {"auto_map": {}},
])  # fmt: skip
def test_settings_that_may_change_tokens_are_left_to_transformers(folder, values):
    change(folder / "tokenizer_config.json", **values)
    assert not is_plain(folder)


def test_tokens_that_are_listed_otherwise_are_left_to_transformers(folder):
    change(folder / "tokenizer_config.json", added_tokens_decoder=listed(folder, lstrip=True))
    assert not is_plain(folder)


@pytest.mark.parametrize("values", [
    {"normalizer": None},
    {"normalizer": {"type": "Lowercase"}},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"decoder": {"type": "Fuse"}},
    {"padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "<pad>"}},
])  # fmt: skip
def test_another_pipeline_is_left_to_transformers(folder, values):
    """Which sets Gemma's own parts in place of those in the file."""
    change(folder / "tokenizer.json", **values)
    assert not is_plain(folder)


@pytest.mark.parametrize("values", [{"dropout": 0.5}, {"byte_fallback": False}, {"ignore_merges": True}])
def test_other_ways_of_merging_are_left_to_transformers(folder, values):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder / "tokenizer.json", model=model | values)
    assert not is_plain(folder)


def test_files_that_only_transformers_reads_are_left_to_it(folder):
    (folder / "added_tokens.json").write_text("{}")
    assert not is_plain(folder)


def test_another_tokenizer_is_refused(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<start_function_call>", "<start_of_something>"))
    with pytest.raises(MismatchError, match="is not FunctionGemma's: <start_function_call> is not token 48"):
        load_tokenizer(folder)
