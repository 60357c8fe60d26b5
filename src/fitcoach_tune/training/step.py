"""One micro-batch, from packed arrays to a summed loss: the module that data parallelism wraps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from fitcoach_tune.training.batches import PackedBatch
from fitcoach_tune.training.lean import use_lean_operations
from fitcoach_tune.training.loss import head_loss
from fitcoach_tune.training.prefix import Packing, hidden_states, use_layouts


class PackedLoss(nn.Module):
    """The summed cross-entropy of a packed micro-batch under a Gemma 3 model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        use_layouts(model)
        use_lean_operations(model)
        self.model = model

    def forward(self, input_ids: Tensor, gather: Tensor, targets: Tensor, weights: Tensor, packing: Packing) -> Tensor:
        """Shapes as in `PackedBatch`; returns a float32 scalar, in nats, summed over the supervised tokens."""
        positions = packing.position_ids(input_ids.shape[0], input_ids.device)
        hidden = hidden_states(self.model, input_ids, positions, packing)
        supervised = hidden.gather(1, gather[..., None].expand(-1, -1, hidden.shape[-1]))
        return head_loss(supervised, self.model.lm_head.weight, targets, weights)


def inputs(batch: PackedBatch, window: int, put: Callable[[np.ndarray], Tensor]) -> tuple:
    """The arguments of `PackedLoss.forward` for a batch; `put` brings an array onto the device."""
    tensors = [put(array) for array in (batch.input_ids, batch.gather, batch.targets, batch.weights)]
    return *tensors, Packing.build(batch.prefix, batch.blocks, window, tensors[0].device)
