"""Parameters, FLOPs and cache bytes of a model as formulas: exact, and known before anything is built. No torch here.

    config ─weights─▶ every matrix and vector with its part, layer and sizes ─▶ by part, by layer, activated

The formulas are held against the built model by `of_model`, which counts its tensors instead.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gptrs.model.config import ModelConfig

if TYPE_CHECKING:
    from gptrs.model.transformer import Transformer

FURTHER = "further tokens"  # the part, and the first word of its layers
BIASES = ("router biases", f"{FURTHER}, router biases")  # moved towards equal load, never by an optimizer
_TIMES = re.compile(r"·(?![^(]*\))")  # outside of brackets
_SQUARE = re.compile(r"\bdim·dim\b")

# part: where its tensors lie in the model; "*" stands for the number of a layer; the first that fits counts
_PARTS = {
    "token embedding": ("embed.token",),
    "position embedding": ("embed.position",),
    "attention": ("layers.*.attn",),
    "feed-forward": ("layers.*.ffn.up", "layers.*.ffn.down"),
    "router": ("layers.*.ffn.router.weight",),
    "router biases": ("layers.*.ffn.router.bias",),
    "routed experts": ("layers.*.ffn.experts",),
    "shared experts": ("layers.*.ffn.shared",),
    "norms": ("layers.*.attn_norm", "layers.*.ffn_norm", "norm"),
    "head": ("head",),
    f"{FURTHER}, router biases": ("further.*.block.ffn.router.bias",),
    FURTHER: ("further.*",),
}
_ORDER = [part for part in _PARTS if part != FURTHER]
_ORDER.insert(-1, FURTHER)

Size = tuple[str, int]  # how it is written in the config's names, and its value


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One row of the parameter table."""

    name: str  # "attention", all layers together
    formula: str  # in the config's names: "n_layers·(4·dim² + 4·dim)"; of a built model "16 tensors"
    n_params: int  # a tied matrix counts once, where it lies
    is_trainable: bool  # whether an optimizer moves it


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """Matrices or vectors of one shape in one layer."""

    part: str  # as in `parameters`, in a further token's block too
    sizes: tuple[Size, ...]  # rows and columns, or the width of a vector
    layer: str = ""  # "0", "1", …, "further 0"; "" outside of the layers
    copies: Size = ("", 1)  # how many
    cut: int | None = None  # which of the sizes "tensor" ranks share; each has all of what has none

    @property
    def n_params(self) -> int:
        """Of all copies."""
        return self.copies[1] * math.prod(n for _, n in self.sizes)

    @property
    def formula(self) -> str:
        """The same in the config's names."""
        return _product(*([self.copies[0]] if self.copies[0] else []), *(text for text, _ in self.sizes))

    @property
    def row(self) -> str:
        """The part, where all of a further token's block is one."""
        if not self.layer.startswith("further"):
            return self.part
        return BIASES[1] if self.part == BIASES[0] else FURTHER


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over the parts."""

    main: int  # without further tokens
    further: int  # blocks of further tokens, without the embedding and head that they share
    trainable: int  # of both; all but router biases
    activated: int  # of the main model, for one token: of E routed experts A
    activated_without_lookup: int  # less the tables of which a token reads one row

    @property
    def total(self) -> int:
        """All that the model holds."""
        return self.main + self.further


def weights(config: ModelConfig) -> Iterator[Weight]:
    """Every matrix and vector of the model, first layer first; those of further tokens last."""
    dim, vocab = ("dim", config.dim), ("vocab_size", config.vocab_size)
    yield Weight(part="token embedding", sizes=(vocab, dim), cut=0)
    if config.position == "learned":
        yield Weight(part="position embedding", sizes=(("max_seq_len", config.max_seq_len), dim))
    for layer in range(config.n_layers):
        for weight in _block(config, has_experts=config.has_experts(layer)):
            yield replace(weight, layer=str(layer))
    yield from _norm(config)
    if not config.is_head_tied:
        yield Weight(part="head", sizes=(vocab, dim), cut=0)
    for depth in range(config.n_mtp_layers):
        joined = Weight(part=FURTHER, sizes=(dim, ("2·dim", 2 * config.dim)))
        block = _block(config, has_experts=config.n_routed_experts > 0)
        for weight in (joined, *block, *(3 * list(_norm(config)))):
            yield replace(weight, layer=f"further {depth}")


def parameters(config: ModelConfig) -> tuple[Part, ...]:
    """The parameters of each part, from the sizes alone; parts of 0 parameters are listed when they say why."""
    layers: dict[str, dict[str, list[Weight]]] = {}
    for weight in weights(config):
        layers.setdefault(weight.row, {}).setdefault(weight.layer, []).append(weight)
    return tuple(
        Part(
            name=name,
            formula=_formula(config, name, layers[name]) if name in layers else _reason(config, name),
            n_params=sum(w.n_params for ws in layers.get(name, {}).values() for w in ws),
            is_trainable=name not in BIASES and (name != "position embedding" or name in layers),
        )
        for name in _ORDER
        if name in layers or _reason(config, name)
    )


def by_layer(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Parameters of each part in each layer: "0", "1", …, "further 0", and under "" what lies outside of the layers."""
    layers: dict[str, Counter[str]] = {}
    for weight in weights(config):
        layers.setdefault(weight.layer, Counter())[weight.part] += weight.n_params
    return {layer: dict(parts) for layer, parts in layers.items()}


