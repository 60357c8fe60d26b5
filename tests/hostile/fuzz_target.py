"""What Atheris, a coverage-guided fuzzer, runs: it looks for bytes that reach new code, and stops at a crash.

python -m tests.hostile.fuzz_target parser -runs=20000      # or rows; further options are libFuzzer's
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fitcoach_tune"]):
    from fitcoach_tune import functiongemma
    from fitcoach_tune.dataset import read_examples, validate
    from fitcoach_tune.errors import DataError
    from fitcoach_tune.functiongemma import CONTROL_TOKENS, ParseError

from tests.dataset.rows import STEPS, WORKOUT

TOOLS = [STEPS, WORKOUT]
MEMORY = 4 << 30  # bytes; what wants more fails with a MemoryError, which the fuzzer takes for a crash
# Bytes that stand for pieces of which the fuzzer would otherwise have to guess every letter.
PIECES = [*CONTROL_TOKENS, "call:", "get_steps", "log_workout", "<escape>", "true", "None", "\ud800", "\0"]


def check(holds: bool, what: object) -> None:
    if not holds:
        raise AssertionError(repr(what))


def parse_output(data: bytes) -> None:
    """Model output is read, and then is what was written; or there is one error that says where."""
    text = "".join(PIECES[byte - 128] if 128 <= byte < 128 + len(PIECES) else chr(byte) for byte in data)
    try:
        output = functiongemma.parse(text)
    except ParseError as error:
        check(0 <= error.position <= len(text) and len(str(error)) < 500, error)
        return
    for call in output.calls:
        if not functiongemma.call_problems(call):
            check(functiongemma.parse(functiongemma.render_call(call)).calls == (call,), call)


def read_rows(data: bytes, folder: Path) -> None:
    """Rows are read and can be rendered; or there is one error that names the file."""
    path = folder / ("rows.jsonl" if not data or data[0] % 2 else "rows.json")
    path.write_bytes(data[1:])
    try:
        examples, _ = read_examples(str(path), tools=TOOLS)
        validate(examples)
    except DataError as error:
        check("rows.json" in str(error), error)
        return
    for example in examples:
        functiongemma.render(example.messages, example.tools)


def seeds(target: str) -> list[bytes]:
    """Sound inputs to begin with."""
    if target == "parser":
        call = functiongemma.Call("log_workout", {"kind": "run", "minutes": [1, {"a": None}]})
        return [functiongemma.render_call(call).encode(), b"words"]
    call = {"name": "log_workout", "arguments": {"kind": "run", "minutes": 3}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [
        {"messages": messages, "tools": TOOLS},
        {"user": "a", "assistant": json.dumps(call), "acceptable_answers": ["get_steps"]},
        {"user_query": "a", "function_call": "get_steps"},
        {"question": [[{"role": "user", "content": "a"}]], "function": [WORKOUT["function"]],
         "ground_truth": [{"log_workout": {"kind": ["run"], "minutes": ["", 3]}}]},
    ]  # fmt: skip
    return [b"\1" + json.dumps(row).encode() + b"\n" for row in rows] + [b"\0" + json.dumps(rows).encode()]


def main() -> None:
    target, *options = sys.argv[1:]
    # Not libFuzzer's -rss_limit_mb: the peak that it asks for is at first that of the process that started this one.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch, "corpus")
        corpus.mkdir()
        for i, seed in enumerate(seeds(target)):
            (corpus / str(i)).write_bytes(seed)
        run = parse_output if target == "parser" else lambda data: read_rows(data, Path(scratch))
        atheris.Setup([sys.argv[0], *options, str(corpus)], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
