"""The command line: parses, calls one function for a verb, prints. Data goes to stdout, everything else to stderr.

Every setting's flag, help and default come from `config.Config`. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import codecs
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from fitcoach_tune import __version__
from fitcoach_tune.config import LISTS, Config, flag, load_config
from fitcoach_tune.console import Console, printable
from fitcoach_tune.errors import ConfigError, FitcoachTuneError, GateError, OutputError, out_of_memory

app = typer.Typer(
    name="fitcoach-tune",
    help="Fine-tune FunctionGemma (270M) to turn what people say into the right function call.\n\n"
    "prepare → train → eval → infer → push, on TPU, GPU or plain CPU. Start with `fitcoach-tune train "
    "--config offline`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DATA = ("dataset", "revision", "tools", "max_length", "excess_length", "test_size", "split")
_BASE = ("model", "model_revision")
_DEVICE = ("device", "num_devices", "dtype")
# What is switched on or off stands in a panel of its own, and so does the longest name: they would not fit.
_XLA = ("xla_fsdp_v2", "xla_fsdp_grad_ckpt", "allow_recompile")
_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
_TRAINING = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "optim",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "report_to",
    "price_per_hour",
)
_PROMPT = ("shuffle_tools", "tool_dropout")
_CHECKPOINTS = ("save_steps", "save_total_limit", "resume_from_checkpoint")
_EVALUATION = ("per_device_eval_batch_size", "max_new_tokens")
_PANELS = {
    **dict.fromkeys(_DATA, "Data"),
    **dict.fromkeys(_BASE, "Base model"),
    **dict.fromkeys(_DEVICE, "Device"),
    "transformer_layer_cls_to_wrap": "TPU (XLA), layers",
    **dict.fromkeys(_XLA, "TPU (XLA)"),
    **dict.fromkeys(_ADAPTER, "Adapter"),
    **dict.fromkeys(_TRAINING, "Training"),
    **dict.fromkeys(_PROMPT, "Prompt"),
    **dict.fromkeys(_CHECKPOINTS, "Checkpoints"),
    **dict.fromkeys(_EVALUATION, "Evaluation"),
}
_INTERRUPTED = 130

ConfigFlag = Annotated[str | None, typer.Option("--config", help="Settings: a YAML file or a preset's name.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def verb(*settings: str, **aliases: str) -> Callable:
    """Register a function as a subcommand that takes these settings as flags besides its own parameters.

    `aliases` gives settings a second, shorter flag where it cannot be misunderstood.
    The function gets the given ones in `settings`, a dict. An expected failure is printed and becomes its exit code.
    """

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            try:
                _check_text(values)
                given = {name: values.pop(name) for name in settings}
                function(settings=given, **values)
            except FitcoachTuneError as error:
                print(printable(f"error: {error}"), file=sys.stderr)
                raise typer.Exit(error.exit_code) from None
            except (MemoryError, RuntimeError) as error:
                if not (known := out_of_memory(error)):
                    raise
                print(printable(f"error: {known}"), file=sys.stderr)
                raise typer.Exit(known.exit_code) from None
            except BrokenPipeError:
                raise  # the reader of our output has gone; `main` leaves quietly
            except OSError as error:
                what = f"error: {error.filename or 'the system'}: {error.strerror or error}"
                print(printable(what), file=sys.stderr)
                raise typer.Exit(OutputError.exit_code) from None
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                raise typer.Exit(_INTERRUPTED) from None

        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "settings"]
        flags = [_parameter(name, aliases.get(name)) for name in settings]
        run.__signature__ = inspect.Signature([*own, *flags])
        run.__annotations__ = {p.name: p.annotation for p in [*own, *flags]}
        del run.__wrapped__  # or Typer would look at the function's own annotations again
        name = function.__name__.removesuffix("_verb")
        app.command(name, help=inspect.cleandoc(function.__doc__ or ""))(run)
        return run

    return register


def _check_text(values: dict[str, Any]) -> None:
    """Refuse what Python makes of an argument with other bytes than UTF-8: it could be printed and written nowhere."""
    for name, value in values.items():
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            hint = "set the terminal's encoding to UTF-8"
            where = {"query": "the query", "lines": "--input"}.get(name, flag(name))
            raise ConfigError("it is not UTF-8 text", where=where, hint=hint)


def _parameter(name: str, alias: str | None) -> inspect.Parameter:
    field = Config.model_fields[name]
    kind = str if name in LISTS else field.annotation
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    spelling = flag(name)
    if kind is bool:
        spelling, default = f"{spelling}/--no-{spelling[2:]}", "on" if default else "off"
    # Not Typer's own default: "not given" must stay visible, so that a configuration file can speak.
    text = field.description if default is None else f"{field.description} Default: {default}."
    spellings = [alias, spelling] if alias else [spelling]
    option = typer.Option(*spellings, help=text, show_default=False, rich_help_panel=_PANELS.get(name))
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


@verb("seed", *_DATA, *_BASE)
def prepare_verb(
    *,
    settings: dict[str, Any],
    config: ConfigFlag = None,
    output_dir: Annotated[str | None, typer.Option(help="Where to; by default under output/prepared.")] = None,
    show: Annotated[int, typer.Option(help="Print this many rows, coloured by what is shared and trained.", min=0)] = 0,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Also publish the rows as this dataset on the Hub: owner/name.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make that dataset private, if it has to be made.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Read rows and tools, check them, and write a prepared set: token ids, supervised spans, split, shared prefix."""
    from fitcoach_tune import hub, models, prepare

    if private and not push_to_hub:
        raise ConfigError("nothing is published", where="--private", hint="add --push-to-hub")
    if show and as_json:
        raise ConfigError("rows are shown to people", where="--show and --json", hint="leave one of them out")
    ui = Console(quiet)
    chosen = load_config(config, settings | {"data": output_dir})
    if push_to_hub:
        hub.check_repo_id(push_to_hub, "--push-to-hub")  # before anything is prepared for nothing
    prepared = prepare.prepare(chosen, ui)
    manifest = prepared.manifest
    for line in prepare.warnings(manifest):
        ui.warn(line)
    published = {}
    if push_to_hub:
        from fitcoach_tune.publish.rows import push_rows

        sent = push_rows(prepared, push_to_hub, private=private, ui=ui)
        published = {"hub": {"repo_id": push_to_hub} | sent.as_dict()}
        ui.note(f"the rows are at {sent.url}")
    if as_json:
        _print_json({"path": str(prepared.path)} | manifest | published)
        return
    if show:
        from fitcoach_tune.show import show_rows

        tokenizer = models.load_tokenizer(models.resolve(chosen.model, chosen.model_revision, ui).path)
        _print_rich(*show_rows(prepared, tokenizer, show))
    ui.note(prepare.summary(manifest))
    print(prepared.path)


