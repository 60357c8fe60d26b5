"""`prepare --show`: rows as the model will see them, with what is shared and what is trained in colours and in
words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fitcoach_tune.prepared_set import PreparedSet
    from fitcoach_tune.tokenizer import AnyTokenizer
    from fitcoach_tune.training.batches import TokenizedRow

_SHARED, _PROMPT, _TRAINED = "dim cyan", "white", "bold green"


def show_rows(prepared: PreparedSet, tokenizer: AnyTokenizer, count: int) -> list[RenderableType]:
    """For each of the first `count` training rows a rule with its origin, the coloured text, and the count in words."""
    from rich.rule import Rule
    from rich.text import Text

    prefix = prepared.manifest["prefix"]["tokens"]
    parts: list[RenderableType] = []
    for i in range(min(count, len(prepared.train))):
        row = prepared.train[i]
        title = Rule(Text(prepared.train.example(i).origin), align="left", style="dim")
        parts += [title, _paint(row, prefix, tokenizer), _in_words(row, prefix), ""]
    return parts


def _paint(row: TokenizedRow, prefix: int, tokenizer: AnyTokenizer) -> RenderableType:
    from rich.text import Text

    trained = set(row.supervised.tolist())
    styles = [_TRAINED if i in trained else _SHARED if i < prefix else _PROMPT for i in range(len(row.input_ids))]
    text = Text()
    start = 0
    for i in range(1, len(styles) + 1):
        if i == len(styles) or styles[i] != styles[start]:
            text.append(tokenizer.decode(row.input_ids[start:i].tolist(), skip_special_tokens=False), styles[start])
            start = i
    return text


def _in_words(row: TokenizedRow, prefix: int) -> str:
    supervised = len(row.supervised)
    prompt = len(row.input_ids) - prefix - supervised
    return (
        f"[{_SHARED}]{prefix} tokens shared by all rows[/] · [{_PROMPT}]{prompt} of prompt[/] · "
        f"[{_TRAINED}]{supervised} trained, the stop token included[/]"
    )
