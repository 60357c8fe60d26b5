"""Does the saved adapter load back as what was trained? Asked of PEFT itself, on the plain base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fitcoach_tune import models
from fitcoach_tune.errors import TrainingError
from fitcoach_tune.training import adapter

if TYPE_CHECKING:
    from fitcoach_tune.models import Base

# In float32 the two computations differ by rounding alone; an adapter that is ignored or mixed up differs by far more.
TOLERANCE = 1e-3

# Logits of a position are 1 MB: of a row's last tokens they say as much as of all.
COMPARED = 32


@torch.inference_mode()
def check_saved(folder: Path, base: Base, trained: dict[str, Tensor], scale: float, input_ids: list[int]) -> dict:
    """Compare the logits of the trained tensors with those that PEFT gives for the saved folder, both in float32.

    Args:
        trained: the LoRA tensors as they are in memory, by PEFT's keys.
        scale: alpha / r.
        input_ids: a row to compare on.

    Returns:
        What goes into run.json: the norm of all B, the largest logit difference in the last `COMPARED` tokens, and for
        comparison how far the adapter moved these logits from the base's.

    Raises:
        TrainingError: B is zero, or the logits differ.
    """
    from peft import PeftModel

    norm = torch.stack([t.norm() for key, t in trained.items() if ".lora_B." in key]).norm().item()
    if not norm:
        raise TrainingError(
            "training moved nothing: every LoRA B is zero", where=str(folder), hint="raise --learning-rate"
        )
    adapter.load_weights(folder / adapter.WEIGHTS_NAME)
    model = models.load_model(base, "fp32")
    ids = torch.tensor([input_ids])
    plain = model(input_ids=ids, logits_to_keep=COMPARED).logits
    expected = _with_adapter(model, trained, scale, ids)
    with models.quiet_libraries():
        reloaded = PeftModel.from_pretrained(model, folder).eval()(input_ids=ids, logits_to_keep=COMPARED).logits
    difference = ((reloaded - expected).abs().max() / expected.abs().max()).item()
    moved = ((expected - plain).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE or not difference < moved:
        raise TrainingError(
            f"the saved adapter does not give the trained model's logits (relative difference {difference:.1e})",
            where=str(folder),
            hint="the files are kept for a look; please report this",
        )
    return {"lora_b_norm": norm, "logit_difference": difference, "logit_change_from_base": moved, "loaded_by": "peft"}


def _with_adapter(model: torch.nn.Module, trained: dict[str, Tensor], scale: float, ids: Tensor) -> Tensor:
    """The logits with the trained tensors, computed here as W·x + scale · B·A·x by hooks that are gone afterwards."""
    handles = []
    for key, a in trained.items():
        if ".lora_A." in key:
            b = trained[key.replace(".lora_A.", ".lora_B.")]
            layer = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))

            def add(_, inputs, output, a=a, b=b):
                return output + (inputs[0] @ a.T @ b.T) * scale

            handles.append(layer.register_forward_hook(add))
    try:
        return model(input_ids=ids, logits_to_keep=COMPARED).logits
    finally:
        for handle in handles:
            handle.remove()
