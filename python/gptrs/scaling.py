"""How large a model, and how many tokens, for a number of floating-point operations. No torch here.

compute ─ loss = E + A / N^α + B / D^β, 6·N·D = compute ─▶ N, D ─▶ width, depth, heads ─▶ batch, learning rate
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from gptrs.model import count
from gptrs.model.config import ModelConfig

TOKENS_PER_PARAMETER = 20  # the rule of thumb, from approaches 1 and 2 of arXiv 2203.15556
_FLOPS = 6  # of a parameter and token, forward and backward, as the law counts
_WIDEST, _DEEPEST = 32_768, 512
_RATIOS = (32, 128)  # width over depth: GPT-2's and GPT-3's models lie between
_USUAL_RATIO = 64  # gpt2-small's
_ALIGNED, _ALIGNED_FROM = 128, 1024  # GPUs multiply such widths fastest; small models need finer steps
_NEAR = 0.03  # share by which the parameters may differ while the ratio decides
_FAR = 0.25  # share beyond which no shape fits


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """The expected loss of N parameters after D tokens: irreducible + of_size / N^size + of_data / D^data, in nats."""

    irreducible: float  # E
    of_size: float  # A
    of_data: float  # B
    size: float  # α
    data: float  # β
    source: str

    def loss(self, n_params: float, tokens: float) -> float:
        """The expected loss in nats for a token of the law's own data."""
        return (
            self.irreducible + self.of_size / math.pow(n_params, self.size) + self.of_data / math.pow(tokens, self.data)
        )


# The form is arXiv 2203.15556's, approach 3; its published constants do not fit its own data, these do.
CHINCHILLA = Law(
    irreducible=1.8172, of_size=482.01, of_data=2085.43, size=0.3478, data=0.3658,
    source="arXiv 2203.15556, approach 3, constants of arXiv 2404.10102",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A size and a length of training."""

    n_params: float
    tokens: float
    loss: float  # expected, for the law's data


def optimum(compute: float, law: Law = CHINCHILLA) -> Point:
    """The parameters and tokens of the least expected loss for so many FLOP.

    N = G·(C/6)^(β/(α+β)), D = C / (6·N), G = (α·A / (β·B))^(1/(α+β)).
    Source: arXiv 2203.15556, equation 4.
    """
    pairs = compute / _FLOPS  # parameters times tokens
    both = law.size + law.data
    n = (law.size * law.of_size / (law.data * law.of_data)) ** (1 / both) * pairs ** (law.data / both)
    return Point(n_params=n, tokens=pairs / n, loss=law.loss(n, pairs / n))


def rule_of_thumb(compute: float, law: Law = CHINCHILLA) -> Point:
    """The same by 20 tokens for each parameter.

    Example: 1.2e21 FLOP are 3.16e9 parameters and 6.32e10 tokens.
    """
    n = math.sqrt(compute / (_FLOPS * TOKENS_PER_PARAMETER))
    return Point(n_params=n, tokens=TOKENS_PER_PARAMETER * n, loss=law.loss(n, TOKENS_PER_PARAMETER * n))


def shape(kind: ModelConfig, n_params: float) -> ModelConfig:
    """A dense model of `kind`'s parts and head width with about so many parameters, embeddings included.

    Of all widths and depths within 3 % of the number, or else of the nearest, that whose width over depth is nearest to
    64, GPT-2's.
    Raises: ValueError when kind has experts or latent attention, or nothing comes near.
    """
    if kind.n_routed_experts or kind.is_latent or kind.n_mtp_layers:
        raise ValueError(
            "expected a dense model: the law knows no experts, latents or further tokens; hint: gpt2-small, llama-small"
        )
    unit = kind.head_dim * (kind.n_heads // kind.kv_heads)  # whole groups of heads
    widths = [w for w in range(unit, _WIDEST + 1, unit) if w < _ALIGNED_FROM or w % _ALIGNED == 0]
    found = [_candidate(kind, width, n_params) for width in widths]
    known = [candidate for candidate in found if candidate is not None]
    least = min(off for off, _ in known)
    if least > _FAR:
        smallest = count.n_params(_resized(kind, unit, 1))
        hint = f"hint: the smallest has {smallest:,}; vocab_size=4096 makes it smaller"
        raise ValueError(f"expected a size that such a model can have, got {n_params:,.0f} parameters; {hint}")
    near = [config for off, config in known if off <= max(_NEAR, least)]
    return min(near, key=lambda config: abs(math.log(config.dim / config.n_layers / _USUAL_RATIO)))


def suggest(compute: float, kind: ModelConfig, *, name: str = "") -> dict[str, Any]:
    """The answer as plain values: the optimum, the rule of thumb, a model, its batch and learning rate.

    Raises: ValueError when compute is no positive number, or no such model has the size.
    """
    if not 0 < compute < math.inf:
        raise ValueError(f"compute must be a positive number of FLOP, got {compute!r}")
    best = optimum(compute)
    config = shape(kind, best.n_params)
    n, T = count.n_params(config), config.max_seq_len
    tokens = compute / (_FLOPS * n)
    batch = 0.2920 * compute**0.3271  # tokens
    rows = max(1, round(batch / T))
    rows = rows if rows < 16 else round(rows / 8) * 8
    return {
        "compute": compute,
        "law": dataclasses.asdict(CHINCHILLA),
        "optimum": dataclasses.asdict(best),
        "rule_of_thumb": dataclasses.asdict(rule_of_thumb(compute)),
        "model": {
            "kind": name,
            "config": dataclasses.asdict(config),
            "n_params": n,
            "tokens": tokens,
            "loss": CHINCHILLA.loss(n, tokens),
            "flops": tokens * count.flops_per_token(config, T),
        },
        "suggested": {
            "batch_tokens": batch,
            "global_batch": rows,
            "seq_len": T,
            "steps": math.ceil(tokens / (rows * T)),
            "lr": 0.3118 * compute**-0.1250,
            "source": "arXiv 2401.02954, equation 1: AdamW, its own data and model",
        },
    }


def _candidate(kind: ModelConfig, width: int, n_params: float) -> tuple[float, ModelConfig] | None:
    """The depth whose parameters come nearest at a width, and by what share they differ; None where no depth suits."""
    one, two = (count.n_params(_resized(kind, width, depth)) for depth in (1, 2))
    low, high = max(1, math.ceil(width / _RATIOS[1])), min(_DEEPEST, max(1, width // _RATIOS[0]))
    if low > high:
        return None
    depth = min(max(round((n_params - one) / (two - one)) + 1, low), high)
    n = one + (depth - 1) * (two - one)
    return abs(n / n_params - 1), _resized(kind, width, depth)


def _resized(kind: ModelConfig, width: int, depth: int) -> ModelConfig:
    """The kind with another width and depth: heads as wide, inner widths and kv heads in the same ratio."""
    heads = width // kind.head_dim
    groups = 0 if kind.kv_heads == kind.n_heads else heads * kind.kv_heads // kind.n_heads
    inner = max(1, round(width * kind.inter_dim / kind.dim / 64)) * 64
    return dataclasses.replace(kind, dim=width, n_layers=depth, n_heads=heads, n_kv_heads=groups, inter_dim=inner)
