"""Examples and a tokenizer → a PreparedSet: a folder of token ids, supervised spans, a split and a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitcoach_tune import __version__, dataset, files, functiongemma, models, splits
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.dataset import Example
from fitcoach_tune.errors import ConfigError, DataError, MismatchError, OutputError
from fitcoach_tune.training.batches import TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
MANIFEST = "manifest.json"
_TOKENIZE_AT_ONCE = 1000


@dataclass(frozen=True)
class PreparedRow(TokenizedRow):
    """A tokenized row with what it came from.

    Attributes:
        example: the index of its Example in what was read.
    """

    example: int = -1


class PreparedSplit(Sequence[TokenizedRow]):
    """The rows of one split, read from a memory-mapped Arrow file when they are asked for."""

    def __init__(self, path: Path, toolsets: list[list[dict]]):
        import pyarrow as pa

        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()
        self._toolsets = toolsets
        self._ids = self._column("input_ids")
        self._starts, self._ends = self._column("span_starts"), self._column("span_ends")

    def _column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        column = self._table[name].combine_chunks()
        if isinstance(column, list) or not len(column):
            return np.zeros(1, np.int64), np.zeros(0, np.int32)
        return column.offsets.to_numpy(), column.values.to_numpy()

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> TokenizedRow:
        cut = [v[o[index] : o[index + 1]] for o, v in (self._ids, self._starts, self._ends)]
        return TokenizedRow(cut[0], tuple(zip(cut[1].tolist(), cut[2].tolist(), strict=True)))

    def example(self, index: int) -> Example:
        """The conversation that a row was made from."""
        row = {name: self._table[name][index].as_py() for name in ("messages", "toolset", "origin")}
        return Example(json.loads(row["messages"]), self._toolsets[row["toolset"]], row["origin"])


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder, opened and checked."""

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def toolsets(self) -> list[list[dict]]:
        """The distinct lists of tools that rows were rendered with."""
        return files.read_json(self.path / "toolsets.json", "a prepared set")

    @cached_property
    def train(self) -> PreparedSplit:
        return PreparedSplit(self.path / "train.arrow", self.toolsets)

    @cached_property
    def test(self) -> PreparedSplit:
        return PreparedSplit(self.path / "test.arrow", self.toolsets)

    @property
    def prefix(self) -> np.ndarray:
        """int32 [P]: the tokens that every row starts with."""
        return self.train[0].input_ids[: self.manifest["prefix"]["tokens"]]

    @property
    def chat_template(self) -> str:
        return (self.path / "chat_template.jinja").read_text(encoding="utf-8")

    def common_prompt(self) -> dict[str, Any] | None:
        """The developer text and tools that all rows share: {"developer": …, "tools": […]}, or None if they differ."""
        if len(self.toolsets) != 1 or self.manifest["developer"] is None:
            return None
        return {"developer": self.manifest["developer"], "tools": self.toolsets[0]}


def open_set(path: Path) -> PreparedSet:
    """Open a prepared folder and check its files against their hashes.

    Raises:
        MismatchError: it is not a prepared set, was made by another format version, or a file has changed.
    """
    manifest = files.read_json(path / MANIFEST, "a prepared set")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MismatchError("this is not a prepared set of this version", where=str(path), hint="run prepare again")
    for name, expected in manifest["files"].items():
        file = path / Path(name).name
        if not file.is_file() or files.sha256_file(file) != expected:
            state = "has changed since it was prepared" if file.is_file() else "is missing"
            raise MismatchError(f"{name} {state}", where=str(path), hint="run prepare again")
    return PreparedSet(path, manifest)


def check_base(prepared: PreparedSet, base: models.Base) -> None:
    """Refuse a prepared set whose token ids are another tokenizer's.

    Raises:
        MismatchError: says what differs.
    """
    made_with = prepared.manifest["model"]
    if made_with["tokenizer_sha256"] != models.tokenizer_hash(base.path):
        raise MismatchError(
            f"it was prepared with the tokenizer of {made_with['name']}, which differs from that of {base.name}",
            where=str(prepared.path),
            hint=f"run prepare with --model {base.name}",
        )


# ---------------------------------------------------------------------------------------------------- rendering


