"""FunctionGemma's tokenizer, read by the `tokenizers` library alone.

transformers takes seconds to be imported, and parses the 33 MB of tokenizer.json three times. A tokenizer that is
plainly Gemma's is therefore read without it, once, and gives the same tokens; any other is left to transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fitcoach_tune import functiongemma, reading
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.libraries import loading, quiet_libraries

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from transformers import GemmaTokenizer, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TEMPLATE_NAME = "chat_template.jinja"
_FILE, _SETTINGS, _SPECIAL = TOKENIZER_FILES
# What transformers would read besides.
_UNUSUAL = ("added_tokens.json", "additional_chat_templates")
# What GemmaTokenizer of transformers is made of, whatever a file names.
_PARTS = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}
_MERGING = {
    "dropout": None,
    "unk_token": "<unk>",
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
}
# Settings that change no token. Those that name tokens are looked at one by one.
_HARMLESS = {
    *("add_bos_token", "add_eos_token", "backend", "chat_template", "clean_up_tokenization_spaces", "is_local"),
    *("local_files_only", "model_max_length", "processor_class", "sp_model_kwargs", "spaces_between_special_tokens"),
    *("tokenizer_class", "use_default_system_prompt"),
}
_LISTED, _EXTRA = "added_tokens_decoder", ("extra_special_tokens", "additional_special_tokens")


class Tokenizer:
    """Gemma's tokenizer, with the methods that the program uses, as transformers names them.

    Args:
        backend: the `tokenizers` library's own.
        name_or_path: the folder that it was read from.
        chat_template: a Jinja template, or None.
        names: special tokens by the names that a chat template may use.
    """

    def __init__(self, backend: Backend, name_or_path: str, chat_template: str | None, names: Mapping[str, str]):
        self.backend_tokenizer, self.name_or_path, self.chat_template = backend, name_or_path, chat_template
        self._names = dict(names)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        **_: bool,
    ) -> dict[str, Any]:
        """{"input_ids": the ids of a text, or of each of several}.

        Args:
            add_special_tokens: put `<bos>` before it.
            split_special_tokens: read special tokens that a text spells as any other letters.
        """
        backend = self.backend_tokenizer
        backend.encode_special_tokens = split_special_tokens
        try:
            if isinstance(text, str):
                return {"input_ids": backend.encode(text, add_special_tokens=add_special_tokens).ids}
            found = backend.encode_batch(list(text), add_special_tokens=add_special_tokens)
            return {"input_ids": [encoding.ids for encoding in found]}
        finally:
            backend.encode_special_tokens = False  # as those who use the backend itself expect it

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each of several; that of `<unk>` for one that there is not."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self.backend_tokenizer.token_to_id(tokens)
        return self.backend_tokenizer.token_to_id(_MERGING["unk_token"]) if index is None else index

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The token of each id."""
        return [self.backend_tokenizer.id_to_token(index) for index in ids]

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before it is split, by their ids."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def __len__(self) -> int:
        """How many tokens there are."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def apply_chat_template(
        self,
        messages: list[dict],
        tools: list[dict] | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
    ) -> Any:
        """The text of a conversation, or its {"input_ids": …}. transformers renders it, and is imported for that."""
        text = self._library.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return self(text, add_special_tokens=False) if tokenize else text

    @cached_property
    def _library(self) -> GemmaTokenizer:
        """transformers' own without its vocabulary, which rendering does not need."""
        with quiet_libraries():
            from transformers import GemmaTokenizer

            return GemmaTokenizer(**self._names)


AnyTokenizer: TypeAlias = "Tokenizer | PreTrainedTokenizerBase"


