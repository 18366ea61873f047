"""A model as one GGUF file, as llama.cpp and what is built on it read them: gpt2, llama and deepseek2.

The `gguf` package writes the file and knows the names; this module says which of our rows each tensor has. Rotated
pairs are neighbours there as well. Experts of a layer are one tensor; latent attention's kv_up is stored as the two
matrices of the absorbed form, that of the keys transposed. `gguf_read` fills a model by the same tables.
"""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from gptrs.exchange.hf_config import architecture_of
from gptrs.files import sync_directory, temporary_of
from gptrs.model.config import ModelConfig
from gptrs.model.transformer import Transformer

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

WeightType = Literal["F32", "F16", "BF16", "Q8_0"]

_ARCHITECTURES = {
    "GPT2LMHeadModel": "GPT2",
    "LlamaForCausalLM": "LLAMA",
    "DeepseekV2ForCausalLM": "DEEPSEEK2",
    "DeepseekV3ForCausalLM": "DEEPSEEK2",
}
PATTERNS = {
    "gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "deepseek-v3": "deepseek-v3", "o200k_base": "gpt-4o",
}  # fmt: skip
# What the largest number of a tensor may be; of Q8_0, 127 times the largest scale of a block.
_LARGEST = {"F32": 3.4028234e38, "F16": 65504.0, "BF16": 3.3895313e38, "Q8_0": 127 * 65504.0}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens

# Our fields by their keys behind the name of the kind of model; what is computed from several stands in the functions.
_SIZES = {
    "vocab_size": "vocab_size", "max_seq_len": "context_length", "dim": "embedding_length", "n_layers": "block_count",
    "inter_dim": "feed_forward_length", "n_heads": "attention.head_count",
}  # fmt: skip
_ROTATED = _SIZES | {"norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}
KEYS = {
    "gpt2": _SIZES | {"norm_eps": "attention.layer_norm_epsilon"},
    "llama": _ROTATED | {"kv_heads": "attention.head_count_kv"},
    "deepseek2": _ROTATED | {"kv_lora_rank": "attention.kv_lora_rank", "q_lora_rank": "attention.q_lora_rank"},
}
EXPERTS = {
    "n_routed_experts": "expert_count", "n_activated_experts": "expert_used_count",
    "n_shared_experts": "expert_shared_count", "moe_inter_dim": "expert_feed_forward_length",
    "route_scale": "expert_weights_scale", "norm_topk_prob": "expert_weights_norm",
}  # fmt: skip
GROUPS = {"n_expert_groups": "expert_group_count", "n_limited_groups": "expert_group_used_count"}
YARN = {
    "rope_factor": "rope.scaling.factor", "rope_original_len": "rope.scaling.original_context_length",
    "rope_beta_fast": "rope.scaling.yarn_beta_fast", "rope_beta_slow": "rope.scaling.yarn_beta_slow",
}  # fmt: skip
MSCALE = 0.1  # the file has yarn's growth for each factor of e, this times rope_mscale
# Fields without a key when they are so, as with every other writer.
UNWRITTEN: dict[str, float] = {"q_lora_rank": 0, "rope_beta_fast": 32.0, "rope_beta_slow": 1.0}


def export_gguf(
    model: Transformer, path: str | os.PathLike[str], *, tokenizer: "Tokenizer | None" = None, dtype: WeightType = "F32"
) -> Path:
    """Writes a model and its tokenizer as a GGUF file; returns its path.

    Args: dtype: of the matrices; vectors, and the router's, stay in float32.
    Warns of groups of experts that count as their best, which the format does not say and llama.cpp does not do.
    Raises: ValueError for a model or a tokenizer that the format does not have, naming the part, and for weights that
        the type cannot hold; OSError for a path
        that is in no folder or is one; ModuleNotFoundError without the gguf package.
    """
    check_place(path)
    gguf = package()
    config, file = model.config, Path(path)
    kind = _checked(config, tokenizer)
    if _has_groups(config) and config.group_score == "max":
        text = "llama.cpp ranks groups of experts by their best two, this model by their best one (group_score 'max')"
        warnings.warn(f"{text}: there it takes other experts", stacklevel=2)
    if dtype not in get_args(WeightType):
        raise ValueError(f"expected a type of {', '.join(get_args(WeightType))}, got {dtype!r}")
    temporary = temporary_of(file)
    writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[kind]])
    try:
        writer.add_name(file.stem)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if dtype == "F32" else f"MOSTLY_{dtype}"])
        _add_sizes(writer, config)
        if tokenizer is not None:
            _add_tokenizer(writer, tokenizer, config.vocab_size)
        for name, layer, ending, tensor in placed(model):
            full = full_name(name, layer, ending)
            array = tensor.detach().float().contiguous().numpy()
            is_small = tensor.ndim == 1 or name in ("FFN_GATE_INP", "POS_EMBD")
            kind = "F32" if is_small else dtype
            stored = gguf.GGMLQuantizationType[kind]
            if not max(array.max(), -array.min()) <= _LARGEST[kind]:  # nan is not
                hint = "hint: a type with a wider range, or an earlier checkpoint"
                raise ValueError(f"expected numbers in {full} that {kind} can hold, got nan or too large ones; {hint}")
            try:
                writer.add_tensor(full, gguf.quants.quantize(array, stored), raw_dtype=stored)
            except gguf.quants.QuantError as error:
                raise ValueError(f"{full} of {tuple(tensor.shape)} cannot be stored as {dtype}: {error}") from error
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)
    return file


