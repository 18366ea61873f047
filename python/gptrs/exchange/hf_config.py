"""`config.json` of Hugging Face transformers, read and written, for the models that both sides have.

GPT2LMHeadModel, LlamaForCausalLM, DeepseekV2ForCausalLM and DeepseekV3ForCausalLM. What a target has no place for is
refused by name, and so is a key that would change a number and that we do not have. Rotary settings are written as
`rope_theta` and `rope_scaling`, which transformers 4 reads and 5 converts; both spellings are read.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

from gptrs.model.config import ModelConfig

Architecture = Literal["GPT2LMHeadModel", "LlamaForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"]

_MODEL_TYPES = {
    "GPT2LMHeadModel": "gpt2",
    "LlamaForCausalLM": "llama",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
}
_ALIASES = {"DeepseekV3ForCausalLM": ("kimi_k2",)}  # with code of its own that computes the same
FP8_BLOCK = 128  # rows and columns of an 8-bit weight that share a scale
_INTERLEAVES = {"DeepseekV2ForCausalLM": (True,), "DeepseekV3ForCausalLM": (True, False)}  # V2's class does always
_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_LATENT_NORM_EPS = 1e-6  # transformers fixes that of the latents' norms
_GPT2 = {
    "vocab_size": "vocab_size", "max_seq_len": "n_positions", "dim": "n_embd", "n_layers": "n_layer",
    "n_heads": "n_head", "inter_dim": "n_inner", "norm_eps": "layer_norm_epsilon",
    "is_head_tied": "tie_word_embeddings", "init_std": "initializer_range",
}  # fmt: skip
_GPT2_ALIASES = {
    "hidden_size": "dim", "max_position_embeddings": "max_seq_len", "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
}  # fmt: skip
_LLAMA = {
    "vocab_size": "vocab_size", "max_seq_len": "max_position_embeddings", "dim": "hidden_size",
    "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "inter_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps", "is_head_tied": "tie_word_embeddings", "init_std": "initializer_range",
    "rope_theta": "rope_theta",
}  # fmt: skip
_DEEPSEEK = _LLAMA | {
    "q_lora_rank": "q_lora_rank", "kv_lora_rank": "kv_lora_rank", "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim", "v_head_dim": "v_head_dim", "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts", "n_activated_experts": "num_experts_per_tok",
    "moe_inter_dim": "moe_intermediate_size", "n_dense_layers": "first_k_dense_replace",
    "norm_topk_prob": "norm_topk_prob", "route_scale": "routed_scaling_factor", "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
}  # fmt: skip
# What a file without these keys means, by its class.
_V2_DEFAULTS = {
    "norm_topk_prob": False, "routed_scaling_factor": 1.0, "n_group": None, "topk_group": None,
    "first_k_dense_replace": 0,
}  # fmt: skip
_V3_DEFAULTS = {
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
}  # fmt: skip


def architecture_of(config: ModelConfig) -> Architecture:
    """The class of transformers that computes the same model.

    Raises: ValueError, naming the part that none of them has.
    """
    parts = (config.position, config.norm, config.feed_forward)
    if config.is_latent:
        architecture: Architecture = (
            "DeepseekV2ForCausalLM"
            if config.n_routed_experts and config.score_func == "softmax"
            else "DeepseekV3ForCausalLM"
        )
    elif parts == ("learned", "layer", "gelu"):
        architecture = "GPT2LMHeadModel"
    elif parts == ("rope", "rms", "swiglu"):
        architecture = "LlamaForCausalLM"
    else:
        raise ValueError(
            "expected learned positions, LayerNorm and GELU (GPT-2) or rope, RMSNorm and SwiGLU (Llama, DeepSeek), "
            f"got {', '.join(parts)}; transformers has no such model"
        )
    for part, is_held in _requirements(config, architecture).items():
        if not is_held:
            raise ValueError(f"{architecture} cannot hold this model: it needs {part}")
    return architecture


def _requirements(config: ModelConfig, architecture: Architecture) -> dict[str, bool]:
    """What a class asks of a model, and whether it has it."""
    is_latent = config.is_latent
    has_experts = config.n_routed_experts > 0
    latent = {
        "a norm_eps of 1e-6": config.norm_eps == _LATENT_NORM_EPS,
        "RMSNorm and SwiGLU": (config.norm, config.feed_forward) == ("rms", "swiglu"),
        "linear layers without bias": not config.has_bias,
        "shared experts beside routed ones": config.n_shared_experts > 0 or not has_experts,
        "yarn with rope_mscale above 0": config.rope_factor == 1.0 or config.rope_mscale > 0.0,
    }
    return {
        "GPT2LMHeadModel": {
            "biases": config.has_bias,
            "as many kv heads as heads": config.kv_heads == config.n_heads,
            "no further-token modules": config.n_mtp_layers == 0,
        },
        "LlamaForCausalLM": {
            "no experts without latent attention": is_latent or not has_experts,
            "no further-token modules": config.n_mtp_layers == 0,
        },
        "DeepseekV2ForCausalLM": latent
        | {
            "weights of experts as the softmax gives them (norm_topk_prob false)": not config.norm_topk_prob,
            "groups scored by their best expert (group_score 'max')": config.n_expert_groups == 1
            or config.group_score == "max",
            "no further-token modules": config.n_mtp_layers == 0,
        },
        "DeepseekV3ForCausalLM": latent
        | {
            "groups scored by their best two experts (group_score 'top2')": config.group_score == "top2"
            or config.n_expert_groups == 1,
        },
    }[architecture]


def write(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model.

    Raises: ValueError when transformers has no such model, naming the part.
    """
    architecture = architecture_of(config)
    out: dict[str, Any] = {"architectures": [architecture], "model_type": _MODEL_TYPES[architecture]}
    if architecture == "GPT2LMHeadModel":
        out |= {theirs: getattr(config, ours) for ours, theirs in _GPT2.items()}
        return out | dict.fromkeys(_DROPOUT, config.dropout) | {"activation_function": "gelu_new"}
    names = _LLAMA if architecture == "LlamaForCausalLM" else _DEEPSEEK
    out |= {theirs: getattr(config, ours) for ours, theirs in names.items()}
    out |= {"hidden_act": "silu", "num_key_value_heads": config.kv_heads, "attention_bias": config.has_bias}
    if config.rope_factor != 1.0:
        out["rope_scaling"] = _written_yarn(config)
    if architecture == "LlamaForCausalLM":
        return out | {"mlp_bias": config.has_bias, "head_dim": config.head_dim}
    out["q_lora_rank"] = config.q_lora_rank or None
    if not config.n_routed_experts:
        one = dict.fromkeys(("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size"), 1)
        n_blocks = config.n_layers + config.n_mtp_layers  # those of further tokens are layers there
        out |= one | {"first_k_dense_replace": n_blocks}  # a layer of experts is never built
    if architecture == "DeepseekV2ForCausalLM":
        method = "greedy" if config.n_limited_groups == config.n_expert_groups else "group_limited_greedy"
        return out | {"topk_method": method, "scoring_func": "softmax"}
    return out | {
        "num_nextn_predict_layers": config.n_mtp_layers,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def _written_yarn(config: ModelConfig) -> dict[str, Any]:
    yarn: dict[str, Any] = {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": config.rope_factor,
        "original_max_position_embeddings": config.rope_original_len,
        "beta_fast": config.rope_beta_fast,
        "beta_slow": config.rope_beta_slow,
    }
    if config.is_latent:
        return yarn | {"mscale": config.rope_mscale, "mscale_all_dim": config.rope_mscale}
    # It multiplies sine and cosine of every dimension there, here the product of both sides.
    return yarn | {"attention_factor": 0.1 * config.rope_mscale * math.log(config.rope_factor) + 1.0}


def read(given: Mapping[str, Any]) -> ModelConfig:
    """The model of a config.json.

    Raises: ValueError for another class, a missing key, or a setting that we do not have, naming it.
    """
    named = given.get("architectures")
    architecture: Any = named[0] if isinstance(named, list) and named else None
    if architecture not in get_args(Architecture):
        hint = "hint: a file of GPT-2, Llama, DeepSeek-V2 or -V3 is expected"
        raise ValueError(f"expected one of {', '.join(get_args(Architecture))}, got architectures={named!r}; {hint}")
    _check_quantization(given)
    # transformers picks the class by the model's type, and a Granite that calls itself a Llama computes as a Granite
    types = (_MODEL_TYPES[architecture], *_ALIASES.get(architecture, ()))
    _refuse(given, architecture, is_causal=(None, True), model_type=types)
    reader = _read_gpt2 if architecture == "GPT2LMHeadModel" else _read_modern
    return reader(given, architecture)


def _read_gpt2(given: Mapping[str, Any], architecture: str) -> ModelConfig:
    _refuse(
        given,
        architecture,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    fields = _fields(given, architecture, _GPT2, n_inner=None, tie_word_embeddings=True, initializer_range=0.02)
    aliases = {key: (None, fields[name]) for key, name in _GPT2_ALIASES.items()}
    _refuse(given, architecture, **aliases)
    dropout = given.get(_DROPOUT[0], 0.0)
    _refuse(given, architecture, **dict.fromkeys(_DROPOUT, (dropout,)))
    return ModelConfig(**fields | {"inter_dim": fields["inter_dim"] or 4 * fields["dim"], "dropout": dropout})


def _check_quantization(given: Mapping[str, Any]) -> None:
    """Raises: ValueError for weights in another form than DeepSeek-V3's."""
    form = given.get("quantization_config")
    if form is None:
        return
    block = [FP8_BLOCK, FP8_BLOCK]
    if not isinstance(form, dict) or form.get("quant_method") != "fp8" or form.get("weight_block_size") != block:
        raise ValueError(
            f"expected plain weights or quant_method 'fp8' with weight_block_size {block}, "
            f"got quantization_config={form!r}"
        )


def _read_modern(given: Mapping[str, Any], architecture: str) -> ModelConfig:
    is_llama = architecture == "LlamaForCausalLM"
    rope = _rope_settings(given)
    given = {**given, "rope_theta": rope.get("rope_theta", given.get("rope_theta", 10_000.0))}
    _refuse(given, architecture, hidden_act=("silu",), pretraining_tp=(1,), partial_rotary_factor=(None, 1.0))
    _refuse(rope, architecture, partial_rotary_factor=(None, 1.0), truncate=(True,))
    _refuse(given, architecture, attention_bias=(None, False, True), mlp_bias=(None, False, True))
    fields = _fields(
        given, architecture, _LLAMA if is_llama else _DEEPSEEK,
        tie_word_embeddings=False, initializer_range=0.02, q_lora_rank=None,
        **(_V3_DEFAULTS if architecture == "DeepseekV3ForCausalLM" else _V2_DEFAULTS),
    )  # fmt: skip
    if given.get("attention_dropout"):
        text = "only that of GPT-2, of attention and residual stream alike, is known; read without it"
        warnings.warn(f"attention_dropout={given['attention_dropout']!r}: {text}", stacklevel=4)
    has_bias = bool(given.get("attention_bias", False))
    fields |= {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "has_bias": has_bias}
    fields |= (yarn := _read_yarn(rope, is_latent=not is_llama))
    if yarn:  # beside the others, it would overrule theirs in transformers 5
        _refuse(given, architecture, original_max_position_embeddings=(None, yarn["rope_original_len"]))
    if is_llama:
        n_kv_heads = given.get("num_key_value_heads") or 0
        config = ModelConfig(**fields, n_kv_heads=n_kv_heads if n_kv_heads != fields["n_heads"] else 0)
        _refuse(given, architecture, mlp_bias=(has_bias,), head_dim=(None, config.head_dim))
    else:
        _refuse(given, architecture, num_key_value_heads=(None, fields["n_heads"]), moe_layer_freq=(None, 1))
        _refuse(given, architecture, rope_interleave=_INTERLEAVES[architecture])
        _refuse(given, architecture, head_dim=(None, fields["qk_rope_head_dim"]))
        config = ModelConfig(**fields | _read_experts(given, architecture, fields), scales_residual_init=False)
        kinds = ["sparse" if config.has_experts(layer) else "dense" for layer in range(config.n_layers)]
        _refuse(given, architecture, mlp_layer_types=(None, kinds))
    architecture_of(config)
    return config


def _read_experts(given: Mapping[str, Any], architecture: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of attention and experts that need more than another name."""
    n_mtp_layers = _n_further(given) if architecture == "DeepseekV3ForCausalLM" else 0
    others = {"q_lora_rank": fields["q_lora_rank"] or 0, "n_mtp_layers": n_mtp_layers}
    if fields["n_dense_layers"] >= fields["n_layers"] + n_mtp_layers:
        names = ("n_routed_experts", "n_shared_experts", "n_activated_experts", "moe_inter_dim", "n_dense_layers")
        return others | dict.fromkeys(names, 0) | {"n_expert_groups": 1, "n_limited_groups": 1}
    groups = {name: fields[name] or 1 for name in ("n_expert_groups", "n_limited_groups")}
    if architecture == "DeepseekV2ForCausalLM":
        _refuse(given, architecture, topk_method=("greedy", "group_limited_greedy"), scoring_func=("softmax",))
        if given.get("topk_method", "greedy") == "greedy":
            groups = {"n_expert_groups": 1, "n_limited_groups": 1}
        # DeepSeek's own code divides the weights by their sum, transformers passes the key over
        _refuse(given, architecture, norm_topk_prob=(False,))
        return others | groups | {"score_func": "softmax", "group_score": "max", "norm_topk_prob": False}
    _refuse(given, architecture, scoring_func=("sigmoid",), topk_method=("noaux_tc",), norm_topk_prob=(True, False))
    return others | groups | {"score_func": "sigmoid", "group_score": "top2"}


def _n_further(given: Mapping[str, Any]) -> int:
    """How many further-token modules a file has, by either spelling."""
    n = given.get("num_nextn_predict_layers", given.get("num_mtp_layers"))
    if n is not None and type(n) is not int:
        raise ValueError(f"expected num_nextn_predict_layers to be an integer, got {n!r}")
    return n or 0


def is_interleaved(given: Mapping[str, Any]) -> bool:
    """Whether the rotated pairs of a file are neighbours, as ours; Llama pairs the halves of a head."""
    (architecture, *_) = given["architectures"]
    return architecture != "LlamaForCausalLM" and given.get("rope_interleave", True) is not False


def _rope_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    rope, other = given.get("rope_parameters") or {}, given.get("rope_scaling") or {}
    if rope and other and rope != other:
        raise ValueError(f"expected the same in rope_parameters and rope_scaling, or one of them, got {rope}, {other}")
    rope = rope or other
    if not isinstance(rope, dict):
        raise ValueError(f"expected rope_parameters or rope_scaling with keys and values, got {rope!r}")
    return rope


def _read_yarn(rope: Mapping[str, Any], *, is_latent: bool) -> dict[str, Any]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    if kind != "yarn":
        raise ValueError(f"expected rope_type default or yarn, got {kind!r}")
    for key in ("factor", "original_max_position_embeddings"):
        if key not in rope:
            raise ValueError(f"expected {key} beside rope_type yarn, found none")
    factor = _number(rope, "factor", 0.0)
    if not 1.0 < factor < math.inf:
        raise ValueError(f"expected a yarn factor above 1, got {factor}")
    fields = {
        "rope_factor": factor,
        "rope_original_len": rope["original_max_position_embeddings"],
        "rope_beta_fast": _number(rope, "beta_fast", 32.0),
        "rope_beta_slow": _number(rope, "beta_slow", 1.0),
    }
    mscale, all_dim = _number(rope, "mscale", 0.0), _number(rope, "mscale_all_dim", 0.0)
    attention_factor = None if rope.get("attention_factor") is None else _number(rope, "attention_factor", 1.0)
    if is_latent:
        if mscale != all_dim or not mscale or attention_factor not in (None, 1.0):
            raise ValueError(
                f"expected equal mscale and mscale_all_dim and no attention_factor, got {mscale}, {all_dim} and "
                f"{attention_factor}; such files rotate with sines that are not of length 1"
            )
        return fields | {"rope_mscale": mscale}
    if mscale or all_dim:
        raise ValueError(f"expected no mscale in a Llama file, got {mscale} and mscale_all_dim={all_dim}")
    growth = 0.1 * math.log(factor) + 1.0 if attention_factor is None else attention_factor
    if growth < 1.0:
        raise ValueError(f"expected a yarn attention_factor of at least 1, got {attention_factor}")
    return fields | {"rope_mscale": round((growth - 1.0) / (0.1 * math.log(factor)), 12)}


def _fields(given: Mapping[str, Any], architecture: str, names: Mapping[str, str], **optional: Any) -> dict[str, Any]:
    """Our fields from their keys; those in `optional` may be missing."""
    missing = [theirs for theirs in names.values() if given.get(theirs) is None and theirs not in optional]
    if missing:
        raise ValueError(f"expected the keys of {architecture}, missing {', '.join(missing)}")
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    fields = {}
    for ours, theirs in names.items():
        value, kind = given.get(theirs), kinds[ours]
        if value is None:
            value = optional.get(theirs)
        elif type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{architecture}: expected {theirs} of the kind {kind.__name__}, got {value!r}")
        fields[ours] = value
    return fields


def _number(given: Mapping[str, Any], key: str, default: float) -> float:
    value = given.get(key)
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"expected {key} to be a number, got {value!r}")
    return float(default if value is None else value)


def _refuse(given: Mapping[str, Any], architecture: str, **allowed: tuple[Any, ...]) -> None:
    """Refuses keys that are there with a value that we do not have."""
    for key, values in allowed.items():
        if key in given and given[key] not in values:
            expected = " or ".join(repr(value) for value in values)
            raise ValueError(f"{architecture}: expected {key}={expected}, got {given[key]!r}")
