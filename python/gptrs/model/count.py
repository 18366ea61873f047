"""Parameters, FLOPs and cache bytes of a model as formulas: exact, and known before anything is built. No torch here.

The formulas are held against the built model by `of_model`, which counts its tensors instead.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptrs.model.config import ModelConfig

if TYPE_CHECKING:
    from gptrs.model.transformer import Transformer

# part: where its tensors lie in the model; "*" stands for the number of a layer
_PARTS = {
    "token embedding": ("embed.token",),
    "position embedding": ("embed.position",),
    "attention": ("layers.*.attn",),
    "feed-forward": ("layers.*.ffn",),
    "norms": ("layers.*.attn_norm", "layers.*.ffn_norm", "norm"),
    "head": ("head",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One row of the parameter table."""

    name: str  # "attention", all layers together
    formula: str  # in the config's names: "n_layers·(4·dim² + 4·dim)"; of a built model "16 tensors"
    n_params: int  # a tied matrix counts once, where it lies
    is_trainable: bool  # whether an optimizer moves it


def parameters(config: ModelConfig) -> tuple[Part, ...]:
    """The parameters of each part, from the sizes alone; parts of 0 parameters are listed and say why."""
    V, C, L = config.vocab_size, config.dim, config.n_layers
    is_learned, is_tied = config.position == "learned", config.is_head_tied
    rows: tuple[tuple[str, str, int, bool], ...] = (
        ("token embedding", "vocab_size·dim", V * C, True),
        ("position embedding", "max_seq_len·dim", config.max_seq_len * C, True)
        if is_learned
        else ("position embedding", "0 (fixed sinusoids)", 0, False),
        ("attention", "n_layers·(4·dim² + 4·dim)", L * (4 * C**2 + 4 * C), True),
        (
            "feed-forward",
            "n_layers·(2·dim·inter_dim + inter_dim + dim)",
            L * (2 * C * config.inter_dim + config.inter_dim + C),
            True,
        ),
        ("norms", "(2·n_layers + 1)·2·dim", (2 * L + 1) * 2 * C, True),
        ("head", "0 (tied to the token embedding)", 0, True) if is_tied else ("head", "vocab_size·dim", V * C, True),
    )
    return tuple(Part(name=name, formula=formula, n_params=n, is_trainable=t) for name, formula, n, t in rows)


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
    order = list(_PARTS)
    return tuple(
        Part(name=name, formula=f"{n_tensors[name, t]} tensors", n_params=n_params[name, t], is_trainable=t)
        for name, t in sorted(n_params, key=lambda row: (order.index(row[0]), not row[1]))
    )


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
    """All parameters, a tied head counted once: 124,439,808 for gpt2-small."""
    return sum(part.n_params for part in parameters(config))


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Floating-point operations of one training step (forward and backward) per token: 6·N + 12·n_layers·dim·seq_len.

    N counts the parameters that multiply: all but the position table, and vocab_size·dim once, as the head (an untied
    token table is only looked up). Attention counts the full square, without halving it for causality, so that
    figures compare with nanoGPT's. A forward pass alone is a third.
    Source: arXiv 2204.02311, appendix B.
    Example: 855,166,464 for gpt2-small at 1024.
    """
    counts = {part.name: part.n_params for part in parameters(config)}
    n = sum(counts.values()) - counts["position embedding"]
    if not config.is_head_tied:
        n -= counts["token embedding"]
    return 6 * n + 12 * config.n_layers * config.dim * seq_len


def kv_bytes_per_token(config: ModelConfig, *, n_bytes: int = 2) -> int:
    """Bytes of keys and values that one cached position takes in all layers, at n_bytes an element (2: bfloat16).

    Example: 36,864 for gpt2-small.
    """
    return 2 * config.n_layers * config.n_heads * config.head_dim * n_bytes


def _part_of(tensor_name: str) -> str:
    path = ".".join("*" if word.isdigit() else word for word in tensor_name.split("."))
    for part, prefixes in _PARTS.items():
        if any(path.startswith(f"{prefix}.") for prefix in prefixes):
            return part
    raise AssertionError(f"tensor {tensor_name!r} belongs to no part")
