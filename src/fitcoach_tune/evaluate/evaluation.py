"""The eval verb: every row is asked, and what the model says is compared with what it should; base beside tuned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fitcoach_tune import files, models, prepared_set, reading, runs
from fitcoach_tune.config import Config
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import ConfigError, DeviceError, FitcoachTuneError
from fitcoach_tune.evaluate import results
from fitcoach_tune.evaluate.answers import Answer, Journal, key_of, read_answers
from fitcoach_tune.evaluate.results import Gate, QuestionSet, SetResult
from fitcoach_tune.evaluate.score import judge
from fitcoach_tune.evaluate.sources import Rows, question_sets, read_rows
from fitcoach_tune.gold import Strings

if TYPE_CHECKING:
    from fitcoach_tune.backends.base import Backend
    from fitcoach_tune.evaluate.constrain import Constraint
    from fitcoach_tune.evaluate.generate import Generator
    from fitcoach_tune.models import Base
    from fitcoach_tune.tokenizer import AnyTokenizer

RESULTS_NAME, SAMPLES_NAME, PAGE_NAME = "results.json", "samples.jsonl", "report.html"
EVAL_FOLDER = "eval"
TUNED, CONSTRAINED = "tuned", "tuned, constrained"


@dataclass(frozen=True)
class Options:
    """What to evaluate and how, besides the configuration.

    Attributes:
        data: a prepared set, or rows as `prepare --dataset` takes them; by default the set that the adapter was trained
            with.
        split: of a prepared set; by default the held-out rows.
        baseline: `base` for the untuned model, `none`, or another adapter.
        hard: ask the harder sets as well.
        constrained: to valid calls; None asks the tuned model both ways.
        strings: how the strings of arguments are compared.
        report: where the files go; by default into the adapter's folder.
        fail_under, gate, max_invented: see `results.check_gates`.
    """

    data: str | None = None
    split: Literal["test", "train", "all"] | None = None
    baseline: str = "base"
    hard: bool = False
    constrained: bool | None = None
    strings: Strings = "exact"
    report: str | None = None
    model: str | None = None
    fail_under: float | None = None
    gate: Literal["point", "lower"] = "point"
    max_invented: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A model that is asked: the base, or an adapter on it."""

    name: str
    adapter: runs.Run | None
    constrained: bool


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        sets: the main set first.
        baseline: the name of the model that the tuned one is compared with, or None.
        gates: what the user asked it to meet.
        results: what `results.json` holds; samples: the lines of `samples.jsonl`.
        folder: where these and `report.html` are.
    """

    sets: list[SetResult]
    baseline: str | None
    gates: Sequence[Gate]
    results: dict[str, Any]
    samples: list[dict[str, Any]]
    folder: Path


def evaluate(adapter: str, config: Config, options: Options | None = None, ui: Console = SILENT) -> Evaluation:
    """Ask every row, greedily, compare, and write what was found.

    Answers are kept as they come: an evaluation that was interrupted goes on where it stopped, and the base model is
    asked the same questions only once.

    Args:
        adapter: a run directory or a Hub id.
        config: device, batch size, longest answer and the seed of the harder sets are taken from it.

    Raises:
        MismatchError: the adapter, the set and the base do not belong together.
        ConfigError: the split has no rows.
        DataError: the rows cannot be read, or do not fit the model.
        OutputError: the report cannot be written.
    """
    from fitcoach_tune.backends import make_backend
    from fitcoach_tune.inference.loading import find_base

    options = options or Options()
    _check(options)
    run = runs.open_run(adapter)
    other = None if options.baseline in ("base", "none") else runs.open_run(options.baseline, "--baseline")
    rows = read_rows(run, options.data, options.split, ui)
    base = find_base(run, options.model, ui)
    if other:
        runs.check_base(other, base)
    folder = reading.user_path(options.report, "--report") if options.report else _default_folder(run, rows)
    asker = _Asker(run, base, config, make_backend(config.device, config.num_devices), options, rows, folder, ui)
    candidates = _candidates(run, other, options, asker)
    sets = question_sets(rows, asker.tokenizer, asker.room, config.seed if options.hard else None)
    found = [SetResult(asked, []) for asked in sets]
    with Journal(folder / SAMPLES_NAME, "choose another --report") as journal:
        for candidate in candidates:
            asker.ask_all(candidate, found, journal)
    return _finish(found, None if options.baseline == "none" else options.baseline, asker)


# ------------------------------------------------------------------------------------------------ who is asked


def _check(options: Options) -> None:
    """Refuse what needs nothing to be read to be refused."""
    if options.gate == "lower" and options.fail_under is None:
        raise ConfigError("nothing is held against it", where="--gate", hint="add --fail-under")
    if options.baseline in (TUNED, CONSTRAINED):
        what = "reports call the adapter itself so"
        raise ConfigError(what, where=f"--baseline {options.baseline}", hint=f"write ./{options.baseline}")


def _default_folder(run: runs.Run, rows: Rows) -> Path:
    """The adapter's own folder, or for one from the Hub a folder under output/; rows of other places that have the same
    name have folders of their own.
    """
    local = reading.user_path(run.name, "--adapter").is_dir()
    home = run.path if local else runs.RUNS_FOLDER / run.name.replace("/", "--").replace("@", "--")
    trained_on = rows.chat_template is not None and rows.name == run.record.get("data", {}).get("path")
    place = Path(rows.name)
    stem = place.stem if place.suffix in (".jsonl", ".json", ".parquet") else place.name
    name = rows.split if trained_on else f"{stem.replace(':', '-')}-{rows.split}"
    folder = home / EVAL_FOLDER / name
    with contextlib.suppress(OSError, LookupError, TypeError, ValueError):  # a report that cannot be read is no other
        if json.loads((folder / RESULTS_NAME).read_bytes())["data"]["name"] != rows.name:
            return folder.with_name(f"{name}-{files.sha256_text(rows.name)[:8]}")
    return folder


def _candidates(run: runs.Run, other: runs.Run | None, options: Options, asker: _Asker) -> list[Candidate]:
    """Who is asked: the baseline, the tuned model, and where nothing else is said the tuned model constrained, too."""
    always = options.constrained is True
    first = [] if options.baseline == "none" else [Candidate(options.baseline, other, always)]
    found = [*first, Candidate(TUNED, run, always)]
    if options.constrained is None and asker.can_constrain():
        found.append(Candidate(CONSTRAINED, run, True))
    return found


class _Asker:
    """One evaluation's models, questions and answers."""

    def __init__(
        self,
        run: runs.Run,
        base: Base,
        config: Config,
        backend: Backend,
        options: Options,
        rows: Rows,
        folder: Path,
        ui: Console,
    ):
        from fitcoach_tune.backends import answering_dtype

        self.run, self.base, self.config, self.backend, self.options = run, base, config, backend, options
        self.rows, self.folder, self.ui = rows, folder, ui
        self.dtype = answering_dtype(run.dtype, backend)
        self.known = read_answers(folder / SAMPLES_NAME)
        self._constraints: dict[int, Constraint] = {}
        self._loaded: tuple[runs.Run | None, Generator] | None = None

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        own = (self.run.path / "tokenizer.json").is_file()
        return models.load_tokenizer(self.run.path if own else self.base.path, self.rows.chat_template)

    @property
    def room(self) -> int:
        """Tokens that fit before the longest answer."""
        length = models.context_length(self.base.path)
        return length - self.config.max_new_tokens

    @property
    def batch_size(self) -> int:
        """Questions that are asked together."""
        return self.config.per_device_eval_batch_size * self.backend.groups

    # -------------------------------------------------------------------------------------------- who answers

    def can_constrain(self) -> bool:
        """Whether answers can be constrained here; if not, says why."""
        if self.backend.compiled:
            self.ui.note(f"constrained answers are not made on {self.backend.name}")
            return False
        try:
            for example in self.rows.examples:
                self.constraint(example.tools)
        except FitcoachTuneError as error:
            self.ui.warn(f"constrained answers are left out: {error}")
            return False
        return True

    def constraint(self, tools: list[dict]) -> Constraint:
        """The constraint to calls of these tools, made once."""
        from fitcoach_tune.evaluate.constrain import Constraint

        if id(tools) not in self._constraints:
            self._constraints[id(tools)] = Constraint(tools, self.tokenizer)
        return self._constraints[id(tools)]

    def _generator(self, adapter: runs.Run | None) -> Generator:
        from fitcoach_tune.evaluate.gemma import answering_model
        from fitcoach_tune.evaluate.generate import Generator
        from fitcoach_tune.training.adapter import load_adapter

        if not self._loaded or self._loaded[0] is not adapter:
            self._loaded = None  # two models need not stand in memory at a time
            model = answering_model(self.base, self.dtype, self.backend)
            model = load_adapter(model, adapter.path) if adapter else model
            self.backend.place(model)
            self._loaded = adapter, Generator(model, self.backend)
        return self._loaded[1]

    def _fingerprint(self, adapter: runs.Run | None) -> str:
        # A pinned revision cannot have changed; hashing its weights would only cost time.
        base = [self.base.name, self.base.revision] if self.base.revision else models.weights_hash(self.base.path)
        # Devices round differently, and how long an answer takes is the device's.
        return files.sha256_json([base, adapter.sha256 if adapter else None, self.dtype, self.backend.describe()])

    # -------------------------------------------------------------------------------------------- the answers

    def ask_all(self, candidate: Candidate, found: list[SetResult], journal: Journal) -> None:
        """Get this model's answers to all sets, and judge them."""
        if candidate.constrained and self.backend.compiled:
            where, hint = f"--constrained with --device {self.backend.name}", "--unconstrained"
            raise DeviceError("constrained answers cannot be made on this device", where=where, hint=hint)
        fingerprint = self._fingerprint(candidate.adapter)
        keys = [self._keys(result.asked, fingerprint, candidate.constrained) for result in found]
        total, done = sum(map(len, keys)), 0
        with contextlib.ExitStack() as stack:
            kept = self._kept(candidate, fingerprint, stack)
            update = stack.enter_context(self.ui.bar(f"asking {candidate.name}", total))

            def advance(count: int) -> None:
                nonlocal done
                done += count
                update(done)

            for result, own in zip(found, keys, strict=True):
                missing = _missing(own, self.known)
                advance(len(own) - len(missing))
                self._ask(candidate, result.asked, own, missing, journal, kept, lambda: advance(1))
        for result, own in zip(found, keys, strict=True):
            answers = [self.known[key] for key in own]
            judged = results.judge_all(result.asked, candidate.name, own, answers, self.options.strings)
            result.models.append(judged)

    def _keys(self, asked: QuestionSet, fingerprint: str, constrained: bool) -> list[str]:
        limit = self.config.max_new_tokens
        return [
            key_of(fingerprint, prompt, turn.tools, limit, constrained, self.batch_size)
            for prompt, turn in zip(asked.prompts, asked.turns, strict=True)
        ]

    def _kept(self, candidate: Candidate, fingerprint: str, stack: contextlib.ExitStack) -> Journal | None:
        """Where the answers of a model that others are compared with outlive this evaluation."""
        if candidate.name in (TUNED, CONSTRAINED):
            return None
        path = files.cache_dir() / "answers" / f"{fingerprint[:16]}.jsonl"
        self.known |= read_answers(path)
        return stack.enter_context(Journal(path, "set FITCOACH_TUNE_CACHE to a folder with room"))

    def _ask(
        self,
        candidate: Candidate,
        asked: QuestionSet,
        keys: list[str],
        missing: list[int],
        journal: Journal,
        kept: Journal | None,
        advance: Callable[[], None],
    ) -> None:
        if not missing:
            return
        from fitcoach_tune.evaluate.asking import ask, groups

        turns = [asked.turns[i] for i in missing]

        def on_answer(place: int, answer: Answer) -> None:
            index = missing[place]
            turn, key = asked.turns[index], keys[index]
            self.known[key] = answer
            verdict = judge(answer.raw, turn.gold, turn.tools, self.options.strings)
            journal.write(results.sample_of(asked, index, candidate.name, key, answer, verdict))
            if kept:
                kept.write({"key": key, **answer.as_dict()})
            advance()

        together = [list(range(len(turns)))] if self.backend.compiled else groups([turn.tools for turn in turns])
        ask(
            self._generator(candidate.adapter),
            self.tokenizer,
            [asked.prompts[i] for i in missing],
            together,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.batch_size,
            constraints=[self.constraint(turn.tools) for turn in turns] if candidate.constrained else None,
            on_answer=on_answer,
        )


