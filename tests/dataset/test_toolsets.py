"""Equal tools are read once; what the model is not shown of them is noted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fitcoach_tune.dataset.toolsets import ToolCache
from fitcoach_tune.strict_json import Flaw
from tests.samples import WORKOUT, tool


def test_equal_tools_share_one_list_and_a_fault_is_new_only_once():
    cache = ToolCache(Counter())
    first = cache.get([WORKOUT])
    assert cache.get(json.dumps([WORKOUT])) is first
    assert cache.get(json.dumps([WORKOUT["function"]], indent=1)) is first
    assert cache.get([tool("other")]) is not first
    faults = []
    for _ in range(2):
        with pytest.raises(Flaw) as caught:
            cache.get("[{}]")
        faults.append(caught.value.repeated)
    assert faults == [False, True]


def test_keywords_that_the_format_leaves_out_are_noted():
    cache = ToolCache(Counter())
    shown = {"type": "string", "description": "d", "enum": ["a"]}
    hidden = {"type": "integer", "enum": [1], "minimum": 0, "description": "d"}
    nested = {"type": "OBJECT", "description": "d", "properties": {"level": hidden, "name": shown}}
    cache.get([tool(properties={"goal": nested, "name": shown})])
    cache.get([WORKOUT])
    assert list(cache.not_shown) == ["tool 'log_workout': the format does not show goal.level.enum, goal.level.minimum"]
