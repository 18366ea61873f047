"""The model and the tokenizer of a GGUF file: gpt2, llama and deepseek2, as `gguf` writes them and llama.cpp does.

    gguf_file    keys and tensors, bounded
    gguf         which key is which field, and which rows each tensor has: the tables of the way out
    here         fields to a config, numbers to their rows in float32, tokens and merges to a tokenizer

A key of the kind of model that is not known is refused, since it may change a number. So is what we do not have:
rescaled rotations of Llama, its experts, further-token modules.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptrs import _core
from gptrs.exchange import gguf
from gptrs.exchange.hf import check_held
from gptrs.model.config import ModelConfig
from gptrs.model.transformer import Transformer
from gptrs.tokenizer import Tokenizer

_SPLIT = "split.count"
_MLA = "attention.key_length_mla"  # says that latents are read as one head
# Keys that change no number: as long as they have these values, and at all.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "rope.scaling.attn_factor": (1.0,), "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,), "nextn_predict_layers": (0,),
}  # fmt: skip
_UNREAD = ("tensor_data_layout", "rope.scaling.finetuned")
_COMPUTED_FROM = (
    _MLA, "attention.value_length_mla", "leading_dense_block_count", "expert_gating_func",
    "rope.scaling.yarn_log_multiplier", *gguf.EXPERTS.values(), *gguf.GROUPS.values(),
)  # fmt: skip
_SCORES = {1: "softmax", 2: "sigmoid"}
_LOOKS_UP = "llama-bpe"  # there a piece that is a token is taken whole, whatever the merges say


def is_gguf_file(path: Path) -> bool:
    """Whether a file is meant as one: by its name, or by how it begins."""
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"


def import_gguf(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Transformer:
    """The model of a GGUF file, in float32 unless another type is given; quantised numbers are multiplied out.

    Raises: ValueError when the file is damaged, does not fit together or describes what we do not have, naming the
        tensor or the key; ModuleNotFoundError without the gguf package.
    """
    file = _opened(path)
    config = _config(file)
    # each layer has tensors, so a lying number of layers ends here and not in a model of as many
    if config.n_layers > len(file.tensors):
        raise ValueError(f"{path}: expected tensors of {config.n_layers:,} layers, got {len(file.tensors):,} in all")
    is_joined = _name("ATTN_KV_B") in file.tensors
    with torch.device("meta"):
        model = Transformer(config)
    file.check_tensors({name: tuple(view.shape) for name, view in _places(model, is_joined)})
    model = model.to(dtype or torch.float32).to_empty(device=device or "cpu")
    with torch.no_grad():
        for name, view in _places(model, is_joined):
            tensor = torch.from_numpy(file.read(name))
            view.copy_(tensor)
            check_held(file.path, name, tensor, view)
    return model


def _places(model: Transformer, is_joined: bool) -> Iterator[tuple[str, Tensor]]:
    for name, layer, ending, view in gguf.placed(model, is_joined=is_joined):
        yield gguf.full_name(name, layer, ending), view


def import_gguf_tokenizer(path: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None where it has none, or, with a warning, one that is not ours.

    Raises: ValueError when its lists do not fit together.
    """
    file = _opened(path)
    model = file.get("tokenizer.ggml.model", str, "")
    if not model or model == "no_vocab":
        return None
    pre = file.get("tokenizer.ggml.pre", str, "default")
    patterns = {theirs: ours for ours, theirs in gguf.PATTERNS.items()}
    if model != "gpt2" or pre not in patterns:
        got = f"tokenizer.ggml.pre={pre!r}" if model == "gpt2" else f"tokenizer.ggml.model={model!r}"
        known = f"'gpt2' with a pattern of {', '.join(patterns)}"
        warnings.warn(f"{path}: its tokenizer is left out: expected {known}, got {got}", stacklevel=2)
        return None
    try:
        return Tokenizer.from_json(json.dumps(_tokenizer_json(file, patterns[pre], looks_up_pieces=pre == _LOOKS_UP)))
    except ValueError as error:
        raise ValueError(f"{path}: tokenizer.ggml: {error}") from error


