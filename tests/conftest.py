"""What the tests share: tiny random Gemma 3 models, made on the spot."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest


def tiny_gemma(*, vocab_size: int = 320, window: int = 512, layers: int = 3, seed: int = 0, **overrides):
    """A random Gemma 3 text model in float32 with both kinds of attention layer; weights large enough to matter."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(seed)
    kinds = ["sliding_attention", "full_attention"]
    values = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": window,
        "layer_types": [kinds[i % 2] for i in range(layers)],
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
    }
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**values, **overrides})).eval()


@pytest.fixture
def make_tiny():
    return tiny_gemma