def load_tokenizer(path: Path, template: str | None = None) -> AnyTokenizer:
    """Load a tokenizer and check that it is FunctionGemma's: the control tokens stand at their ids.

    Where it is not plainly Gemma's, its class is the library's own for Gemma, whatever class or code the files name.

    Args:
        template: a chat template in place of its own.

    Raises:
        MismatchError: it is another tokenizer, is damaged, or has no chat template that can render a conversation.
    """
    for name in filter(lambda name: (path / name).exists(), (*TOKENIZER_FILES, TEMPLATE_NAME)):
        reading.check_own(path / name, "a tokenizer", links=True)
    settings: dict[str, Any] = {}
    if (path / _SETTINGS).exists():
        settings = reading.read_json(path / _SETTINGS, "a tokenizer", {}, links=True)
        if "fast_tokenizer_files" in settings:  # other files to read in place of tokenizer.json
            raise MismatchError("this tokenizer has several versions", where=str(path), hint="use one that has one")
    with loading("the tokenizer", path):
        plain = _read_plain(path, settings)
        tokenizer = _read_by_library(path) if plain is None else plain
        tokenizer.chat_template = template or tokenizer.chat_template
        _check_template(tokenizer)
        wrong = [
            token
            for token, index in functiongemma.CONTROL_TOKENS.items()
            if tokenizer.convert_tokens_to_ids(token) != index
        ]
    if wrong:
        raise MismatchError(
            f"this tokenizer is not FunctionGemma's: {wrong[0]} is not token {functiongemma.CONTROL_TOKENS[wrong[0]]}",
            where=str(path),
            hint="use google/functiongemma-270m-it, a model tuned from it, or --model offline",
        )
    return tokenizer


def _read_by_library(path: Path) -> PreTrainedTokenizerBase:
    with quiet_libraries():
        from transformers import GemmaTokenizer

        return GemmaTokenizer.from_pretrained(path)


def _check_template(tokenizer: AnyTokenizer) -> None:
    """Render a conversation with a chat template that is not the project's own; raises whatever is raised by that."""
    template = tokenizer.chat_template
    if template in (None, functiongemma.chat_template()):
        return
    if not isinstance(template, str):
        raise ValueError("it has several chat templates")
    function = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    messages = [{"role": "developer", "content": functiongemma.TRIGGER}, {"role": "user", "content": "?"}]
    tokenizer.apply_chat_template(
        messages, tools=[{"type": "function", "function": function}], tokenize=False, add_generation_prompt=True
    )


# ------------------------------------------------------------------------------------------------ plainly Gemma's


def _read_plain(path: Path, settings: dict[str, Any]) -> Tokenizer | None:
    """Read a tokenizer that is plainly Gemma's. None if it is not, or is damaged: transformers then says what it is."""
    from tokenizers import Tokenizer as Backend

    listed, file = settings.get(_LISTED), path / _SPECIAL
    special = reading.read_json(file, "a tokenizer", {}, links=True) if listed is None and file.exists() else {}
    named = _special_tokens(settings | special)
    if named is None or special.keys() & _EXTRA or any((path / name).exists() for name in _UNUSUAL):
        return None
    file, template = path / TEMPLATE_NAME, settings.get("chat_template")
    if file.exists():
        template = file.read_text(encoding="utf-8")
    try:
        backend = Backend.from_file(str(path / _FILE))
    except Exception:
        return None
    names, others = named
    added = backend.get_added_tokens_decoder()
    known = {token.content for token in added.values()}
    has_all = known.issuperset([*names.values(), *others]) and listed in (None, _as_listed(added))
    if not has_all or not _is_gemma(backend) or not (template is None or isinstance(template, str)):
        return None
    return Tokenizer(backend, str(path), template, names)


def _special_tokens(settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]] | None:
    """The special tokens that settings name, and those without a name. None if a setting could change what tokens there
    are, or is none that is known.
    """
    names: dict[str, Any] = {}
    others: list[Any] = []
    for key, value in settings.items():
        if key in _HARMLESS or key == _LISTED or value is None:
            continue
        if key in _EXTRA and isinstance(value, dict):
            names |= value
        elif key in _EXTRA and isinstance(value, list):
            others += value
        elif key.endswith("_token"):
            names[key] = value.get("content") if isinstance(value, dict) else value
        else:
            return None
    are_text = all(isinstance(token, str) for token in [*names.values(), *others])
    if not are_text or names.get("unk_token", _MERGING["unk_token"]) != _MERGING["unk_token"]:
        return None
    return names, others


def _as_listed(added: Mapping[int, AddedToken]) -> dict[str, dict[str, Any]]:
    """Added tokens as tokenizer_config.json lists them."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {str(index): {flag: getattr(token, flag) for flag in flags} for index, token in added.items()}


def _is_gemma(backend: Backend) -> bool:
    """Whether the file describes what transformers would make of it in any case."""
    for name, described in _PARTS.items():
        part = getattr(backend, name)
        if part is None or json.loads(part.__getstate__()) != described:
            return False
    merging = backend.model
    is_plain = backend.padding is None and backend.truncation is None and type(merging).__name__ == "BPE"
    return is_plain and all(getattr(merging, name) == value for name, value in _MERGING.items())