def _tokenizer_json(file: Any, pattern: str, *, looks_up_pieces: bool) -> dict[str, Any]:
    """The tokenizer.json of a file's lists."""
    tokens = _list(file, "tokenizer.ggml.tokens", str)
    key = "tokenizer.ggml.token_type"
    types = _list(file, key, int) if file.names(key) else [gguf.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"expected {len(tokens):,} types in {key}, got {len(types):,}")
    if len(set(tokens)) != len(tokens):
        raise ValueError("expected different texts in tokenizer.ggml.tokens, got one twice")
    bytes_alone = _core.Tokenizer.from_ranks([(bytes([byte]), byte) for byte in range(256)], pattern, [], "")
    out: dict[str, Any] = json.loads(bytes_alone.to_json())  # of these the pattern and what goes with it stay
    used = [(i, text, kind) for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind != gguf.UNUSED]
    # an empty list is never in a file: where every token is a byte, there are none
    has_merges = any(kind == gguf.NORMAL and len(text) > 1 for _, text, kind in used)
    key = "tokenizer.ggml.merges"
    merges = _list(file, key, str) if has_merges or file.names(key) else []
    out["model"] |= {
        "vocab": {text: i for i, text, _ in used}, "merges": merges, "ignore_merges": looks_up_pieces,
    }  # fmt: skip
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    out["added_tokens"] = [
        {"id": i, "content": text, **flags, "special": kind == gguf.CONTROL}
        for i, text, kind in used
        if kind in (gguf.CONTROL, gguf.USER_DEFINED)
    ]
    return out


def _opened(path: str | os.PathLike[str]) -> Any:
    gguf.package()
    from gptrs.exchange.gguf_file import GGUFFile

    file = GGUFFile(Path(path))
    if file.get(_SPLIT, int, 1) > 1:
        hint = "hint: join them with llama-gguf-split --merge"
        raise ValueError(f"{path}: expected a model in one file, got {_SPLIT}={file.value(_SPLIT)}; {hint}")
    return file


def _name(name: str, layer: int = 0) -> str:
    return gguf.full_name(name, layer, ".weight")


def _list(file: Any, key: str, kind: type) -> list[Any]:
    values: list[Any] = file.get(key, list)
    if odd := [value for value in values if type(value) is not kind]:
        raise ValueError(f"{file.path}: expected a list of {kind.__name__} in {key}, got {odd[0]!r:.60}")
    return values


def _config(file: Any) -> ModelConfig:
    """The sizes of a file, each key of its kind of model known."""
    kind = file.get("general.architecture", str)
    if kind not in gguf.KEYS:
        raise ValueError(f"{file.path}: expected general.architecture of {', '.join(gguf.KEYS)}, got {kind!r}")
    table = dict(gguf.KEYS[kind])
    embedding = file.tensors.get(_name("TOKEN_EMBD"))
    optional: dict[str, Any] = {"vocab_size": 0 if embedding is None else int(embedding.shape[-1])}
    if kind == "deepseek2":
        table |= _parts_of_deepseek2(file)
        optional |= gguf.UNWRITTEN | {"norm_topk_prob": False, "route_scale": 1.0, "n_shared_experts": 0}
    if kind != "gpt2":
        optional |= {"rope_theta": 10_000.0, "kv_heads": file.get(f"{kind}.attention.head_count", int)}
    fields = {ours: _field(file, f"{kind}.{key}", ours, optional.get(ours)) for ours, key in table.items()}
    fields["is_head_tied"] = _name("OUTPUT") not in file.tensors
    more, fixed = {"gpt2": _gpt2, "llama": _llama, "deepseek2": _deepseek2}[kind](file, fields)
    try:
        config = ModelConfig(**fields | more)
    except ValueError as error:
        raise ValueError(f"{file.path}: the sizes of {kind} do not fit: {error}") from error
    fixed |= {"rope.dimension_count": (config.rope_dim,)} | _NEUTRAL
    _refuse(file, kind, known={*table.values(), *_UNREAD, *(_COMPUTED_FROM if config.is_latent else ())}, fixed=fixed)
    return config


def _field(file: Any, key: str, ours: str, default: Any) -> Any:
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    kind = kinds.get(ours, int)
    return kind(file.get(key, kind, default))