def make_renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """How messages become text: the model's own chat template when it ships one, else the project's.

    The project's Python renderer and its template give the same bytes; it stands in where the template is the
    project's.
    """
    template = tokenizer.chat_template
    if template is None or template == functiongemma.chat_template():
        return functiongemma.render

    def render(messages: list[dict], tools: list[dict] | None = None, *, add_generation_prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    return render


def render_spans(example: Example, render: Callable[..., str]) -> tuple[str, list[tuple[int, int]]]:
    """A row's text, and the character ranges that are supervised: what the model says, its stop token included.

    Each assistant message is rendered with and without itself; what it adds to its prompt is supervised.

    Raises:
        DataError: the template does not render a conversation as an extension of its own beginning.
    """
    text = render(example.messages, example.tools)
    spans = []
    for i, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        prompt = render(example.messages[:i], example.tools, add_generation_prompt=True)
        through = render(example.messages[: i + 1], example.tools)
        if not through.startswith(prompt) or not text.startswith(through):
            raise DataError(f"the chat template does not render messages[{i}] as a continuation", where=example.origin)
        stop = through.rstrip("\n")  # the newline after <end_of_turn> belongs to the layout: nobody generates it
        if not stop.endswith(functiongemma.STOP_TOKENS):
            raise DataError(f"messages[{i}] does not end in a stop token", where=example.origin)
        spans.append((len(prompt), len(stop)))
    return text, spans


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[PreparedRow]:
    """Render and tokenize, with the supervised spans in tokens.

    Raises:
        DataError: a row's prompt is not a token prefix of the row, so that the model would be asked something else than
            it was taught.
    """
    render = make_renderer(tokenizer)

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    for start in range(0, len(examples), _TOKENIZE_AT_ONCE):
        rendered = [render_spans(e, render) for e in examples[start : start + _TOKENIZE_AT_ONCE]]
        whole = encode([text for text, _ in rendered])
        heads = iter(encode([text[:edge] for text, spans in rendered for span in spans for edge in span]))
        for offset, (ids, (_, spans)) in enumerate(zip(whole, rendered, strict=True)):
            edges = [_token_edge(ids, next(heads), examples[start + offset].origin) for _ in range(2 * len(spans))]
            ranges = tuple(zip(edges[::2], edges[1::2], strict=True))
            yield PreparedRow(np.asarray(ids, dtype=np.int32), ranges, start + offset)


def _token_edge(ids: list[int], head: list[int], origin: str) -> int:
    if ids[: len(head)] != head:
        raise DataError(
            "the prompt's tokens change when the answer follows", where=origin, hint="see `prepare --show 1`"
        )
    return len(head)


def fit_length(rows: list[PreparedRow], max_length: int, excess: str, examples: Sequence[Example]) -> list[PreparedRow]:
    """Apply `excess_length` to the rows that are longer than `max_length` tokens.

    `truncate` keeps the turns from the start that fit whole: a call is never cut, and a row of which no answer fits is
    dropped.

    Raises:
        DataError: there are longer rows and `excess` is `error`, or none is left.
    """
    longer = [row for row in rows if len(row.input_ids) > max_length]
    if not longer:
        return rows
    if excess == "error":
        lengths = np.array([len(row.input_ids) for row in rows])
        p50, p95 = np.percentile(lengths, [50, 95])
        raise DataError(
            f"{len(longer)} of {len(rows)} rows are longer than {max_length} tokens "
            f"(p50 {p50:.0f}, p95 {p95:.0f}, max {lengths.max()})",
            where="--max-length",
            details=[f"{examples[row.example].origin}: {len(row.input_ids)} tokens" for row in longer[:10]],
            hint=f"--max-length {lengths.max()} keeps all; --excess-length drop or truncate shortens the set",
        )
    kept = []
    for row in rows:
        if len(row.input_ids) <= max_length:
            kept.append(row)
        elif excess == "truncate" and (spans := tuple(s for s in row.spans if s[1] <= max_length)):
            kept.append(PreparedRow(row.input_ids[: spans[-1][1]], spans, row.example))
    if not kept:
        raise DataError("no row is left", where="--max-length", hint="allow longer rows")
    return kept


def cut(example: Example, answers: int) -> Example:
    """A conversation up to its `answers`-th assistant message."""
    ends = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    if answers == len(ends):
        return example
    return replace(example, messages=example.messages[: ends[answers - 1] + 1])


def common_prefix(rows: Sequence[TokenizedRow]) -> int:
    """Length of the longest common token prefix that leaves every row a prompt token before its first supervised
    one.
    """
    head = rows[0].input_ids
    length = min(row.spans[0][0] for row in rows) - 1
    for row in rows:
        differs = np.flatnonzero(head[:length] != row.input_ids[:length])
        if len(differs):
            length = int(differs[0])
    return length


# ---------------------------------------------------------------------------------------------------- the verb


def default_path(config: Config) -> Path:
    """Where a set is prepared when no folder is named: one folder for each combination of the settings that shape
    it.
    """
    slug = "".join(c if c.isalnum() else "-" for c in Path(config.dataset).stem.lower()).strip("-") or "set"
    return Path("output/prepared") / f"{slug}-{files.sha256_json(_settings(config))[:8]}"


def _settings(config: Config) -> dict[str, Any]:
    names = ("model", "model_revision", "dataset", "revision", "tools")
    shape = ("max_length", "excess_length", "test_size", "split", "seed")
    return config.model_dump(mode="json", include={*names, *shape})


def prepare(config: Config, ui: Console = SILENT, target: Path | None = None) -> PreparedSet:
    """Read, check, render, tokenize, split and write.

    Args:
        target: where to; by default `config.data`, or its default place. An older set there is replaced when the new
            one is complete.

    Raises:
        DataError, AccessError, ConfigError, OutputError: see the functions that this calls.
    """
    target = target or (Path(config.data) if config.data else default_path(config))
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError("it exists and is not a prepared set", where=str(target), hint="choose another --output-dir")
    ui.note(f"reading {config.dataset}")
    tools = dataset.read_tools(config.tools) if config.tools else None
    examples, source = dataset.read_examples(config.dataset, tools=tools, revision=config.revision)
    dataset.validate(examples)
    base = models.resolve(config.model, config.model_revision, ui)
    tokenizer = models.load_tokenizer(base.path)
    with ui.bar("tokenizing", len(examples)) as update:
        rows = []
        for row in tokenize(examples, tokenizer):
            rows.append(row)
            update(len(rows))
    kept = fit_length(rows, config.max_length, config.excess_length, examples)
    examples = [cut(examples[row.example], len(row.spans)) for row in kept]
    kept = [replace(row, example=i) for i, row in enumerate(kept)]
    parts, report = splits.split(examples, config.split, config.test_size, config.seed)
    if not len(parts[0]):
        raise ConfigError("no row is left to train on", where="--test-size", hint="hold out less, or bring more rows")
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "source": {"name": source.name, "revision": source.revision, "sha256": source.sha256, "notes": source.notes},
        "settings": _settings(config),
        "model": {
            "name": base.reference if base.name != models.OFFLINE else base.name,
            "revision": base.revision,
            "tokenizer_sha256": models.tokenizer_hash(base.path),
            "template": "project" if make_renderer(tokenizer) is functiongemma.render else "model",
        },
        "rows": {"read": len(rows), "dropped": len(rows) - len(kept), "train": len(parts[0]), "test": len(parts[1])},
        "tokens": _token_counts(kept),
        "prefix": {
            "tokens": (size := common_prefix(kept)),
            "sha256": files.sha256_json(kept[0].input_ids[:size].tolist()),
        },
        "split": report,
    }
    developers = {developer_text(e) for e in examples}
    manifest["developer"] = developers.pop() if len(developers) == 1 else None
    template = tokenizer.chat_template or functiongemma.chat_template()
    _write(target, manifest, [[kept[i] for i in part] for part in parts], examples, template)
    return open_set(target)