def _missing(keys: list[str], known: dict[str, Answer]) -> list[int]:
    """The questions that nobody has answered, each prompt once."""
    first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
    return sorted(first.values())


# ------------------------------------------------------------------------------------------------ what is written


def _finish(found: list[SetResult], baseline: str | None, asker: _Asker) -> Evaluation:
    from fitcoach_tune.evaluate.page import render_page

    options, config, folder = asker.options, asker.config, asker.folder
    main = found[0].of(TUNED).metrics
    gates = results.check_gates(main, options.fail_under, options.gate == "lower", options.max_invented)
    record = {
        "schema_version": results.SCHEMA_VERSION,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": prepared_set.versions(),
        "adapter": {
            "name": asker.run.name,
            "revision": asker.run.revision,
            "base": asker.base.name,
            "sha256": asker.run.sha256,
        },
        "data": {
            "name": asker.rows.name,
            "split": asker.rows.split,
            "sha256": asker.rows.sha256,
            "source_sha256": asker.rows.source_sha256,
        },
        "settings": {
            "max_new_tokens": config.max_new_tokens,
            "batch_size": config.per_device_eval_batch_size,
            "strings": options.strings,
            "constrained": options.constrained,
            "seed": config.seed,
            "device": asker.backend.describe(),
            "dtype": asker.dtype,
        },
        "sets": [results.set_as_dict(result, baseline, TUNED) for result in found],
        "gates": [asdict(gate) for gate in gates],
    }
    samples = [sample for result in found for sample in results.samples_of(result)]
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    files.write_atomic(folder / SAMPLES_NAME, lines)
    files.write_atomic(folder / PAGE_NAME, render_page(record, samples))
    files.write_atomic(folder / RESULTS_NAME, files.to_json(record))
    return Evaluation(found, baseline, gates, record, samples, folder)