def totals(config: ModelConfig) -> Totals:
    """The sums that a model is named by.

    Example: deepseek-v3 has 671,026,419,200, of which a token activates 37,552,297,472, or 36,625,618,432 without the
    input's lookup; its block of a further token 11,610,068,224 more.
    """
    counts: Counter[str] = Counter()
    for weight in weights(config):
        counts[weight.row] += weight.n_params
    further = counts[FURTHER] + counts[BIASES[1]]
    main = sum(counts.values()) - further
    activated = main - _idle(config, counts["routed experts"])
    looked_up = counts["position embedding"] + (0 if config.is_head_tied else counts["token embedding"])
    return Totals(
        main=main,
        further=further,
        trainable=main + further - sum(counts[name] for name in BIASES),
        activated=activated,
        activated_without_lookup=activated - looked_up,
    )


def of_model(model: "Transformer") -> tuple[Part, ...]:
    """The parameters of each part, counted from a built model's tensors.

    A part that is frozen in part gives two rows; a part without tensors gives none. Works on the meta device.
    """
    n_params: Counter[tuple[str, bool]] = Counter()
    n_tensors: Counter[tuple[str, bool]] = Counter()
    for name, tensor in model.named_parameters():
        row = _part_of(name), tensor.requires_grad
        n_params[row] += tensor.numel()
        n_tensors[row] += 1
    return tuple(
        Part(name=name, formula=f"{n_tensors[name, t]} tensors", n_params=n_params[name, t], is_trainable=t)
        for name, t in sorted(n_params, key=lambda row: (_ORDER.index(row[0]), not row[1]))
    )


def layers_of_model(model: "Transformer") -> dict[str, int]:
    """Parameters of each layer, counted from a built model's tensors; names as in `by_layer`."""
    counts: Counter[str] = Counter()
    for name, tensor in model.named_parameters():
        counts[place(name)[0]] += tensor.numel()
    return dict(counts)


def place(tensor_name: str) -> tuple[str, str]:
    """The layer and the part of a tensor, as `by_layer` and `parameters` name them.

    Example: layers.3.attn.qkv.weight is in ("3", "attention"), the last norm in ("", "norms").
    """
    first, number = tensor_name.split(".")[:2]
    layer = {"layers": number, "further": f"further {number}"}.get(first, "")
    return layer, _part_of(tensor_name)


def table(config: ModelConfig) -> list[tuple[str, str, str, str, str]]:
    """Rows to print: part, formula, parameters, share of the total, trainable; the last row is the total.

    Example: the second row of gpt2-small is
    `("position embedding", "max_seq_len·dim", "786,432", "0.63 %", "yes")`.
    """
    parts = parameters(config)
    total = sum(part.n_params for part in parts)
    rows = [
        (p.name, p.formula, f"{p.n_params:,}", f"{100 * p.n_params / total:.2f} %", "yes" if p.is_trainable else "no")
        for p in parts
    ]
    return [*rows, ("total", "", f"{total:,}", "100.00 %", "")]


def n_params(config: ModelConfig) -> int:
    """All parameters, those of further tokens too, a tied head counted once: 124,439,808 for gpt2-small."""
    return totals(config).total


