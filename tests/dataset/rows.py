"""Sample rows of every form, and every container to put them in."""

from __future__ import annotations

import json

STEPS = {
    "type": "function",
    "function": {
        "name": "get_steps",
        "description": "Steps today.",
        "parameters": {"type": "object", "properties": {}},
    },
}
WORKOUT = {
    "type": "function",
    "function": {
        "name": "log_workout",
        "description": "Log a workout.",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"type": "string", "description": "Kind", "enum": ["run", "swim"]},
                "minutes": {"type": "integer", "description": "Minutes"},
            },
            "required": ["kind"],
        },
    },
}
TOOLS = [STEPS, WORKOUT]
RUN = {"kind": "run", "minutes": 30}
WIRE = "<start_function_call>call:log_workout{kind:<escape>run<escape>,minutes:30}<end_function_call>"


def called(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def conversation(calls, query="log it"):
    return [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": query},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]


# Containers: each writes rows and returns the source to read


def as_jsonl(rows, folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_json(rows, folder):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def as_json_object(rows, folder):
    path = folder / "rows.json"
    path.write_text(json.dumps({"version": 1, "rows": rows}))
    return str(path)


def as_parquet(rows, folder):
    import pyarrow
    from pyarrow import parquet

    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def as_saved(rows, folder):
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_saved_splits(rows, folder):
    import datasets

    other = datasets.Dataset.from_list([{"user": "other", "assistant": "other"}])
    datasets.DatasetDict({"test": other, "train": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "splits")
    return str(folder / "splits")


CONTAINERS = [as_jsonl, as_json, as_json_object, as_parquet, as_saved, as_saved_splits]

# Forms: each a row that asks for the same call, `log_workout(kind="run", minutes=30)`

FORMS = {
    "messages": {"messages": conversation([called("log_workout", RUN)]), "tools": TOOLS},
    "messages, call as text": {"messages": conversation([called("log_workout", json.dumps(RUN))]), "tools": TOOLS},
    "messages, flat call": {"messages": conversation([{"name": "log_workout", "arguments": RUN}]), "tools": TOOLS},
    "messages, cells as text": {
        "messages": json.dumps(conversation([called("log_workout", RUN)])),
        "tools": json.dumps(TOOLS),
    },
    "messages, OpenAI's function_call": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "log "}, {"type": "text", "text": "it"}]},
            {"role": "model", "function_call": {"name": "log_workout", "arguments": json.dumps(RUN)}},
        ],
        "tools": TOOLS,
    },
    "flat, wire": {"system": "Help.", "user": "log it", "assistant": WIRE, "tools": TOOLS},
    "flat, wire with its stop token": {
        "user": "log it",
        "assistant": f"{WIRE}<start_function_response>\n",
        "tools": TOOLS,
    },
    "flat, JSON call": {
        "user": "log it",
        "assistant": json.dumps(called("log_workout", RUN)["function"]),
        "tools": TOOLS,
    },
    "flat, JSON list": {"user": "log it", "assistant": json.dumps([called("log_workout", RUN)]), "tools": TOOLS},
    "flat, JSON tool_calls": {
        "user": "log it",
        "assistant": json.dumps({"tool_calls": [called("log_workout", json.dumps(RUN))]}),
        "tools": json.dumps(TOOLS),
    },
    "flat, call as value": {"user": "log it", "assistant": [called("log_workout", RUN)], "tools": TOOLS},
    "query, JSON": {
        "user_query": "log it",
        "function_call": json.dumps({"name": "log_workout", "arguments": RUN}),
        "tools": TOOLS,
    },
    "query, value": {
        "user_query": "log it",
        "function_call": {"name": "log_workout", "arguments": RUN},
        "tools": TOOLS,
    },
    "query, list": {"user_query": "log it", "function_call": [called("log_workout", RUN)], "tools": TOOLS},
    "query, wire": {"user_query": "log it", "function_call": WIRE, "tools": TOOLS},
}


def write(folder, data, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


GOOD = json.dumps({"user": "a", "assistant": "b", "tools": TOOLS})


def user(text="hi"):
    return {"role": "user", "content": text}


def assistant(*calls, text=None):
    return {"role": "assistant", "content": text, "tool_calls": list(calls)}


STEPS_CALL = called("get_steps", {})
