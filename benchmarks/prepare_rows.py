"""Rows per second and memory of `fitcoach-tune prepare`, from a thousand rows to a million.

The rows are those of the built-in dataset, over and over; from the second time on each question has a number added, so
that all differ and the near-duplicates among them are as many as can be. The command reads, checks, renders, tokenizes,
finds the near-duplicates, splits and writes; its seconds and its peak memory are those of the whole process. It is set
beside a loop that renders and tokenizes the same rows one by one with `apply_chat_template` and does nothing else, and
whose time does not include loading anything.

    python benchmarks/prepare_rows.py                # 1,000, 10,000 and 100,000 rows
    python benchmarks/prepare_rows.py --million
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring


def synthetic() -> Iterator[dict[str, Any]]:
    """Rows without end."""
    from fitcoach_tune.builtin import rows_path

    lines = rows_path("builtin:fitness").read_text(encoding="utf-8").splitlines()
    for number in itertools.count():
        for line in lines:
            row = json.loads(line)
            if number:
                user = next(message for message in row["messages"] if message["role"] == "user")
                user["content"] = f"{user['content']} ({number})"
                row["id"] = f"{row['id']}-{number}"
            yield row


def write_rows(file: Path, count: int) -> None:
    with file.open("w", encoding="utf-8") as out:
        for row in itertools.islice(synthetic(), count):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def row_by_row(file: str) -> dict[str, Any]:
    """Render and tokenize the rows of a file one by one, with transformers' own tokenizer."""
    from transformers import GemmaTokenizer

    from fitcoach_tune import builtin, models

    tokenizer = GemmaTokenizer.from_pretrained(models.resolve("offline").path)
    tools = builtin.tools("builtin:fitness")
    rows = [json.loads(line)["messages"] for line in Path(file).read_text(encoding="utf-8").splitlines()]
    tokenizer.apply_chat_template(rows[0], tools=tools)  # compiles the template
    started = time.perf_counter()
    tokens = sum(len(tokenizer.apply_chat_template(row, tools=tools)["input_ids"]) for row in rows)
    return {"rows": len(rows), "seconds": time.perf_counter() - started, "tokens": tokens}


def prepare(file: str, target: str) -> dict[str, Any]:
    """Run the command; returns its seconds, its peak memory, and what it found."""
    source = ["--config", "offline", "--dataset", file, "--tools", "builtin:fitness"]
    done = measuring.program("prepare", *source, "--output-dir", target, "--json", "--quiet")
    manifest = json.loads(done.output)
    return {
        "rows": manifest["rows"]["read"],
        "seconds": done.seconds,
        "peak_gb": done.peak_bytes / 1e9,
        "tokens": manifest["tokens"]["total"],
    }


def measure(sizes: Sequence[int], loop_rows: int) -> dict[str, Any]:
    """Prepare each size, then run the loop over `loop_rows` rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {count: folder / f"{count}.jsonl" for count in {*sizes, loop_rows}}
        for count, file in files.items():
            write_rows(file, count)
        prepare(str(files[min(files)]), str(folder / "warm"))
        rows = [prepare(str(files[count]), str(folder / f"set-{count}")) for count in sizes]
        loop = measuring.child(__file__, "loop", file=str(files[loop_rows]))
    for row in rows:
        row |= {"variant": "prepare", "rows_per_second": row["rows"] / row["seconds"]}
    for less, more in pairwise(rows):
        added = more["rows"] - less["rows"]
        more["added_rows_per_second"] = added / (more["seconds"] - less["seconds"])
        more["added_kb_per_row"] = 1e6 * (more["peak_gb"] - less["peak_gb"]) / added
    loop |= {"variant": "apply_chat_template, row by row", "rows_per_second": loop["rows"] / loop["seconds"]}
    columns = {
        "variant": ("variant", "{}"),
        "rows": ("rows", "{:,}"),
        "seconds": ("s", "{:.1f}"),
        "rows_per_second": ("rows/s", "{:,.0f}"),
        "added_rows_per_second": ("rows/s of the added rows", "{:,.0f}"),
        "peak_gb": ("peak memory, GB", "{:.2f}"),
        "added_kb_per_row": ("kB of an added row", "{:.1f}"),
    }
    last, slow = rows[-1], loop["rows_per_second"]
    ratios = {f"preparing {last['rows']:,} rows, beside rendering and tokenizing": last["rows_per_second"] / slow}
    if "added_rows_per_second" in last:
        ratios["preparing a row more, beside rendering and tokenizing it"] = last["added_rows_per_second"] / slow
    return {
        "title": "Preparing rows",
        "rows": [*rows, loop],
        "table": measuring.table([*rows, loop], columns),
        "ratios": ratios,
    }


def main() -> None:
    if measuring.answered_parent({"loop": row_by_row}):
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes, rising")
    parser.add_argument("--million", action="store_true", help="a million rows, too")
    parser.add_argument("--loop-rows", type=int, default=5_000, help="rows of the loop that it is set beside")
    parser.add_argument("--quick", action="store_true", help="100 and 1,000 rows")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes, loop_rows = ([100, 1_000], 200) if given.quick else (given.rows, given.loop_rows)
    measuring.show(measure(sizes + [1_000_000] * given.million, loop_rows), given.json)


if __name__ == "__main__":
    main()
