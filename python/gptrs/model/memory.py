"""Where a model's bytes go: files, caches, optimizer, activations, and each rank's share of them. No torch here.

All figures are formulas over `count.weights`. Assumptions, in one place:

    parameters   bfloat16 copy 2 bytes, its gradient 2; float32 master 4 and AdamW's two moments 8, for trained ones
    activations  what the backward pass keeps of each token: bfloat16, but float32 for the router; of the head the
                 gradient of the states alone, for logits come and go some rows at a time. Checkpointed: each block's
                 input, and one block computed again; blocks of further tokens are kept whole. No dropout;
                 attention is one kernel, which on the CPU is so for values as wide as keys alone: others keep more
                 there
    ranks        data × expert × tensor. tensor: divides heads, inner widths and the vocabulary of embedding and head;
                 the residual stream, latents and the matrices that make them, positions, norms, routers and the matrix
                 that joins state and token are whole on each rank. expert: divides routed experts, and takes other
                 tokens, as data does. The master and moments are divided among all ranks that hold the same weights,
                 but for routers and the biases that tensor has cut. Loads of experts are equal. No pipeline.
"""

import math
from dataclasses import dataclass

from gptrs.model import count
from gptrs.model.config import ModelConfig

_BLOCK = 128  # rows and columns that share one scale of fp8
_MATRICES = ("attention", "feed-forward", "routed experts", "shared experts")
_COPY = _GRADIENT = 2  # bytes of bfloat16
_OPTIMIZER = 12  # bytes: float32 master and two moments
_BIAS = 4  # bytes of a router bias, float32 and with nothing beside it


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """Numbers in the files when the model is stored as DeepSeek-V3 was."""

    fp8: int  # F8_E4M3: matrices of attention, feed-forward and experts
    bf16: int  # BF16: embeddings, head, norms, router matrices, the matrix that joins state and token
    fp32: int  # F32: scales and router biases
    scales: int  # of fp8, in blocks of 128 × 128
    duplicated: int  # the embedding and head that are stored once more for each further token

    @property
    def total(self) -> int:
        """All numbers, scales and copies included."""
        return self.fp8 + self.bf16 + self.fp32

    @property
    def n_bytes(self) -> int:
        """Bytes of all numbers."""
        return self.fp8 + 2 * self.bf16 + 4 * self.fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKind:
    """What one kind of attention would cache with the model's layers and heads."""

    kind: str  # "MHA", "GQA", "MQA" or "MLA"
    formula: str  # numbers of a position in one layer: "2·8·128"
    n_bytes: int  # of one position in all layers
    is_own: bool  # whether the model has this kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Bytes that the backward pass keeps of one token, on a rank of a tensor split."""

    input: int  # of a block: all that a checkpointed block keeps
    attention: int  # of one layer
    feed_forward: int  # of one dense layer
    experts: int  # of one layer of experts; 0 without
    head: int  # final norm and the gradient of its output; for each further token once more
    kept: int  # of the whole model
    checkpointed: int  # the same when blocks keep their input alone, but for those of further tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Bytes on one rank while it trains."""

    n_params: int  # that it holds
    weights: int  # computing copy, and router biases
    gradients: int
    optimizer: int  # its share of the master and the moments
    activations: int
    activations_checkpointed: int

    @property
    def total(self) -> int:
        """Without checkpointing."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def total_checkpointed(self) -> int:
        """With every block checkpointed."""
        return self.total - self.activations + self.activations_checkpointed


def released(config: ModelConfig) -> Released:
    """The model's size in files of DeepSeek-V3's form: fp8 in blocks with a scale each; 684,531,386,000 numbers for V3.

    Raises: ValueError when the model has linear biases or a tied head, for which the form has no place.
    """
    if config.has_bias or config.is_head_tied:
        raise ValueError("expected a model without linear biases and with a head of its own; hint: try deepseek-v3")
    found = list(count.weights(config))
    matrices = [w for w in found if len(w.sizes) == 2 and w.part in _MATRICES]
    fp8, scales = sum(w.n_params for w in matrices), sum(_n_scales(w) for w in matrices)
    biases = sum(w.n_params for w in found if w.part in count.BIASES)
    duplicated = config.n_mtp_layers * 2 * config.vocab_size * config.dim
    bf16 = sum(w.n_params for w in found) - fp8 - biases + duplicated
    return Released(fp8=fp8, bf16=bf16, fp32=scales + biases, scales=scales, duplicated=duplicated)


def cache_kinds(config: ModelConfig, *, n_bytes: int = 2) -> tuple[CacheKind, ...]:
    """What MHA, GQA, MQA and MLA would cache of one position with the model's layers and heads, n_bytes an element.

    GQA has the model's kv heads, or the divisor of n_heads below it that is nearest to 8; MLA the model's ranks, or a
    latent of 4·head_dim and a rotated key of head_dim / 2, as arXiv 2405.04434, table 1.
    Example: of deepseek-v3 MHA would cache 4,997,120 bytes, its own MLA caches 70,272.
    """
    H, K, D, V = config.n_heads, config.kv_heads, config.head_dim, config.value_dim
    divisors = [d for d in range(1, H) if H % d == 0] or [1]
    groups = K if 1 < K < H else min(divisors, key=lambda d: (abs(d - 8), d))
    R, rotated = (config.kv_lora_rank, config.qk_rope_head_dim) if config.is_latent else (4 * D, math.ceil(D / 2))
    own = "MLA" if config.is_latent else "MHA" if K == H else "MQA" if K == 1 else "GQA"
    sizes = [
        (kind, f"{heads}·({D} + {V})", heads * (D + V)) for kind, heads in (("MHA", H), ("GQA", groups), ("MQA", 1))
    ]
    return tuple(
        CacheKind(kind=kind, formula=formula, n_bytes=config.n_layers * n * n_bytes, is_own=kind == own)
        for kind, formula, n in (*sizes, ("MLA", f"{R} + {rotated}", R + rotated))
    )


def activations(config: ModelConfig, *, tensor: int = 1) -> Activations:
    """What the backward pass keeps of one token on a GPU; scores of attention are computed again, as fused kernels do.

    On the CPU routed experts keep less: their inputs, gates and values.
    """
    C, S = config.dim, config.n_shared_experts
    E, A = config.n_routed_experts, config.n_activated_experts
    stream = 2 * 2 * C  # a branch's input before and behind its norm
    attention = stream + _attention_bytes(config, tensor)
    inner = math.ceil(config.inter_dim / tensor)
    dense = stream + 2 * inner * (2 if config.feed_forward == "gelu" else 3)
    experts = 0
    if E:
        m = math.ceil(config.moe_inter_dim / tensor)
        routed = 2 * A * (2 * C + 3 * m)  # input and output; gate, value, silu(gate)·value
        experts = stream + 4 * C + 2 * 4 * E + routed + 2 * 3 * S * m
    head = stream  # its input, and the gradient of what the head reads
    layers = [attention + (experts if config.has_experts(layer) else dense) for layer in range(config.n_layers)]
    further = 2 * stream + attention + (experts or dense) + head  # two inputs, each before and behind its norm
    ends = head + config.n_mtp_layers * further
    return Activations(
        input=2 * C,
        attention=attention,
        feed_forward=dense,
        experts=experts,
        head=head,
        kept=sum(layers) + ends,
        checkpointed=config.n_layers * 2 * C + max(layers) + ends,
    )


def rank(
    config: ModelConfig, *, data: int = 1, expert: int = 1, tensor: int = 1, seq_len: int, micro_batch: int = 1
) -> Rank:
    """The bytes on the fullest of data × expert × tensor ranks, each with micro_batch sequences at a time.

    Raises: ValueError when the model cannot be divided so.
    """
    if data < 1:
        raise ValueError(f"data parallelism must be at least 1, got {data}")
    check_split(config, expert=expert, tensor=tensor)
    held = trained = optimizer = biases = 0
    for weight in count.weights(config):
        n, owned = _shares(weight, data=data, expert=expert, tensor=tensor)
        held += n
        if weight.part in count.BIASES:
            biases += n
        else:
            trained += n
            optimizer += owned * _OPTIMIZER
    kept = activations(config, tensor=tensor)
    n_tokens = seq_len * micro_batch
    return Rank(
        n_params=held,
        weights=trained * _COPY + biases * _BIAS,
        gradients=trained * _GRADIENT,
        optimizer=optimizer,
        activations=kept.kept * n_tokens,
        activations_checkpointed=kept.checkpointed * n_tokens,
    )


def _shares(weight: count.Weight, *, data: int, expert: int, tensor: int) -> tuple[int, int]:
    """Parameters that the fullest rank holds of a weight, and those whose master and moments it keeps."""
    shape, holders = [n for _, n in weight.sizes], data * expert
    is_cut_first = weight.cut == 0 and tensor > 1
    if weight.cut is not None:
        shape[weight.cut] = math.ceil(shape[weight.cut] / tensor)
    if weight.part == "routed experts":
        shape, holders, is_cut_first = [weight.copies[1] // expert, *shape], data, expert > 1
    n = math.prod(shape)
    if weight.part == "router" or (is_cut_first and len(shape) == 1):
        return n, n
    if is_cut_first:  # then along an axis that the ranks divide evenly
        return n, math.ceil(n / holders)
    return n, math.ceil(shape[0] / holders) * math.prod(shape[1:])


def _attention_bytes(config: ModelConfig, tensor: int) -> int:
    """Behind the norm: queries, keys, values, their sums, and a float32 of each head's softmax."""
    H, K, D, V = config.n_heads // tensor, config.kv_heads // tensor, config.head_dim, config.value_dim
    if not config.is_latent:
        rotated = (2 * H + K) * D if config.position == "rope" else 0  # and sums once more, in the projection's order
        return 2 * ((H + 2 * K) * D + rotated + H * D) + 4 * H
    # Latents before and behind their norms; queries, keys, and values, which are seen in what kv_up wrote.
    latents = 2 * (config.q_lora_rank + config.kv_lora_rank + config.qk_rope_head_dim)
    return 2 * (latents + H * (2 * D + config.qk_nope_head_dim + 3 * V)) + 4 * H


