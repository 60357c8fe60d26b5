"""The command line: parses, calls one function for a verb, prints. Data goes to stdout, everything else to stderr.

Every setting's flag, help and default come from `config.Config`. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from fitcoach_tune import __version__
from fitcoach_tune.config import LISTS, Config, flag, load_config
from fitcoach_tune.console import Console
from fitcoach_tune.errors import FitcoachTuneError, OutputError

app = typer.Typer(
    name="fitcoach-tune",
    help="Fine-tune FunctionGemma (270M) to turn what people say into the right function call.\n\n"
    "prepare → train → eval → infer, on TPU, GPU or plain CPU. Start with `fitcoach-tune train --config offline`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DATA = ("dataset", "revision", "tools", "max_length", "excess_length", "test_size", "split")
_BASE = ("model", "model_revision", "seed")
_DEVICE = ("device", "num_devices", "dtype")
# What is switched on or off stands in a panel of its own, and so does the longest name: they would not fit.
_XLA = ("xla_fsdp_v2", "xla_fsdp_grad_ckpt", "allow_recompile")
_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
_TRAINING = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "learning_rate",
    "optim",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "report_to",
    "price_per_hour",
)
_PANELS = {
    **dict.fromkeys(_DATA, "Data"),
    **dict.fromkeys(_BASE, "Base model"),
    **dict.fromkeys(_DEVICE, "Device"),
    "transformer_layer_cls_to_wrap": "TPU (XLA), layers",
    **dict.fromkeys(_XLA, "TPU (XLA)"),
    **dict.fromkeys(_ADAPTER, "Adapter"),
    **dict.fromkeys(_TRAINING, "Training"),
}
_INTERRUPTED = 130

ConfigFlag = Annotated[str | None, typer.Option("--config", help="Settings: a YAML file or a preset's name.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def verb(*settings: str) -> Callable:
    """Register a function as a subcommand that takes these settings as flags besides its own parameters.

    The function gets the given ones in `settings`, a dict. An expected failure is printed and becomes its exit code.
    """

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in settings}
            try:
                function(settings=given, **values)
            except FitcoachTuneError as error:
                print(f"error: {error}", file=sys.stderr)
                raise typer.Exit(error.exit_code) from None
            except BrokenPipeError:
                raise  # the reader of our output has gone; `main` leaves quietly
            except OSError as error:
                print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
                raise typer.Exit(OutputError.exit_code) from None
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                raise typer.Exit(_INTERRUPTED) from None

        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "settings"]
        flags = [_parameter(name) for name in settings]
        run.__signature__ = inspect.Signature([*own, *flags])
        run.__annotations__ = {p.name: p.annotation for p in [*own, *flags]}
        del run.__wrapped__  # or Typer would look at the function's own annotations again
        name = function.__name__.removesuffix("_verb")
        app.command(name, help=inspect.cleandoc(function.__doc__ or ""))(run)
        return run

    return register


def _parameter(name: str) -> inspect.Parameter:
    field = Config.model_fields[name]
    kind = str if name in LISTS else field.annotation
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    spelling = flag(name)
    if kind is bool:
        spelling, default = f"{spelling}/--no-{spelling[2:]}", "on" if default else "off"
    # Not Typer's own default: "not given" must stay visible, so that a configuration file can speak.
    text = field.description if default is None else f"{field.description} Default: {default}."
    option = typer.Option(spelling, help=text, show_default=False, rich_help_panel=_PANELS.get(name))
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_rich(*parts: Any) -> None:
    from rich.console import Console as RichConsole

    console = RichConsole(highlight=False)
    for part in parts:
        console.print(part)


@app.callback(invoke_without_command=True)
def _common(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"fitcoach-tune {__version__}")
        raise typer.Exit


@verb(*_DATA, *_BASE)
def prepare_verb(
    *,
    settings: dict[str, Any],
    config: ConfigFlag = None,
    output_dir: Annotated[str | None, typer.Option(help="Where to; by default under output/prepared.")] = None,
    show: Annotated[int, typer.Option(help="Print this many rows, coloured by what is shared and trained.", min=0)] = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Read rows and tools, check them, and write a prepared set: token ids, supervised spans, split, shared prefix."""
    from fitcoach_tune import models, prepare

    ui = Console(quiet)
    chosen = load_config(config, settings | {"data": output_dir})
    prepared = prepare.prepare(chosen, ui)
    manifest = prepared.manifest
    for line in prepare.warnings(manifest):
        ui.warn(line)
    if as_json:
        _print_json({"path": str(prepared.path)} | manifest)
        return
    if show:
        from fitcoach_tune.show import show_rows

        tokenizer = models.load_tokenizer(models.resolve(chosen.model, chosen.model_revision, ui).path)
        _print_rich(*show_rows(prepared, tokenizer, show))
    ui.note(prepare.summary(manifest))
    print(prepared.path)


