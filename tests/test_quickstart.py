"""QUICKSTART's own files, prepared and trained as it says (on a tiny base)."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "QUICKSTART.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def command(*parts: str) -> list[str]:
    """The one line of the page's shell blocks that starts and ends with these words, without the program's name."""
    lines = [line for text in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in text.splitlines()]
    (found,) = [line for line in lines if line.startswith(f"fitcoach-tune {parts[0]}") and line.endswith(parts[1])]
    return shlex.split(found)[1:]


def test_the_page_works_as_written(run_cli, tmp_path, tiny_base):
    (tmp_path / "home.py").write_text(block("python", "def set_light"))
    (tmp_path / "home.jsonl").write_text(block("json", "bedroom to 18") + block("json", "order me a pizza"))
    prepare = [str(tiny_base) if word == "offline" else word for word in command("prepare", "--show 2")]
    shown = run_cli(*prepare, check=True)
    assert "set_temperature" in shown.stdout
    assert "trained, the stop token included" in shown.stdout
    tiny = ["--model", tiny_base, "--dtype", "fp32"]
    run_cli(*command("train", "--output-dir output/home"), *tiny, "-q", check=True)
    found = json.loads(run_cli(*command("eval", "output/home"), "--json", "-q", check=True).stdout)
    assert [model["metrics"]["exact"]["n"] for model in found["sets"][0]["models"]] == [3, 3, 3]
    answer = json.loads(run_cli(*command("infer", "--json"), check=True).stdout)
    assert {"calls", "text", "raw"} <= answer.keys()