def flops_per_token(config: ModelConfig, seq_len: int, *, has_further: bool = False) -> int:
    """Floating-point operations of one training step (forward and backward) per token.

    6·N + 6·n_layers·n_heads·(head_dim + value_dim)·seq_len: N counts all parameters that a token meets (norms and
    biases too), of routed experts those that it takes; tables that are only looked up are not in it, a tied one is
    once, as the head. Attention counts the full square, without halving it for causality, so that figures compare
    with nanoGPT's. A forward pass alone is a third. `has_further` adds the blocks of further tokens, each with one
    more product of the head.
    Source: arXiv 2204.02311, appendix B.
    Example: 855,166,464 for gpt2-small at 1024; 281 GFLOP for deepseek-v3 at 4096.
    """
    found = totals(config)
    n, n_layers = found.activated_without_lookup, config.n_layers
    if has_further and config.n_mtp_layers:
        E = config.n_routed_experts
        experts = config.n_mtp_layers * 3 * config.dim * config.moe_inter_dim * E
        n += found.further - _idle(config, experts) + config.n_mtp_layers * config.vocab_size * config.dim
        n_layers += config.n_mtp_layers
    return 6 * n + n_layers * attention_flops(config, seq_len)


def attention_flops(config: ModelConfig, seq_len: int) -> int:
    """The part of `flops_per_token` that one layer spends on scores and their use, the full square."""
    return 6 * config.n_heads * (config.head_dim + config.value_dim) * seq_len


def kv_bytes_per_token(config: ModelConfig, *, n_bytes: int = 2) -> int:
    """Bytes that one cached position takes in all layers, at n_bytes an element (2: bfloat16).

    Keys and values of every kv head; of latent attention the latent and its rotated key.
    Example: 36,864 for gpt2-small, 70,272 for deepseek-v3.
    """
    if config.is_latent:
        return config.n_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * n_bytes
    return config.n_layers * config.kv_heads * (config.head_dim + config.value_dim) * n_bytes


def _block(config: ModelConfig, *, has_experts: bool) -> Iterator[Weight]:
    yield from _latent_attention(config) if config.is_latent else _attention(config)
    if has_experts:
        yield from _experts(config)
    else:
        inner = ("inter_dim", config.inter_dim)
        up = ("2·inter_dim", 2 * config.inter_dim) if config.feed_forward == "swiglu" else inner
        yield from _linear(config, "feed-forward", up, ("dim", config.dim), cut=0)
        yield from _linear(config, "feed-forward", ("dim", config.dim), inner, cut=1)
    yield from (*_norm(config), *_norm(config))


def _attention(config: ModelConfig) -> Iterator[Weight]:
    dim, D = ("dim", config.dim), config.head_dim
    width = ("3·dim", 3 * config.dim)
    if config.kv_heads < config.n_heads:
        width = ("(n_heads + 2·kv_heads)·head_dim", (config.n_heads + 2 * config.kv_heads) * D)
    yield from _linear(config, "attention", width, dim, cut=0)
    yield from _linear(config, "attention", dim, dim, cut=1)


def _latent_attention(config: ModelConfig) -> Iterator[Weight]:
    dim, H, R, r = ("dim", config.dim), config.n_heads, config.kv_lora_rank, config.q_lora_rank
    rank = ("kv_lora_rank", R)
    source = ("q_lora_rank", r) if r else dim
    if r:
        yield from _linear(config, "attention", source, dim)
        yield from _norm(config, "attention", source)
    yield Weight(part="attention", sizes=(("n_heads·head_dim", H * config.head_dim), source), cut=0)
    yield from _linear(config, "attention", ("kv_lora_rank + qk_rope_head_dim", R + config.qk_rope_head_dim), dim)
    yield from _norm(config, "attention", rank)
    joint = H * (config.qk_nope_head_dim + config.v_head_dim)
    yield Weight(part="attention", sizes=(("n_heads·(qk_nope_head_dim + v_head_dim)", joint), rank), cut=0)
    yield from _linear(config, "attention", dim, ("n_heads·v_head_dim", H * config.v_head_dim), cut=1)


