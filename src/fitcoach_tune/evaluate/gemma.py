"""The Gemma 3 text model (Gemma Team 2025, arXiv:2503.19786) for answering, without transformers.

Importing transformers' model takes as long as importing torch, which a single question need not wait for. This one does
the same operations in the same order, so that it gives the same bits; it has the names of modules and weights that
adapters know, and attends by layout (see `training.prefix`). Only what is plainly such a model is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitcoach_tune import models
from fitcoach_tune.libraries import loading
from fitcoach_tune.models import Base
from fitcoach_tune.training.prefix import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitcoach_tune.backends.base import Backend

_SLIDING, _FULL = "sliding_attention", "full_attention"
# What transformers takes where nothing is said, and the only values that are known here.
_USUAL: dict[str, Any] = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma3_text",
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}
# Settings that do not change what the model computes; nor do those that begin with "_".
_HARMLESS = {
    *("architectures", "attention_dropout", "bos_token_id", "cache_implementation", "dtype", "eos_token_id"),
    *("initializer_range", "pad_token_id", "sliding_window_pattern", "torch_dtype", "transformers_version"),
    *("unk_token_id", "use_cache"),
}
_ROPE = ("rope_parameters", "rope_theta", "rope_local_base_freq")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, by the names of its configuration.

    Attributes:
        layer_types: which keys a layer sees: all, or those in the sliding window.
        thetas: by kind of layer, the base of the rotary embedding's wavelengths.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float
    query_pre_attn_scalar: float
    layer_types: tuple[str, ...]
    thetas: dict[str, float]

    @classmethod
    def read(cls, values: dict[str, Any]) -> Shape | None:
        """The sizes in a configuration; None if it is not plainly that of such a model."""
        sizes = {field.name: values.get(field.name) for field in fields(cls) if field.name != "thetas"}
        kinds, thetas = sizes["layer_types"], _thetas(values)
        known = {*sizes, *_USUAL, *_HARMLESS, *_ROPE}
        if thetas is None or not all(name in known or name.startswith("_") for name in values):
            return None
        if any(values.get(name, usual) != usual for name, usual in _USUAL.items()):
            return None
        whole = [name for name, kind in cls.__annotations__.items() if kind == "int"]
        if not all(type(sizes[name]) is int and sizes[name] > 0 for name in whole):
            return None
        if not all(map(_is_positive, (sizes["rms_norm_eps"], sizes["query_pre_attn_scalar"]))):
            return None
        is_listed = isinstance(kinds, list) and len(kinds) == sizes["num_hidden_layers"]
        is_even = sizes["num_attention_heads"] % sizes["num_key_value_heads"] == sizes["head_dim"] % 2 == 0
        if not is_listed or not is_even or any(kind not in (_SLIDING, _FULL) for kind in kinds):
            return None
        return cls(**sizes | {"layer_types": tuple(kinds), "thetas": thetas})


def _thetas(values: dict[str, Any]) -> dict[str, float] | None:
    """By kind of layer, as transformers writes them since its version 5 or before; None if it is more than these."""
    given = values.get("rope_parameters")
    if given is None:
        found = {_FULL: values.get("rope_theta"), _SLIDING: values.get("rope_local_base_freq")}
    else:
        usual = isinstance(given, dict) and given.keys() == {_FULL, _SLIDING} and not {*_ROPE[1:]} & values.keys()
        if not usual or not all(isinstance(given[kind], dict) for kind in given):
            return None
        found = {kind: given[kind].get("rope_theta") for kind in given}
        if any(given[kind] != {"rope_theta": found[kind], "rope_type": "default"} for kind in given):
            return None
    return found if all(map(_is_positive, found.values())) else None


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


class Output(NamedTuple):
    """What `Decoder` gives: hidden states [G, L, hidden]."""

    last_hidden_state: Tensor


class _Norm(nn.Module):
    """RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467) with a gain that is 1 where its weight is 0."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = _weight(size)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class _Linear(nn.Linear):
    """Without a bias, and without weights until they are loaded."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False, device="meta")

    def reset_parameters(self) -> None:
        """Nothing: the weights come from a file."""


class _Embedding(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.weight = _weight(shape.vocab_size, shape.hidden_size)
        self.scale = shape.hidden_size**0.5

    def forward(self, ids: Tensor) -> Tensor:
        scale = torch.tensor(self.scale, dtype=self.weight.dtype, device=ids.device)
        return F.embedding(ids, self.weight) * scale


class _Attention(nn.Module):
    def __init__(self, shape: Shape, index: int):
        super().__init__()
        self.index, self.dim, self.scale = index, shape.head_dim, shape.query_pre_attn_scalar**-0.5
        self.sliding = shape.layer_types[index] == _SLIDING
        queries, keys = (heads * self.dim for heads in (shape.num_attention_heads, shape.num_key_value_heads))
        self.q_proj = _Linear(shape.hidden_size, queries)
        self.k_proj = _Linear(shape.hidden_size, keys)
        self.v_proj = _Linear(shape.hidden_size, keys)
        self.o_proj = _Linear(queries, shape.hidden_size)
        self.q_norm, self.k_norm = (_Norm(self.dim, shape.rms_norm_eps) for _ in "qk")

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (p(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for p in projections)
        query, key = _rotated(self.q_norm(query), *angles), _rotated(self.k_norm(key), *angles)
        out = layout.attend(query, key, value, layer=self.index, scale=self.scale, sliding=self.sliding)
        return self.o_proj(out.flatten(-2))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of [G, heads, L, D] by the angles of its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class _Mlp(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj, self.up_proj = (_Linear(shape.hidden_size, shape.intermediate_size) for _ in range(2))
        self.down_proj = _Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, shape: Shape, index: int):
        super().__init__()
        self.self_attn, self.mlp = _Attention(shape, index), _Mlp(shape)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            self.add_module(f"{name}_layernorm", _Norm(shape.hidden_size, shape.rms_norm_eps))

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), angles, layout))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Decoder(nn.Module):
    """Embedding, layers and last norm; called as `training.prefix.hidden_states` calls transformers' own."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = _Embedding(shape)
        self.layers = nn.ModuleList(_Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        self.kinds = shape.layer_types
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float) / shape.head_dim
        for kind, theta in shape.thetas.items():
            self.register_buffer(f"{kind}_rates", 1.0 / theta**exponents, persistent=False)

    def forward(self, *, input_ids: Tensor, position_ids: Tensor, layout: Layout, **_: object) -> Output:
        """Args: ids and positions [G, L], and how they attend."""
        x = self.embed_tokens(input_ids)
        angles = {kind: self._angles(position_ids, kind, x.dtype) for kind in set(self.kinds)}
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            x = layer(x, angles[kind], layout)
        return Output(self.norm(x))

    def _angles(self, positions: Tensor, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [G, 1, L, D], for all heads alike."""
        turned = positions[..., None].float() * self.get_buffer(f"{kind}_rates")
        both = torch.cat([turned, turned], dim=-1)[:, None]
        return both.cos().to(dtype), both.sin().to(dtype)


class Gemma(nn.Module):
    """The model with its head, which shares the embedding's weights.

    Attributes:
        config: its sizes.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.config, self.model = shape, Decoder(shape)
        self.lm_head = _Linear(shape.hidden_size, shape.vocab_size)


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


def answering_model(base: Base, dtype: str, backend: Backend) -> Gemma | PreTrainedModel:
    """A base model to be asked, on the CPU: this one where the base is plainly Gemma, which loads in half the time.

    Raises:
        MismatchError: see `models.load_model`.
    """
    # A device that compiles knows how to place transformers' model.
    plain = None if backend.compiled else load(base, dtype)
    return plain or models.load_model(base, dtype)


def load(base: Base, dtype: str) -> Gemma | None:
    """Load a base model on the CPU, in `bf16` or `fp32`, frozen and in evaluation mode.

    Returns:
        None if it is not plainly such a model, or its weights are not what it says they are: `models.load_model` then
        loads it, or says what is wrong.

    Raises:
        MismatchError: see `models.check_weights`; or its files are damaged.
    """
    values = models.read_values(base)
    shape, file = Shape.read(values), base.path / "model.safetensors"
    if shape is None or not file.is_file() or (base.path / models.INDEX_NAME).exists():
        return None
    models.check_weights(base, shape)
    with loading("the model", base.path):
        from safetensors.torch import load_file

        model, tensors = Gemma(shape), load_file(file)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        if expected != {name: tensor.shape for name, tensor in tensors.items()}:
            return None
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            return None
        chosen = models.torch_dtype(dtype)
        given = {name: tensor.to(chosen) for name, tensor in tensors.items()}
        model.load_state_dict({**given, "lm_head.weight": given["model.embed_tokens.weight"]}, assign=True)
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()
