"""An adapter merged into its base: added up in float32, saved in bf16, and held against the adapter's own logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcoach_tune import models, runs
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import MismatchError
from fitcoach_tune.functiongemma import TRIGGER

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_QUESTION = "What can you do for me?"


def merge(run: runs.Run, folder: Path, ui: Console = SILENT) -> dict[str, Any]:
    """Write the merged model's weights and configuration into `folder`.

    Returns:
        The logits' differences on one prompt, each relative to the largest logit: `difference_fp32` of the merged
        float32 weights from the adapter, `difference_bf16` of the saved ones, and for comparison `moved`, of the
        adapter from its base; `same_token` of `tokens` positions have the same likeliest token.

    Raises:
        MismatchError: the base is another one, or the merged weights do not give what the adapter gives.
        AccessError: see `models.resolve`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from fitcoach_tune.training.adapter import load_adapter
    from fitcoach_tune.training.check import TOLERANCE

    base = models.resolve(*run.base_name, ui)
    runs.check_base(run, base)
    ids = _prompt(run)
    model = models.load_model(base, "fp32")
    plain = _logits(model, ids)
    adapted = _logits(load_adapter(model, run.path), ids)
    _fold(model)
    exact = _difference(_logits(model, ids), adapted)
    model.config.name_or_path = ""
    with models.quiet_libraries():
        model.to(torch.bfloat16).save_pretrained(folder)
        saved = _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)
    rounded, moved = _difference(saved, adapted), _difference(adapted, plain)
    if not exact <= TOLERANCE or not rounded < moved:
        raise MismatchError(
            f"the merged weights do not give the adapter's logits (relative difference {exact:.1e} in float32, "
            f"{rounded:.1e} in bf16, where the adapter itself moves them by {moved:.1e})",
            where=str(run.path),
            hint="push the adapter instead: leave --merged out",
        )
    (folder / "generation_config.json").unlink(missing_ok=True)  # the base's; the published one is made elsewhere
    same = int((saved.argmax(-1) == adapted.argmax(-1)).sum())
    return {
        "difference_fp32": exact,
        "difference_bf16": rounded,
        "moved": moved,
        "same_token": same,
        "tokens": ids.shape[1],
    }


def _prompt(run: runs.Run) -> Tensor:
    import torch

    saved = run.prompt() if (run.path / runs.PROMPT_NAME).is_file() else {"developer": TRIGGER, "tools": None}
    messages = [{"role": "developer", "content": saved["developer"] or TRIGGER}, {"role": "user", "content": _QUESTION}]
    tokenizer = models.load_tokenizer(run.path)
    text = tokenizer.apply_chat_template(messages, tools=saved["tools"], tokenize=False, add_generation_prompt=True)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def _fold(model: PreTrainedModel) -> None:
    """Add each LoRA update to the weight beside it, and put the plain layer back."""
    import torch

    from fitcoach_tune.training.adapter import lora_layers

    for name, layer in list(lora_layers(model)):
        with torch.no_grad():
            layer.base.weight += layer.scale * (layer.lora_B @ layer.lora_A)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    import torch

    with torch.inference_mode():
        return model(input_ids=ids).logits


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()
