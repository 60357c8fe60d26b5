"""Settings: where a value comes from, what is refused and how that is said, and what the defaults are."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fitcoach_tune.config import LISTS, Config, flag, load_config, presets, to_yaml
from fitcoach_tune.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "experiment.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def refused(source=None, **overrides) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return caught.value


# ------------------------------------------------------------------------------------------------ defaults, presets


def test_defaults_are_the_original_recipe() -> None:
    config = load_config()
    original = {
        "model": "google/functiongemma-270m-it",
        "dataset": "tengomucho/fitness-coach-function-calling",
        "output_dir": "output/functiongemma-fitness-coach",
        "dtype": "auto",  # bf16 on the TPU that it ran on
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.05,
        "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "optim": "adafactor",
        "num_train_epochs": 3,
        "max_length": 512,
        "test_size": 0.3,
        "seed": 42,
    }
    assert {name: getattr(config, name) for name in original} == original


def test_original_yaml_is_the_defaults_but_for_split_and_price() -> None:
    default, original = load_config().model_dump(), load_config("original").model_dump()
    differing = {name: value for name, value in original.items() if value != default[name]}
    assert differing == {"split": "random", "price_per_hour": 2.40}


def test_presets_load_by_name_and_by_path() -> None:
    assert {"original", "offline"} <= set(presets())
    for name, path in presets().items():
        assert load_config(name) == load_config(str(path))


def test_a_file_goes_before_a_preset_of_its_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "original").write_text("seed: 7")
    monkeypatch.chdir(tmp_path)
    assert load_config("original").seed == 7


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Config.model_fields.values())
    assert flag("per_device_train_batch_size") == "--per-device-train-batch-size"


# ------------------------------------------------------------------------------------------------ precedence, reading


def test_flags_over_file_over_defaults(write) -> None:
    source = write("lora_r: 8\nseed: 1\n")
    config = load_config(source, {"seed": 2, "lora_alpha": None})
    assert (config.lora_r, config.seed, config.lora_alpha) == (8, 2, 64)
    assert load_config(source).seed == 1
    # A flag also heals a bad value in the file.
    assert load_config(write("seed: many"), {"seed": 3}).seed == 3


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 5e-5", "learning_rate", 5e-5),
        ("learning_rate: 5.e-5", "learning_rate", 5e-5),
        ("learning_rate: 1E+0", "learning_rate", 1.0),
        ("max_steps: 1e2", "max_steps", 100),
        ("target_modules: q_proj, v_proj", "target_modules", ("q_proj", "v_proj")),
        ("target_modules: [q_proj, v_proj]", "target_modules", ("q_proj", "v_proj")),
        ("target_modules: all-linear", "target_modules", ("all-linear",)),
        ("revision: '12e4'", "revision", "12e4"),
        ("tools: ~", "tools", None),
        ("\ufeffseed: 9", "seed", 9),
        ("seed: 9\r\nlora_r: 4\r\n", "lora_r", 4),
        ("# only a comment", "seed", 42),
        ("", "seed", 42),
    ],
)
def test_yaml_values(write, text, name, value) -> None:
    found = getattr(load_config(write(text)), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice.*line 2"),
        ("seed: 1\n'seed': 1\n", "given twice"),
        ("- seed", "is a mapping of setting names"),
        ("just words", "is a mapping of setting names"),
        ("1: 2", "is a mapping of setting names"),
        ("? [a]\n: 1", "not readable as YAML"),
        ("seed: [", "not readable as YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("seed: 2026-99-99", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
        (b"model: \xff\xfe", "not readable as YAML"),
    ],
)
def test_unreadable_files(write, text, message) -> None:
    source = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(source)
    assert caught.value.where == source
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(("name", "suggested"), [("orignal", "did you mean original?"), ("/nowhere/x.yaml", "")])
def test_a_missing_file_names_the_nearest_preset(name, suggested) -> None:
    error = refused(name)
    assert "no such configuration" in error.what
    assert error.where == f"--config {name}"
    assert suggested in error.hint
    assert "offline" in error.hint
    assert "original" in error.hint


def test_a_folder_is_no_configuration(tmp_path) -> None:
    assert "no such configuration" in refused(str(tmp_path)).what


# ------------------------------------------------------------------------------------------------ refusals


def test_all_problems_at_once_with_the_nearest_names(write) -> None:
    source = write("lerning_rate: 1\nlora_dropout: 1.5\nsplit: groupd\nzzzzzz: 1\nmax_steps: 0\nseed: yes\n")
    error = refused(source, lora_r=0, num_train_epochs=-1.0)
    assert error.what == "8 settings cannot be used"
    starts = {
        f"{source}: lerning_rate: no such setting; did you mean learning_rate?",
        f"{source}: zzzzzz: no such setting",
        f"{source}: lora_dropout: input should be less than 1, not 1.5",
        f"{source}: split: input should be 'grouped' or 'random', not 'groupd'",
        f"{source}: max_steps: must be -1 (use the epochs) or at least 1, not 0",
        f"{source}: seed: must be a number or a text, not True",
        "--lora-r: input should be greater than or equal to 1, not 0",
        "--num-train-epochs: input should be greater than 0, not -1.0",
    }
    assert set(error.details) == starts
    assert error.exit_code == 2
    assert "--help" in str(error)


def test_one_problem_is_one_setting(write) -> None:
    source = write("lora_r: none")
    error = refused(source)
    assert error.what == "1 setting cannot be used"
    assert error.where == source


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"weight_decay": float("nan")},
        {"learning_rate": 0},
        {"test_size": 0},
        {"test_size": 1},
        {"test_size": 1.5},
        {"max_length": 0},
        {"max_steps": -2},
        {"lora_r": 2.5},
        {"lora_r": True},
        {"num_devices": 0},
        {"seed": -1},
        {"dtype": "fp16"},
        {"optim": "sgd"},
        {"device": "gpu"},
        {"target_modules": ""},
        {"target_modules": " , "},
        {"target_modules": []},
        {"target_modules": ["q_proj", 1]},
        {"model": 5},
        {"warmup_ratio": 1},
        {"price_per_hour": -1},
    ],
    ids=str,
)
def test_bad_values_are_refused(bad) -> None:
    (name,) = bad
    (problem,) = refused(**bad).details
    assert problem.startswith(f"{flag(name)}: ")


@pytest.mark.parametrize("text", ["learning_rate: .nan", "learning_rate: .inf", "learning_rate: 1e999"])
def test_yaml_numbers_that_are_none(write, text) -> None:
    assert "finite" in refused(write(text)).details[0]


def test_a_number_that_python_does_not_write(write) -> None:
    assert "thousands of digits" in refused(write(f"seed: 0x{'f' * 4000}")).details[0]


def test_frozen() -> None:
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    assert config.seed == 42
    assert hash(config) == hash(load_config())


# ------------------------------------------------------------------------------------------------ round trip

# Anything that can be typed; besides that, texts that YAML would take for something else.
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12) | st.sampled_from(
    ["12e45", "1e5", "5.e3", "-1E-2", "null", "~", "yes", "off", "1_000", "0x1f", "1:30", "2026-01-01", "a: b", "# c",
     "- x", "", " ", ".inf", "=", "<<", "!tag", "&a", "*a", "{", "'", '"', "\ufeff", "line\nbreak"]
)  # fmt: skip


def small(name: str) -> st.SearchStrategy:
    """Valid values of a setting, from its type and bounds."""
    field = Config.model_fields[name]
    kinds = [a for a in typing.get_args(field.annotation) or (field.annotation,) if a is not type(None)]
    low = next((getattr(m, k) for m in field.metadata for k in ("ge", "gt") if hasattr(m, k)), 0)
    high = next((getattr(m, k) for m in field.metadata for k in ("le", "lt") if hasattr(m, k)), None)
    if kinds == [bool]:
        return st.booleans()
    if name in LISTS:
        return st.lists(texts, min_size=1, max_size=3).map(tuple)
    if name == "max_steps":
        return st.just(-1) | st.integers(1, 10**9)
    if typing.get_origin(field.annotation) is typing.Literal:
        return st.sampled_from(kinds)
    if kinds == [str]:
        shortest = next((m.min_length for m in field.metadata if hasattr(m, "min_length")), 0)
        return texts.filter(lambda text: len(text) >= shortest)
    if kinds == [int]:
        return st.integers(low, 10**18)
    return st.floats(low, high, exclude_min=True, exclude_max=high is not None, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(values=st.fixed_dictionaries({}, optional={name: small(name) for name in Config.model_fields}))
def test_to_yaml_is_read_back_equal(tmp_path_factory, values) -> None:
    config = Config(**values)
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_to_yaml_states_every_setting_in_plain_yaml() -> None:
    loaded = yaml.safe_load(to_yaml(load_config()))
    assert list(loaded) == list(Config.model_fields)
    assert loaded["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_preset_files_say_only_what_exists() -> None:
    for path in presets().values():
        assert set(yaml.safe_load(Path(path).read_text(encoding="utf-8"))) <= set(Config.model_fields)