def check_split(config: ModelConfig, *, expert: int, tensor: int) -> None:
    """Raises ValueError when a model's experts, heads or inner widths cannot be shared so."""
    for name, n in (("expert", expert), ("tensor", tensor)):
        if n < 1:
            raise ValueError(f"{name} parallelism must be at least 1, got {n}")
    widths = {"kv heads": config.kv_heads, "inter_dim": config.inter_dim, "moe_inter_dim": config.moe_inter_dim}
    for name, n in widths.items():
        if n % tensor:
            raise ValueError(f"tensor parallelism ({tensor}) must divide the {name} ({n})")
    V = config.vocab_size
    if math.ceil(V / tensor) * (tensor - 1) >= V:
        raise ValueError(f"tensor parallelism ({tensor}) must leave each rank some of the vocabulary ({V})")
    E = config.n_routed_experts
    if expert > 1 and E == 0:
        raise ValueError(f"expert parallelism ({expert}) needs experts, got n_routed_experts=0; hint: use 1")
    if E and E % expert:
        raise ValueError(f"expert parallelism ({expert}) must divide n_routed_experts ({E})")


def _n_scales(weight: count.Weight) -> int:
    return weight.copies[1] * math.prod(math.ceil(n / _BLOCK) for _, n in weight.sizes)