def check_place(path: str | os.PathLike[str]) -> None:
    """Sees, before the work, that a file can have this path.

    Raises: OSError when it is in no folder, or is one.
    """
    file = Path(path)
    if not file.resolve().parent.is_dir():
        raise FileNotFoundError(f"expected a file in a folder that exists, got {file}; hint: mkdir -p {file.parent}")
    if file.is_dir():
        raise IsADirectoryError(f"expected a file, got the folder {file}; hint: name a file in it")


def package() -> Any:
    """The gguf package.

    Raises: ModuleNotFoundError, saying how to install it.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("GGUF files need the package gguf; hint: pip install gguf", name="gguf") from error
    return gguf


def _checked(config: ModelConfig, tokenizer: "Tokenizer | None") -> str:
    """The format's name of the kind of model."""
    kind = _ARCHITECTURES[architecture_of(config)]
    if config.n_mtp_layers:
        raise ValueError(f"a GGUF file of {kind.lower()} has no further-token modules, got {config.n_mtp_layers}")
    if kind == "LLAMA" and (config.has_bias or config.rope_factor != 1.0):
        part = "biases" if config.has_bias else "stretched context (rope_factor)"
        raise ValueError(f"a GGUF file of llama has no {part}")
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            got = f"{tokenizer.vocab_size} ids and a model of {config.vocab_size}"
            raise ValueError(f"expected the tokenizer of the model, got one of {got}")
        if tokenizer.pattern not in PATTERNS:
            raise ValueError(f"expected a pattern of {', '.join(PATTERNS)} in a GGUF file, got {tokenizer.pattern!r}")
    return kind


def _add_sizes(writer: Any, config: ModelConfig) -> None:
    kind = _ARCHITECTURES[architecture_of(config)].lower()
    table = dict(KEYS[kind])
    if config.n_routed_experts:
        table |= EXPERTS | (GROUPS if _has_groups(config) else {})
    if config.rope_factor != 1.0:
        table |= YARN
    adders = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
    for ours, key in table.items():
        value = getattr(config, ours)
        if value != UNWRITTEN.get(ours):
            adders[type(value)](f"{kind}.{key}", value)
    if config.position == "rope":
        writer.add_rope_dimension_count(config.rope_dim)
    if config.is_latent:
        _add_latent(writer, config)


def _has_groups(config: ModelConfig) -> bool:
    """Whether groups bound the choice; llama.cpp stops at a file of groups that do not."""
    return config.n_limited_groups < config.n_expert_groups < config.n_routed_experts


def _add_latent(writer: Any, config: ModelConfig) -> None:
    writer.add_head_count_kv(1)  # latents are read as one head that all others share
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_leading_dense_block_count(config.n_dense_layers if config.n_routed_experts else config.n_layers)
    if config.n_routed_experts:
        writer.add_expert_gating_func(package().ExpertGatingFuncType[config.score_func.upper()])
    if config.rope_factor != 1.0:
        writer.add_rope_scaling_type(package().RopeScalingType.YARN)
        writer.add_rope_scaling_yarn_log_mul(MSCALE * config.rope_mscale)