def developer_text(example: Example) -> str:
    """A row's developer message; empty if it has none."""
    first = example.messages[0]
    return str(first["content"]) if first["role"] == "developer" else ""


def source_changed(prepared: PreparedSet, config: Config) -> bool:
    """Whether the file that the rows came from has other bytes than when it was prepared; False for what is no file."""
    path = Path(config.dataset)
    return path.is_file() and files.sha256_file(path) != prepared.manifest["source"]["sha256"]


def _token_counts(rows: Sequence[TokenizedRow]) -> dict[str, Any]:
    lengths = np.array([len(row.input_ids) for row in rows])
    p50, p95 = (int(v) for v in np.percentile(lengths, [50, 95]))
    supervised = sum(len(row.supervised) for row in rows)
    return {"total": int(lengths.sum()), "supervised": supervised, "p50": p50, "p95": p95, "max": int(lengths.max())}


def versions() -> dict[str, str]:
    """The versions that what is written depends on."""
    from importlib.metadata import version

    return {"fitcoach_tune": __version__} | {p: version(p) for p in ("transformers", "tokenizers", "torch")}


def _write(
    target: Path, manifest: dict, parts: list[list[PreparedRow]], examples: list[Example], template: str
) -> None:
    toolsets: dict[str, list[dict]] = {}
    keys = {}
    for row in (row for part in parts for row in part):
        tools = examples[row.example].tools
        if id(tools) not in keys:
            keys[id(tools)] = files.sha256_json(tools)
            toolsets.setdefault(keys[id(tools)], tools)
    order = {key: i for i, key in enumerate(toolsets)}
    with files.atomic_directory(target) as staged:
        for name, part in zip(("train", "test"), parts, strict=True):
            numbers = [order[keys[id(examples[row.example].tools)]] for row in part]
            _write_arrow(staged / f"{name}.arrow", part, numbers, examples)
        (staged / "toolsets.json").write_text(files.to_json(list(toolsets.values())), encoding="utf-8")
        (staged / "chat_template.jinja").write_text(template, encoding="utf-8")
        manifest["toolsets"] = len(toolsets)
        manifest["tools_sha256"] = files.sha256_json(sorted(toolsets))
        manifest["template_sha256"] = files.sha256_text(template)
        manifest["files"] = {f.name: files.sha256_file(f) for f in sorted(staged.iterdir())}
        manifest["data_sha256"] = files.sha256_json([manifest["files"], manifest["prefix"]])
        (staged / MANIFEST).write_text(files.to_json(manifest), encoding="utf-8")


