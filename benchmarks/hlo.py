"""What an XLA program computes and sends, counted from its HLO text (XLA's `--xla_dump_hlo_as_text`)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

_LINE = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (?:\()?(\w+)\[([\d,]*)\]\S*(?:, .*?\))? (\S+?)\((.*)$")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8, "pred": 1, "s8": 1, "u8": 1}


@dataclass(frozen=True)
class Program:
    """Counts of one program; of one device's, if the text is from after partitioning.

    Attributes:
        flops: of all matrix products, a multiply-add counted as 2.
        collectives: bytes of the results of the operations that exchange data, by operation.
        largest: the collectives with the largest results: (bytes, operation, shape).
    """

    flops: int
    collectives: dict[str, int]
    largest: list[tuple[int, str, str]]


def read(text: str) -> Program:
    """Count. Computations that are called more than once are counted once: these programs have no loops over layers."""
    shapes: dict[str, list[int]] = {}
    flops, sent, found = 0, Counter(), []
    for line in text.splitlines():
        if not (match := _LINE.match(line)):
            continue
        name, dtype, dims, operation, rest = match.groups()
        shape = [int(d) for d in dims.split(",") if d]
        shapes[name] = shape
        if operation == "dot":
            left = re.findall(r"%([\w.\-]+)", rest) or [part.strip() for part in rest.split(",")]
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
            sizes = [shapes[left[0]][int(d)] for d in contracted.group(1).split(",") if d] if contracted else []
            flops += 2 * math.prod(shape) * math.prod(sizes)
        elif operation in _COLLECTIVES:
            size = math.prod(shape) * _BYTES.get(dtype, 4)
            sent[operation] += size
            found.append((size, operation, f"{dtype}[{dims}]"))
    return Program(flops, dict(sent), sorted(found, reverse=True)[:5])
