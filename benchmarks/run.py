"""Runs benchmarks, each in a process of its own, and writes what they found as JSON, as Markdown and as a picture.

    python benchmarks/run.py                                  # all: hours, on a machine that does nothing else
    python benchmarks/run.py cold_help roofline --quick       # whether they run; their numbers say nothing

What was found before stays in the folder beside what is found now: each result has its date and its machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measuring

HERE = Path(__file__).parent
NAMES = (
    "training_trl",
    "shared_prefix",
    "roofline",
    "cost_shape",
    "whole_job",
    "infer_cold",
    "prepare_rows",
    "cold_help",
)
RATIOS_TITLE = "times as fast as what it is set beside"
SHARES_TITLE = "share, %"


def machine() -> dict[str, Any]:
    """What a result depends on besides the program."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "fitcoach-tune")},
    }


def cpu_model() -> str:
    """The processor's name, with what of its arithmetic bf16 depends on."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    wanted = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return ", ".join([facts.get("model name", platform.machine()), *wanted])


def run(name: str, flags: list[str], out: Path) -> dict[str, Any] | None:
    """One benchmark's result; None if it failed, of which it has told on stderr."""
    facts = machine()
    plot = ["--plot", str(out / f"{name}.png")] if name == "cost_shape" else []
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *flags, *plot]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    return json.loads(done.stdout) | {"machine": facts, "flags": flags}


def flags_of(name: str, quick: bool, adapter: str | None) -> list[str]:
    """What a benchmark is given."""
    chosen = ["--adapter", adapter] if name == "infer_cold" and adapter else []
    return ["--quick"] * quick + chosen


def as_markdown(results: Mapping[str, dict[str, Any]]) -> str:
    """All results, each under its title."""
    parts = ["# Results", ""]
    for name, found in results.items():
        facts, command = found["machine"], " ".join(["python", f"benchmarks/{name}.py", *found["flags"]])
        where = f"{facts['cores']} cores of {facts['cpu']}, load {facts['load']} before it began"
        software = f"torch {facts['torch']}, Python {facts['python']}"
        parts += [f"## {found['title']}", "", f"`{command}`, {facts['date']}; {where}; {software}", ""]
        parts += [measuring.as_markdown(found), ""]
    return "\n".join(parts)


def draw(results: Mapping[str, dict[str, Any]], file: Path) -> None:
    """Bars: ratios on a logarithmic axis, and shares."""
    from matplotlib.figure import Figure

    both = [{k: v for found in results.values() for k, v in found.get(key, {}).items()} for key in ("ratios", "shares")]
    panels = [(values, title) for values, title in zip(both, (RATIOS_TITLE, SHARES_TITLE), strict=True) if values]
    if not panels:
        return
    heights = [len(values) + 1 for values, _ in panels]
    figure = Figure(figsize=(10, 0.45 * sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (values, title) in zip(axes, panels, strict=True):
        if title == RATIOS_TITLE:
            bars = panel.barh(list(values), [value - 1 for value in values.values()], left=1)
            panel.bar_label(bars, [f"{value:.2f}×" for value in values.values()], padding=3)
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
            panel.axvline(1, color="grey", linewidth=0.8)
        else:
            bars = panel.barh(list(values), [100 * value for value in values.values()])
            panel.bar_label(bars, fmt="{:.0f} %", padding=3)
            panel.set_xlim(0, 100)
        panel.set_xlabel(title)
        panel.invert_yaxis()
        panel.margins(x=0.2)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    parser.add_argument("--adapter", help="for infer_cold: a run directory; by default the newest run")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="a folder")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(NAMES)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    store = given.out / "results.json"
    results = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    failed = []
    for name in given.names or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        found = run(name, flags_of(name, given.quick, given.adapter), given.out)
        if found is None:
            failed.append(name)
            continue
        results[name] = found
        ordered = {key: results[key] for key in NAMES if key in results}
        store.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (given.out / "results.md").write_text(as_markdown(ordered), encoding="utf-8")
        draw(ordered, given.out / "results.png")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
