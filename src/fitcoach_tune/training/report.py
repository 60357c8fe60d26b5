"""What a run leaves for people: metrics as it goes, a picture of the loss, a README."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import files
from fitcoach_tune.errors import ConfigError
from fitcoach_tune.functiongemma import CONTROL_TOKENS, STOP_TOKENS

if TYPE_CHECKING:
    from fitcoach_tune.config import Config
    from fitcoach_tune.training.metrics import StepMetrics


class Reporter:
    """Writes a line a step to metrics.jsonl, and to TensorBoard or Trackio if asked to.

    Args:
        past: the steps that the run has behind it. The file is made anew with theirs: a run that was killed may have
            written others after its last checkpoint, the last of them in part.
    """

    def __init__(self, path: Path, config: Config, past: Sequence[StepMetrics] = ()):
        self.path, self._past = path, past
        self._tracker = _tracker(config, path.parent, len(past))

    def __enter__(self) -> Reporter:
        files.write_atomic(self.path, "".join(json.dumps(m.as_dict()) + "\n" for m in self._past))
        # Unbuffered: what the disk had no room for would be tried again, and fail again, when the file is closed.
        self._file = self.path.open("ab", buffering=0)
        return self

    def write(self, metrics: StepMetrics) -> None:
        line = (json.dumps(metrics.as_dict()) + "\n").encode()
        with files.output_errors(self.path, len(line)):
            while line:
                line = line[self._file.write(line) :]
        if self._tracker:
            self._tracker.log(metrics.as_dict(), metrics.step)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._tracker:
            self._tracker.close()


class _TensorBoard:
    def __init__(self, folder: Path, _: Config, past: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=past + 1 if past else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, folder: Path, config: Config, past: int):
        import trackio

        settings, resume = config.model_dump(mode="json"), "allow" if past else "never"
        with contextlib.redirect_stdout(sys.stderr):  # it greets on stdout, which is for data
            self._run = trackio.init(project="fitcoach-tune", name=folder.name, config=settings, resume=resume)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({name: value for name, value in values.items() if name != "step"}, step=step)

    def close(self) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # the run's own finish would be repeated, aloud, when the process ends


def _tracker(config: Config, folder: Path, past: int) -> _TensorBoard | _Trackio | None:
    trackers = {"tensorboard": _TensorBoard, "trackio": _Trackio}
    return trackers[config.report_to](folder, config, past) if config.report_to != "none" else None


def check_tracker(config: Config) -> None:
    """Refuse a tracker that is not installed, before a run begins.

    Raises:
        ConfigError: it is not.
    """
    if config.report_to != "none" and not importlib.util.find_spec(config.report_to):
        raise ConfigError(
            f"{config.report_to} is not installed",
            where=f"--report-to {config.report_to}",
            hint=f"pip install {config.report_to}",
        )


def plot_losses(history: Sequence[StepMetrics], path: Path) -> None:
    """Draw training and evaluation loss (nats per supervised token, logarithmic) over the steps into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        [m.step for m in history], [m.loss for m in history], color="#9bb7d4", linewidth=1.2, label="training, per step"
    )
    evaluated = [m for m in history if m.eval_loss is not None]
    if evaluated:
        axes.plot(
            [m.step for m in evaluated],
            [m.eval_loss for m in evaluated],
            color="#c4472f",
            marker="o",
            markersize=4,
            label="held-out rows, per epoch",
        )
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy per supervised token (nats)")
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture)
    files.write_atomic(path, picture.getvalue())


_QUESTION = "How many steps?"


def run_readme(record: dict[str, Any], prompt: dict[str, Any] | None) -> str:
    """The README of a run directory: what it is, how it was made, how to use it.

    Args:
        record: run.json.
        prompt: prompt.json, or None where the rows have several.
    """
    base, data, training, config = record["base"], record["data"], record["training"], record["config"]
    evaluated = training["eval_losses"]
    loss = f", {evaluated[-1]['eval_loss']:.4f} on the held-out rows" if evaluated else ""
    return f"""# {Path(config["output_dir"]).name}

A LoRA adapter (PEFT format) that turns what people say into function calls. Base model: `{base["name"]}`\
{f" at `{base['revision']}`" if base["revision"] else ""}. Made with fitcoach-tune
{record["versions"]["fitcoach_tune"]}.

- Data: `{data["source"]["name"]}`, {data["rows"]["train"]} training and {data["rows"]["test"]} held-out rows.
- Recipe: rank {config["lora_r"]}, alpha {config["lora_alpha"]:g} on {", ".join(config["target_modules"])}; \
{training["trainable_parameters"]:,} parameters; {config["optim"]} at {config["learning_rate"]:g} \
({config["lr_scheduler_type"]}), {training["steps"]} steps of {training["batch_size"]} rows. \
All settings: `config.resolved.yaml`; all facts: `run.json`.
- Loss: {training["first_loss"]:.4f} at the first step, {training["last_loss"]:.4f} at the last{loss} (`loss.png`).
- LoRA dropout draws one mask for the prompt tokens that all rows share, not one per row.

Ask it with `fitcoach-tune infer "{_QUESTION}" --adapter {config["output_dir"]}`, or without this program:

```python
import json

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{config["output_dir"]}"
base = AutoModelForCausalLM.from_pretrained("{base["reference"]}", dtype="auto")
model = PeftModel.from_pretrained(base, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
{_asking(prompt, config["max_new_tokens"]) if prompt else ""}```

The weights are a derivative of Gemma and come under the Gemma Terms of Use: https://ai.google.dev/gemma/terms
"""


def _asking(prompt: dict[str, Any], max_new_tokens: int) -> str:
    """The part of the example that asks a question."""
    developer = '{"role": "developer", "content": prompt["developer"]}, ' if prompt["developer"] else ""
    stops = [CONTROL_TOKENS[token] for token in STOP_TOKENS]
    return f"""
with open(f"{{folder}}/prompt.json", encoding="utf-8") as file:
    prompt = json.load(file)  # the functions, and what stands before a question
messages = [{developer}{{"role": "user", "content": "{_QUESTION}"}}]
inputs = tokenizer.apply_chat_template(
    messages, tools=prompt["tools"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, do_sample=False, max_new_tokens={max_new_tokens}, eos_token_id={stops})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
"""