def _write_arrow(path: Path, rows: list[PreparedRow], toolsets: list[int], examples: list[Example]) -> None:
    import pyarrow as pa

    ints = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array([row.input_ids for row in rows], ints),
            "span_starts": pa.array([[s for s, _ in row.spans] for row in rows], ints),
            "span_ends": pa.array([[e for _, e in row.spans] for row in rows], ints),
            "messages": pa.array(
                [json.dumps(examples[r.example].messages, ensure_ascii=False) for r in rows], pa.string()
            ),
            "toolset": pa.array(toolsets, pa.int32()),
            "origin": pa.array([examples[row.example].origin for row in rows], pa.string()),
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def summary(manifest: dict[str, Any]) -> str:
    """A prepared set in one line."""
    rows, tokens, prefix = manifest["rows"], manifest["tokens"], manifest["prefix"]["tokens"]
    return (
        f"{rows['train']} rows to train on, {rows['test']} held out; {tokens['p50']} tokens a row "
        f"(p95 {tokens['p95']}, max {tokens['max']}), of which the first {prefix} are shared and computed once a step; "
        f"{tokens['supervised']} trained"
    )


def warnings(manifest: dict[str, Any]) -> list[str]:
    """What a user should look at before training on a set."""
    report, found = manifest["split"], list(manifest["source"]["notes"])
    if report["duplicates"] or report["near_duplicates"]:
        found.append(f"{report['duplicates']} rows repeat a question, {report['near_duplicates']} nearly do")
    if report["groups_on_both_sides"]:
        count = report["groups_on_both_sides"]
        found.append(f"{count} questions stand (nearly) equal on both sides: the held-out accuracy will flatter")
    if report["conflicts"]:
        found.append(f"{report['conflicts']} questions have several answers: {'; '.join(report['conflicting'])}")
    if manifest["rows"]["dropped"]:
        found.append(f"{manifest['rows']['dropped']} over-long rows were dropped")
    if not manifest["rows"]["test"]:
        found.append("no row is held out: nothing can be evaluated")
    return found