def _add_tokenizer(writer: Any, tokenizer: "Tokenizer", vocab_size: int) -> None:
    file = json.loads(tokenizer.to_json())
    added = {token["id"]: token for token in file["added_tokens"]}
    texts = {i: text for text, i in file["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    types = {i: CONTROL if token["special"] else USER_DEFINED for i, token in added.items()}
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in file["model"]["merges"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PATTERNS[tokenizer.pattern])
    # an id without a token is written as llama.cpp's converters do
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types([types.get(i, NORMAL if i in texts else UNUSED) for i in range(vocab_size)])
    writer.add_token_merges(list(merges))  # an empty list is not written
    if not file["model"]["merges"]:
        warnings.warn("llama.cpp reads no tokenizer without merges, and this one has none", stacklevel=3)
    writer.add_add_bos_token(False)
    if tokenizer.eot_id is not None:
        writer.add_bos_token_id(tokenizer.eot_id)
        writer.add_eos_token_id(tokenizer.eot_id)


def full_name(name: str, layer: int, ending: str) -> str:
    """A tensor's name in a file, from that in the format's table."""
    gguf = package()
    stem: str = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[name]]
    return stem.format(bid=layer) + ending


def placed(model: Transformer, *, is_joined: bool = False) -> Iterator[tuple[str, int, str, Tensor]]:
    """Name in the format's table, layer, what ends the name, and where its numbers stand in the model, in their shape.

    What is yielded are views: writing a file reads them, reading one fills them.
    Args: is_joined: kv_up is one matrix in the file, as before the absorbed form.
    """
    config = model.config
    tensors: dict[str, Tensor] = dict(model.named_parameters())

    def both(name: str, ours: str, layer: int = 0) -> Iterator[tuple[str, int, str, Tensor]]:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in tensors:
                yield name, layer, f".{kind}", tensors[f"{ours}.{kind}"]

    yield from both("TOKEN_EMBD", "embed.token")
    yield from both("POS_EMBD", "embed.position")
    for layer in range(config.n_layers):
        ours = f"layers.{layer}"
        yield from both("ATTN_NORM", f"{ours}.attn_norm", layer)
        yield from both("ATTN_OUT", f"{ours}.attn.output", layer)
        yield from both("FFN_NORM", f"{ours}.ffn_norm", layer)
        if config.is_latent:
            yield from _latent(config, tensors, f"{ours}.attn", layer, is_joined=is_joined)
        elif config.position == "rope":
            rows = [config.n_heads * config.head_dim, *[config.kv_heads * config.head_dim] * 2]
            parts = torch.split(tensors[f"{ours}.attn.qkv.weight"], rows)
            yield from ((f"ATTN_{kind}", layer, ".weight", part) for kind, part in zip("QKV", parts, strict=True))
        else:
            yield from both("ATTN_QKV", f"{ours}.attn.qkv", layer)
        if config.has_experts(layer):
            yield from _experts(tensors, f"{ours}.ffn", layer)
        elif config.feed_forward == "swiglu":
            yield from _swiglu(tensors, f"{ours}.ffn", layer, "")
        else:
            yield from both("FFN_UP", f"{ours}.ffn.up", layer)
            yield from both("FFN_DOWN", f"{ours}.ffn.down", layer)
    yield from both("OUTPUT_NORM", "norm")
    yield from both("OUTPUT", "head")


def _latent(
    config: ModelConfig, tensors: dict[str, Tensor], ours: str, layer: int, *, is_joined: bool
) -> Iterator[tuple[str, int, str, Tensor]]:
    table = {"ATTN_KV_A_MQA": "kv_down", "ATTN_KV_A_NORM": "kv_norm"}
    table |= (
        {"ATTN_Q_A": "q_down", "ATTN_Q_A_NORM": "q_norm", "ATTN_Q_B": "q"} if config.q_lora_rank else {"ATTN_Q": "q"}
    )
    for name, part in table.items():
        yield name, layer, ".weight", tensors[f"{ours}.{part}.weight"]
    if is_joined:
        yield "ATTN_KV_B", layer, ".weight", tensors[f"{ours}.kv_up.weight"]
        return
    up = tensors[f"{ours}.kv_up.weight"].view(config.n_heads, -1, config.kv_lora_rank)  # (H, nope + v, R)
    keys, values = torch.split(up, [config.qk_nope_head_dim, config.v_head_dim], dim=1)
    yield "ATTN_K_B", layer, ".weight", keys.transpose(1, 2)  # (H, R, nope)
    yield "ATTN_V_B", layer, ".weight", values  # (H, v, R)


def _experts(tensors: dict[str, Tensor], ours: str, layer: int) -> Iterator[tuple[str, int, str, Tensor]]:
    yield "FFN_GATE_INP", layer, ".weight", tensors[f"{ours}.router.weight"]
    if f"{ours}.router.bias" in tensors:
        yield "FFN_EXP_PROBS_B", layer, ".bias", tensors[f"{ours}.router.bias"]
    gate, up = tensors[f"{ours}.experts.up"].chunk(2, dim=1)  # (E, m, C) each
    yield "FFN_GATE_EXP", layer, ".weight", gate
    yield "FFN_UP_EXP", layer, ".weight", up
    yield "FFN_DOWN_EXP", layer, ".weight", tensors[f"{ours}.experts.down"]
    if f"{ours}.shared.up.weight" in tensors:
        yield from _swiglu(tensors, f"{ours}.shared", layer, "_SHEXP")


def _swiglu(tensors: dict[str, Tensor], ours: str, layer: int, ending: str) -> Iterator[tuple[str, int, str, Tensor]]:
    gate, up = tensors[f"{ours}.up.weight"].chunk(2)
    yield f"FFN_GATE{ending}", layer, ".weight", gate
    yield f"FFN_UP{ending}", layer, ".weight", up
    yield f"FFN_DOWN{ending}", layer, ".weight", tensors[f"{ours}.down.weight"]
