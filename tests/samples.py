"""A tool with one parameter of each kind, and any JSON value."""

from __future__ import annotations

from hypothesis import strategies as st


def tool(name="log_workout", description="Log a workout.", **parameters):
    parameters = {"type": "object", "properties": {}, **parameters}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WORKOUT = tool(
    properties={
        "kind": {"type": "string", "description": "Kind", "enum": ["run", "swim"]},
        "minutes": {"type": "integer", "description": "Minutes"},
        "goal": {
            "type": "object",
            "description": "Goal",
            "properties": {"km": {"type": "number", "description": "Distance"}},
        },
        "laps": {"type": "array", "description": "Laps", "items": {"type": "integer"}},
    },
    required=["kind"],
)


finite_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