@verb(
    "data",
    "output_dir",
    "seed",
    *_BASE,
    *_DEVICE,
    "transformer_layer_cls_to_wrap",
    *_XLA,
    *_DATA,
    *_ADAPTER,
    *_TRAINING,
    *_PROMPT,
    *_CHECKPOINTS,
    "per_device_eval_batch_size",
    "hub_model_id",
)
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
    from fitcoach_tune.prepare import check_asked

    chosen = load_config(config, settings)
    ui = Console(quiet)
    check_asked(chosen, settings)
    if dry_run:
        from fitcoach_tune.plan import dry_run as make_plan

        plan = make_plan(chosen, ui, force=force)
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


@verb("seed", "device", "num_devices", *_EVALUATION, per_device_eval_batch_size="--batch-size")
def eval_verb(
    *,
    settings: dict[str, Any],
    adapter: Annotated[str | None, typer.Option(help="A run directory or a Hub id; the newest run by default.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A prepared set, or rows as prepare --dataset takes them; the adapter's own set by default."),
    ] = None,
    split: Annotated[
        Literal["test", "train", "all"] | None, typer.Option(help="Which rows of a prepared set. Default: test.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="What to set beside it: base, none, or another adapter.")] = "base",
    hard: Annotated[bool, typer.Option("--hard", help="Also ask harder sets, made from the same rows.")] = False,
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--unconstrained",
            help="Allow only valid calls of declared functions, or anything; by default both, for the tuned model.",
        ),
    ] = None,
    normalise_strings: Annotated[
        bool, typer.Option("--normalise-strings", help="Compare strings without regard to case and white space.")
    ] = False,
    report: Annotated[
        str | None, typer.Option(help="Folder for results.json, samples.jsonl and report.html; by default in the run.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the base model is now, if not where the adapter says; it must be the same."),
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit with code 9 if fewer calls than this share are exact.", min=0, max=1),
    ] = None,
    gate: Annotated[
        Literal["point", "lower"],
        typer.Option(help="What --fail-under is held against: the share, or the lower end of its 95% interval."),
    ] = "point",
    max_invented: Annotated[
        int | None,
        typer.Option(help="Exit with code 9 if more answers than this call an undeclared function.", min=0),
    ] = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Ask every held-out row and print how many calls are exactly right, with n and interval, base beside tuned."""
    from fitcoach_tune.evaluate.evaluation import Options, evaluate
    from fitcoach_tune.infer import default_adapter

    chosen, ui = load_config(config, settings), Console(quiet)
    options = Options(
        data=data,
        split=split,
        baseline=baseline,
        hard=hard,
        constrained=constrained,
        strings="normalised" if normalise_strings else "exact",
        report=report,
        model=model,
        fail_under=fail_under,
        gate=gate,
        max_invented=max_invented,
    )
    found = evaluate(default_adapter(adapter), chosen, options, ui)
    if as_json:
        _print_json({"report": str(found.folder)} | found.results)
    else:
        from fitcoach_tune.evaluate.report import as_tables

        _print_rich(*as_tables(found))
    ui.note(f"all answers and the report: {found.folder}")
    if failed := [gate for gate in found.gates if not gate.passed]:
        raise GateError("; ".join(gate.text for gate in failed), where=", ".join(gate.flag for gate in failed))


@verb("device", "num_devices", "max_new_tokens")
def infer_verb(
    *,
    settings: dict[str, Any],
    query: Annotated[str | None, typer.Argument(help="What the user says.", show_default=False)] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="A run directory, a Hub id, or none for --model alone; by default the newest run."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: a Hub id, a folder, or 'offline'; by default the adapter's own.")
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option(
            help="A JSON file, module:object or a builtin:NAME; by default what the adapter was trained with."
        ),
    ] = None,
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--unconstrained",
            help="Allow only valid calls of declared functions, or anything; by default the first, where possible.",
        ),
    ] = None,
    execute: Annotated[
        bool,
        typer.Option("--execute", help="Run the functions that are called, with your rights, and print the answer."),
    ] = False,
    tool_timeout: Annotated[
        float | None, typer.Option(help="Seconds that a function may take. Default: 30.", show_default=False)
    ] = None,
    fitness_data: Annotated[
        str | None, typer.Option(help="The day that builtin:fitness reads, a JSON file; by default a sample.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Have a conversation; the default at a terminal.")] = False,
    lines: Annotated[
        str | None,
        typer.Option("--input", help='Many questions, a {"query": …} a line; - is stdin, the default if it is piped.'),
    ] = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show prompts, raw outputs and times on stderr.")
    ] = False,
    quiet: QuietFlag = False,
) -> None:
    """Ask a fine-tuned model, and print the calls that it makes, or what they give.

    One question, a conversation at a terminal, or many questions as JSON lines. Nothing is run without --execute.
    """
    from fitcoach_tune.infer import Options, infer

    options = Options(
        query=query,
        adapter=adapter,
        model=model,
        tools=tools,
        constrained=constrained,
        execute=execute,
        tool_timeout=tool_timeout,
        fitness_data=fitness_data,
        chat=chat,
        lines=lines,
        as_json=as_json,
        verbose=verbose,
    )
    infer(options, load_config(config, settings | {"model": model}), Console(quiet))


@verb("hub_model_id", hub_model_id="--repo-id")
def push_verb(
    *,
    settings: dict[str, Any],
    adapter: Annotated[str | None, typer.Option(help="A run directory; the newest run by default.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it has to be made.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it is not there.")] = None,
    commit_message: Annotated[str | None, typer.Option("--commit-message", "-m", help="Message of the commit.")] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Push merged bf16 weights, which need no base model, not the adapter.")
    ] = False,
    allow_unevaluated: Annotated[
        bool, typer.Option("--allow-unevaluated", help="Push an adapter that was never evaluated; its card says so.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files and the model card, and send nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before anything is sent.")] = False,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Publish a checked and evaluated run on the Hub as one commit: adapter, tokenizer, model card, results, settings.

    The login is `hf auth login` or HF_TOKEN. Nothing else in the run's folder is sent.
    """
    from fitcoach_tune import push, runs
    from fitcoach_tune.publish.upload import Uploader

    if not (yes or dry_run or (sys.stdin and sys.stdin.isatty())):
        raise ConfigError("there is no terminal to ask at", where="--yes", hint="give it, or look with --dry-run first")
    ui = Console(quiet)
    repo_id = load_config(config, settings).hub_model_id
    options = push.Options(repo_id, private, revision, commit_message, merged, allow_unevaluated)
    with push.planned(adapter or runs.newest_run(), options, ui) as plan:
        if dry_run:
            if as_json:
                _print_json(plan.as_dict() | {"card": plan.card})
            else:
                print(*push.describe(plan, None), "", plan.card, sep="\n")
            return

        def confirm(remote: Any) -> None:
            for line in push.describe(plan, remote):
                ui.note(line) if yes else typer.echo(line, err=True)
            if not yes:
                typer.echo("Send this? [y/N] ", nl=False, err=True)
                if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                    raise typer.Abort

        sent = push.send(plan, Uploader(ui), confirm)
        if as_json:
            _print_json(plan.as_dict() | sent.as_dict())
            return
    if sent.unchanged:
        ui.note("all of it is there already; no commit was made")
    print(sent.url)


def main() -> None:
    """The program. Exit codes: 0 done, 2 wrong usage, the others as in `errors`, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Where one was closed before we began: what is said there is heard by nobody, and must not land in the other.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if codecs.lookup(sys.stdout.encoding).name != "utf-8":  # a dash in a table is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
