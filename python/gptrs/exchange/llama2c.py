"""llama2.c's model files: seven integers, then float32 weights of a Llama, one kind after the other.

    i32 dim, inter_dim, n_layers, n_heads, n_kv_heads, ±vocab_size, max_seq_len        negative: a head of its own
    f32 token embedding; for all layers attn_norm, q, k, v, output, ffn_norm, gate, down, up; norm;
        sines and cosines of the positions, which are computed here; the head, when it is not tied

Pairs that are rotated together are neighbours, as ours. Only this first version of the format is read; later ones begin
with a magic number.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptrs.model.config import ModelConfig
from gptrs.model.transformer import Transformer

_MAGIC = 0x616B3432  # of later versions
_HEADER = np.dtype("<i4")
_N_SIZES = 7
_MAX_SIZE = 1 << 24  # of any size in a header that does not lie


def import_llama2c(path: str | os.PathLike[str]) -> Transformer:
    """The model of a `.bin` file of llama2.c, in float32.

    Raises: ValueError when the file is of another version, or not exactly as long as its sizes say.
    """
    file = Path(path)
    n_bytes = file.stat().st_size
    header = np.fromfile(file, dtype=_HEADER, count=_N_SIZES)
    if len(header) < _N_SIZES:
        raise ValueError(f"{file}: expected {_N_SIZES} sizes of llama2.c, got a file of {n_bytes} bytes")
    if int(header[0]) == _MAGIC:
        raise ValueError(
            f"{file}: expected llama2.c's first version, got a later one; hint: export it with --version 0"
        )
    dim, inter_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = (int(size) for size in header)
    sizes: dict[str, Any] = {
        "dim": dim,
        "inter_dim": inter_dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
    }
    for name, size in {**sizes, "vocab_size": abs(vocab_size), "max_seq_len": max_seq_len}.items():
        if not 1 <= size <= _MAX_SIZE:
            where = "in the header of a llama2.c model"
            raise ValueError(f"{file}: expected a {name} from 1 to {_MAX_SIZE} {where}, got {size}; hint: is it one?")
    try:
        config = ModelConfig(
            vocab_size=abs(vocab_size), max_seq_len=max_seq_len, is_head_tied=vocab_size > 0, position="rope",
            norm="rms", feed_forward="swiglu", has_bias=False, **sizes,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{file}: the sizes in the header of a llama2.c model do not fit: {error}") from error
    table = _table(config)
    n_floats = sum(math.prod(shape) for _, shape in table)
    if n_bytes != (expected := _HEADER.itemsize * _N_SIZES + 4 * n_floats):
        raise ValueError(f"{file}: expected {expected} bytes of a model with these sizes, got {n_bytes}")
    floats = np.fromfile(file, dtype="<f4", offset=_HEADER.itemsize * _N_SIZES)
    if not np.isfinite(floats).all():
        raise ValueError(f"{file}: expected finite numbers, got nan or infinity")
    model = Transformer(config)
    _fill(model, _split(floats, table))
    return model


def _table(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """The kinds of weights in a file's order, and their shapes."""
    V, C, L, m = config.vocab_size, config.dim, config.n_layers, config.inter_dim
    kv = config.kv_heads * config.head_dim
    turns = (config.max_seq_len, config.head_dim // 2)
    return [
        ("embed", (V, C)), ("attn_norm", (L, C)), ("q", (L, C, C)), ("k", (L, kv, C)), ("v", (L, kv, C)),
        ("output", (L, C, C)), ("ffn_norm", (L, C)), ("gate", (L, m, C)), ("down", (L, C, m)), ("up", (L, m, C)),
        ("norm", (C,)), ("cosines", turns), ("sines", turns), *([] if config.is_head_tied else [("head", (V, C))]),
    ]  # fmt: skip


def _split(floats: NDArray[np.float32], table: list[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    parts, at = {}, 0
    for name, shape in table:
        n = math.prod(shape)
        parts[name] = torch.from_numpy(floats[at : at + n]).view(shape)
        at += n
    return parts


@torch.no_grad()
def _fill(model: Transformer, parts: dict[str, Tensor]) -> None:
    ours = dict(model.named_parameters())
    ours["embed.token.weight"].copy_(parts["embed"])
    ours["norm.weight"].copy_(parts["norm"])
    if "head" in parts:
        ours["head.weight"].copy_(parts["head"])
    for layer in range(model.config.n_layers):
        for name, sources in (
            ("attn_norm", ("attn_norm",)),
            ("attn.qkv", ("q", "k", "v")),
            ("attn.output", ("output",)),
            ("ffn_norm", ("ffn_norm",)),
            ("ffn.up", ("gate", "up")),
            ("ffn.down", ("down",)),
        ):
            ours[f"layers.{layer}.{name}.weight"].copy_(torch.cat([parts[source][layer] for source in sources]))