@verb("data", "output_dir", *_BASE, *_DEVICE, "transformer_layer_cls_to_wrap", *_XLA, *_DATA, *_ADAPTER, *_TRAINING)
def train_verb(
    *,
    settings: dict[str, Any],
    config: ConfigFlag = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, change nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train anew; the run that is there is kept as .previous.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Fine-tune a LoRA adapter, preparing the data first if needed, and save it in PEFT's format."""
    chosen = load_config(config, settings)
    ui = Console(quiet)
    if dry_run:
        from fitcoach_tune.plan import dry_run as make_plan

        plan = make_plan(chosen, ui)
        if as_json:
            _print_json(plan)
        else:
            from fitcoach_tune.plan import as_table

            _print_rich(as_table(plan))
        return
    from fitcoach_tune.train import train

    run = train(chosen, force=force, ui=ui)
    if not run.record:  # not the process that writes
        return
    if as_json:
        _print_json({"path": str(run.path)} | run.record)
    else:
        print(run.path)


@verb("device", "num_devices", "per_device_eval_batch_size", "max_new_tokens")
def eval_verb(
    *,
    settings: dict[str, Any],
    adapter: Annotated[str | None, typer.Option(help="A run directory or a Hub id; the newest run by default.")] = None,
    data: Annotated[str | None, typer.Option(help="A prepared set; by default the one that the adapter names.")] = None,
    split: Annotated[Literal["test", "train", "all"], typer.Option(help="Which rows.")] = "test",
    baseline: Annotated[str, typer.Option(help="What to set beside it: base, none, or another adapter.")] = "base",
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Ask every held-out row and print how many calls are exactly right, with n and interval, base beside tuned."""
    from fitcoach_tune.evaluate import report
    from fitcoach_tune.evaluate.evaluation import evaluate
    from fitcoach_tune.infer import default_adapter

    chosen = load_config(config, settings)
    found = evaluate(default_adapter(adapter), chosen, data=data, split=split, baseline=baseline, ui=Console(quiet))
    if as_json:
        _print_json(report.as_json(found))
    else:
        _print_rich(*report.as_tables(found))


@verb("model", "tools", "device", "num_devices", "max_new_tokens")
def infer_verb(
    *,
    settings: dict[str, Any],
    query: Annotated[str, typer.Argument(help="What the user says.")],
    adapter: Annotated[str | None, typer.Option(help="A run directory or a Hub id; the newest run by default.")] = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Ask a fine-tuned model one question and print the call that it makes."""
    from fitcoach_tune.infer import FunctionCaller, check_query, default_adapter, describe_call

    check_query(query)  # before a model is loaded for nothing
    chosen = load_config(config, settings)
    caller = FunctionCaller.from_adapter(
        default_adapter(adapter),
        model=settings["model"],
        tools=settings["tools"],
        device=chosen.device,
        num_devices=chosen.num_devices,
        max_new_tokens=chosen.max_new_tokens,
        ui=Console(quiet),
    )
    answer = caller(query)
    if as_json:
        _print_json(answer.as_dict())
        return
    for call in answer.calls:
        print(describe_call(call))
    if not answer.calls:
        print(answer.text or answer.raw)
    if answer.error:
        Console(quiet).warn(f"the answer is no valid call: {answer.error}")


def main() -> None:
    """The program. Exit codes: 0 done, 2 wrong usage, the others as in `errors`, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
