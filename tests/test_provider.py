"""The fitness coach's functions: they are those that are declared, and read the day as it is."""

from __future__ import annotations

import json

import pytest
from transformers.utils import get_json_schema

from fitcoach_tune import fitness
from fitcoach_tune.errors import DataError
from fitcoach_tune.fitness.provider import SAMPLE, SENTENCES, Provider

DAY = {
    "steps": 9999, "daily_step_goal": 10000, "sleeping_minutes": 45, "active_minutes": 61, "heart_rate": [50, 150],
    "body_battery_level": 7,
}  # fmt: skip


@pytest.fixture
def day(tmp_path):
    path = tmp_path / "day.json"
    path.write_text(json.dumps(DAY))
    return path


def test_they_are_what_is_declared():
    """What transformers makes of the functions is tools.json, which also says that nothing is required."""
    made = [get_json_schema(function) for function in Provider().functions().values()]
    for tool in made:
        tool["function"]["parameters"]["required"] = []
    assert made == fitness.tools()


def test_what_they_give(day):
    functions = Provider(day).functions()
    assert {name: function() for name, function in functions.items()} == {
        "get_steps": 9999, "get_daily_step_goal": 10000, "get_step_goal_progress": 99, "get_sleeping_minutes": 45,
        "get_active_minutes": 61, "get_heart_rate": (50, 150), "get_body_battery_level": 7,
    }  # fmt: skip


def test_how_it_is_said(day):
    functions = Provider(day).functions()
    assert [SENTENCES[name](function()) for name, function in functions.items()] == [
        "You have walked 9,999 steps today.",
        "Your goal for today is 10,000 steps.",
        "You have reached 99% of today's step goal.",
        "You have slept 45 minutes.",
        "You have been active for 1 h 1 min (61 minutes) today.",
        "Your heart rate today was between 50 and 150 beats a minute.",
        "Your body battery is at 7%.",
    ]


def test_the_sample_has_all_of_it():
    assert json.loads(SAMPLE.read_text()).keys() == DAY.keys()
    assert Provider().get_steps() == 8421


def test_the_file_is_read_anew(day):
    provider = Provider(day)
    day.write_text('{"steps": 3, "daily_step_goal": 0}')
    assert (provider.get_steps(), provider.get_step_goal_progress()) == (3, 100)
    with pytest.raises(LookupError, match="no sleeping_minutes"):
        provider.get_sleeping_minutes()
    day.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        provider.get_steps()


@pytest.mark.parametrize(("text", "part"), [
    ("{", "not valid JSON"), ("[]", "must be an object"), ('{"step": 1}', "did you mean steps?"),
    ('{"xyz": 1}', "give an object with steps"), ('{"steps": -1}', "steps must be a whole number"),
    ('{"steps": true}', "steps must be"), ('{"steps": 1.5}', "steps must be"), ('{"steps": "8"}', "steps must be"),
    ('{"heart_rate": 60}', "heart_rate must be a list"), ('{"heart_rate": [90, 60]}', "the lower first"),
    ('{"heart_rate": [1, 2, 3]}', "heart_rate must be"), ('{"steps": 1, "steps": 2}', "stands twice"),
])  # fmt: skip
def test_what_is_no_day(day, text, part):
    day.write_text(text)
    with pytest.raises(DataError, match=str(day)) as error:
        Provider(day)
    assert part in str(error.value)