def _experts(config: ModelConfig) -> Iterator[Weight]:
    dim, E, m = ("dim", config.dim), ("n_routed_experts", config.n_routed_experts), config.moe_inter_dim
    inner, up = ("moe_inter_dim", m), ("2·moe_inter_dim", 2 * m)
    yield Weight(part="router", sizes=(E, dim))
    if config.score_func == "sigmoid":
        yield Weight(part="router biases", sizes=(E,))
    yield Weight(part="routed experts", sizes=(up, dim), copies=E, cut=0)
    yield Weight(part="routed experts", sizes=(dim, inner), copies=E, cut=1)
    if S := config.n_shared_experts:
        yield Weight(part="shared experts", sizes=(("2·n_shared_experts·moe_inter_dim", 2 * S * m), dim), cut=0)
        yield Weight(part="shared experts", sizes=(dim, ("n_shared_experts·moe_inter_dim", S * m)), cut=1)


def _linear(config: ModelConfig, part: str, rows: Size, columns: Size, cut: int | None = None) -> Iterator[Weight]:
    yield Weight(part=part, sizes=(rows, columns), cut=cut)
    if config.has_bias:
        yield Weight(part=part, sizes=(rows,), cut=cut if cut == 0 else None)


def _norm(config: ModelConfig, part: str = "norms", width: Size | None = None) -> Iterator[Weight]:
    text, n = width or ("dim", config.dim)
    yield Weight(part=part, sizes=((text, n) if config.norm == "rms" else (f"2·{text}", 2 * n),))


def _idle(config: ModelConfig, n_experts_params: int) -> int:
    """Of the parameters of routed experts those that a token does not take."""
    E, A = config.n_routed_experts, config.n_activated_experts
    return n_experts_params * (E - A) // E if E else 0


def _formula(config: ModelConfig, part: str, layers: dict[str, list[Weight]]) -> str:
    """The sum over layers, which are all alike in one part, and what lies outside of them."""
    terms = []
    inside = [ws for layer, ws in layers.items() if layer]
    if inside:
        n_layers = "n_layers"
        if part.startswith(FURTHER):
            n_layers = "n_mtp_layers"
        elif config.n_dense_layers and part == "feed-forward":
            n_layers = "n_dense_layers"
        elif config.n_dense_layers and part not in ("attention", "norms"):
            n_layers = "n_layers - n_dense_layers"
        terms.append(_product(n_layers, _sum(inside[0])))
    if "" in layers:
        terms.append(_sum(layers[""]))
    return " + ".join(terms)


def _sum(found: Sequence[Weight]) -> str:
    """Like terms together: "4·dim² + 4·dim"."""
    terms: Counter[str] = Counter()
    for weight in found:
        number, term = _split(weight.formula)
        terms[_product(*term)] += number
    return " + ".join(_product(str(n), term) for term, n in terms.items())


def _product(*factors: str) -> str:
    """Numbers first, sums in brackets, then names in order: "3·dim·inter_dim"; dim·dim is dim²."""
    number, names = 1, list[str]()
    for factor in factors:
        n, parts = (1, [f"({factor})"]) if _is_sum(factor) else _split(factor)
        number, names = number * n, [*names, *parts]
    text = _SQUARE.sub("dim²", "·".join(sorted(names, key=_place)))
    return f"{number}·{text}" if number > 1 else text


def _place(name: str) -> tuple[bool, bool, bool, str]:
    """Where a name stands in a product: layers, other numbers of things, lengths of tables, widths."""
    return "_layers" not in name, not name.startswith("n_"), name not in ("vocab_size", "max_seq_len"), name


def _split(product: str) -> tuple[int, list[str]]:
    """The number and the names of a product; one in brackets is one name."""
    names = _TIMES.split(product)
    return math.prod(int(name) for name in names if name.isdigit()), [name for name in names if not name.isdigit()]


def _is_sum(text: str) -> bool:
    """Whether there is a sign outside of brackets."""
    depth = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign in "+-" and depth == 0:
            return True
    return False


def _reason(config: ModelConfig, part: str) -> str:
    """Why a part that one would look for is empty; nothing for parts that nobody would."""
    if part == "position embedding":
        return "0 (fixed sinusoids)" if config.position == "sinusoidal" else "0 (rotated queries and keys)"
    return "0 (tied to the token embedding)" if part == "head" else ""


def _part_of(tensor_name: str) -> str:
    path = ".".join("*" if word.isdigit() else word for word in tensor_name.split("."))
    for part, prefixes in _PARTS.items():
        if any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes):
            return part
    raise AssertionError(f"tensor {tensor_name!r} belongs to no part")
