"""Hypothesis strategies for the tests of constrained answers: tools of any make, and arguments that fit them."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from fitcoach_tune import functiongemma
from tests.conftest import tool

names = st.sampled_from(["get", "get_steps", "get_step", "a.b-c", "Log", "_x"])
keys = st.sampled_from(["a", "B", "b", "a1", "unit", "units", "items", "values", "größe", "x y", "name_of-it", "日"])
other_keys = st.sampled_from(["zz", "A", "unitx", "q r", "k-1"])
# No private-use mark that the tokenizer reads as something else, and no text that is a control token.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=8).filter(
    lambda text: functiongemma.find_control_token(text) is None
)
PATTERNS = {
    r"^\d{2}:\d{2}$": ["07:30", "23:59"],
    "^[a-z]+@[a-z]+[.]com$": ["me@home.com"],
    "^(km|mi)/h$": ["km/h", "mi/h"],
    "run": ["run", "running", "a run", "trunk"],
    r"^[^\s,]+$": ["x", "żółw", "{}"],
}
bounds = st.one_of(st.integers(-30, 30), st.integers(-(10**6), 10**6), st.floats(-50, 50).map(lambda x: round(x, 3)))


@st.composite
def strings(draw) -> dict:
    kind = draw(st.sampled_from(["free", "length", "enum", "pattern"]))
    if kind == "enum":
        return {"type": "string", "enum": draw(st.lists(texts, min_size=1, max_size=4, unique=True))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(sorted(PATTERNS)))}
    if kind == "free":
        return {"type": "string"}
    least = draw(st.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 9))}


@st.composite
def numbers(draw) -> dict:
    kind = draw(st.sampled_from(["integer", "number"]))
    if draw(st.integers(0, 4)) == 0:
        return {"type": kind, "enum": draw(st.lists(st.integers(-99, 99), min_size=1, max_size=4, unique=True))}
    schema = {"type": kind}
    low = draw(st.none() | bounds)
    if low is not None:
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = (low or 0) + draw(st.integers(2, 2000))
    return schema


def _containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    return arrays(inner) | objects(inner)


@st.composite
def arrays(draw, inner: st.SearchStrategy) -> dict:
    schema: dict[str, Any] = {"type": "array"}
    if draw(st.integers(0, 5)):
        schema["items"] = draw(inner)
    least = draw(st.integers(0, 2))
    return schema | draw(st.sampled_from([{}, {"minItems": least}, {"minItems": least, "maxItems": least + 2}]))


@st.composite
def objects(draw, inner: st.SearchStrategy) -> dict:
    properties = draw(st.dictionaries(keys, inner, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=3))
    if draw(st.integers(0, 3)) == 0:
        schema["additionalProperties"] = draw(st.booleans() | inner)
    return schema


def _spelt(schema: dict, loud: bool, nullable: bool) -> dict:
    """The same schema as other people write it."""
    kind = schema["type"].upper() if loud else schema["type"]
    return schema | {"type": kind} | ({"nullable": True} if nullable else {})


leaves = st.one_of(strings(), numbers(), st.just({"type": "boolean"}))
plain = st.recursive(leaves, _containers, max_leaves=6)
schemas = st.builds(_spelt, plain, st.booleans(), st.integers(0, 4).map(lambda n: n == 0))
parameters = st.dictionaries(keys, schemas, max_size=5).flatmap(
    lambda properties: st.fixed_dictionaries(
        {
            "type": st.just("object"),
            "properties": st.just(properties),
            "required": st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
        }
    )
)


def _tool(name: str, schema: dict) -> dict:
    made = tool(name)
    made["function"]["parameters"] = schema
    return made


tools = st.lists(st.tuples(names, parameters), min_size=1, max_size=3, unique_by=lambda pair: pair[0]).map(
    lambda pairs: [_tool(*pair) for pair in pairs]
)


def arguments(draw, made: dict) -> dict:
    """Arguments that fit a tool."""
    return fitting(draw, {"additionalProperties": False, **made["function"]["parameters"]})


def fitting(draw, schema: Any) -> Any:
    """A value that fits a schema: every keyword of the strategies above is kept."""
    if schema is True or not schema:
        return draw(anything)
    kind = schema["type"].lower()
    if schema.get("nullable") and draw(st.booleans()):
        return None
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    if kind == "boolean":
        return draw(st.booleans())
    if kind == "string":
        return _fitting_string(draw, schema)
    if kind in ("integer", "number"):
        return _fitting_number(draw, schema, kind)
    if kind == "array":
        least = schema.get("minItems", 0)
        count = draw(st.integers(least, schema.get("maxItems", least + 3)))
        return [fitting(draw, schema.get("items", True)) for _ in range(count)]
    found = {
        key: fitting(draw, inner)
        for key, inner in schema["properties"].items()
        if key in schema.get("required", ()) or draw(st.booleans())
    }
    additional = schema.get("additionalProperties", not schema["properties"])
    if additional is not False:
        others = draw(st.lists(other_keys, max_size=3, unique=True))
        found |= {key: fitting(draw, additional) for key in others}
    return found


def _fitting_string(draw, schema: dict) -> str:
    if "pattern" in schema:
        return draw(st.sampled_from(PATTERNS[schema["pattern"]]))
    text = draw(texts)
    least, most = schema.get("minLength", 0), schema.get("maxLength", 99)
    return (text + "x" * least)[: max(least, min(most, len(text)))]


def _fitting_number(draw, schema: dict, kind: str) -> int | float:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    least = -(10**9) if low is None else low
    most = least + 10**9 if high is None else high
    if kind == "integer" or draw(st.booleans()):
        value = draw(st.integers(-(-least // 1), int(most // 1))) if -(-least // 1) <= most // 1 else least
    else:
        value = draw(st.floats(least, most, allow_nan=False))
        assume(value == 0 or abs(value) >= 1e-4 or (low is None and high is None))  # others are spelt in another way
    fits = (
        ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        and (kind == "number" or value == int(value))
    )
    assume(fits)
    return int(value) if kind == "integer" else value


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(-1e300, 1e300), texts)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | other_keys, inner, max_size=3),
    max_leaves=6,
)