def _refuse(file: Any, kind: str, *, known: set[str], fixed: dict[str, tuple[Any, ...]]) -> None:
    """Refuses keys that are not known, and those with a value that we do not have."""
    for name in file.names(f"{kind}."):
        key = name.removeprefix(f"{kind}.")
        if key not in known and key not in fixed:
            raise ValueError(
                f"{file.path}: expected keys of {kind} that are known, got {name}={file.value(name)!r:.60}"
            )
        if key in fixed and (got := file.value(name)) not in fixed[key]:
            expected = " or ".join(repr(value) for value in fixed[key])
            raise ValueError(f"{file.path}: expected {name}={expected}, got {got!r:.60}")


_Parts = tuple[dict[str, Any], dict[str, tuple[Any, ...]]]  # further fields, and keys that have one value alone


def _gpt2(file: Any, fields: dict[str, Any]) -> _Parts:
    return {}, {"attention.head_count_kv": (fields["n_heads"],)}


def _modern(**fields: Any) -> dict[str, Any]:
    return {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "has_bias": False, **fields}


def _llama(file: Any, fields: dict[str, Any]) -> _Parts:
    n_kv_heads = fields.pop("kv_heads")
    head_dim = fields["dim"] // max(fields["n_heads"], 1)
    return _modern(n_kv_heads=n_kv_heads if n_kv_heads != fields["n_heads"] else 0), {
        "attention.key_length": (head_dim,),
        "attention.value_length": (head_dim,),
        "rope.scaling.type": ("none",),
        "expert_count": (0,),
        "expert_used_count": (0,),
    }


def _parts_of_deepseek2(file: Any) -> dict[str, str]:
    """The tables that a file needs besides the sizes."""
    table: dict[str, str] = {}
    if _has_experts(file):
        table |= gguf.EXPERTS
        table |= gguf.GROUPS if file.get("deepseek2.expert_group_count", int, 1) > 1 else {}
    return table | (gguf.YARN if _is_stretched(file) else {})


def _has_experts(file: Any) -> bool:
    n_dense_layers = file.get("deepseek2.leading_dense_block_count", int, 0)
    n_experts: int = file.get("deepseek2.expert_count", int, 0)
    return n_experts > 0 and bool(n_dense_layers < file.get("deepseek2.block_count", int))


def _is_stretched(file: Any) -> bool:
    return bool(file.get("deepseek2.rope.scaling.type", str, "none") != "none")


def _deepseek2(file: Any, fields: dict[str, Any]) -> _Parts:
    rank, rope = fields["kv_lora_rank"], file.get("deepseek2.rope.dimension_count", int)
    is_absorbed = bool(file.names(f"deepseek2.{_MLA}"))
    ending = "_mla" if is_absorbed else ""
    head_dim, value_dim = (file.get(f"deepseek2.attention.{name}_length{ending}", int) for name in ("key", "value"))
    score_func = _SCORES.get(number := file.get("deepseek2.expert_gating_func", int, 1 if _has_experts(file) else 2))
    if score_func is None:
        raise ValueError(f"{file.path}: expected deepseek2.expert_gating_func of 1 or 2, got {number}")
    more = _modern(
        qk_nope_head_dim=head_dim - rope, qk_rope_head_dim=rope, v_head_dim=value_dim, score_func=score_func,
        group_score="top2" if score_func == "sigmoid" else "max", scales_residual_init=False,
    )  # fmt: skip
    if _has_experts(file):
        more["n_dense_layers"] = file.get("deepseek2.leading_dense_block_count", int, 0)
    if _is_stretched(file):
        growth = file.get("deepseek2.rope.scaling.yarn_log_multiplier", float)
        more["rope_mscale"] = round(growth / gguf.MSCALE, 9)  # of a number with the digits of a float32
    fixed: dict[str, tuple[Any, ...]] = {
        "attention.head_count_kv": (1, fields["n_heads"]),
        "rope.scaling.type": ("yarn", "none"),
        "attention.key_length": (rank + rope,) if is_absorbed else (head_dim,),
        "attention.value_length": (rank,) if is_absorbed else (value_dim,),
    }
    return more, fixed
