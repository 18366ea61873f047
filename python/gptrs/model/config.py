"""The sizes of a model, checked, and the presets with known sizes. No torch here.

Shape legend of the whole package; a letter in a `# (B, T, C)` comment or an unpacked `x.shape` means this alone:

    B batch          H query heads    V vocabulary               N = B·T tokens
    T positions      K kv heads       S cached positions         E experts
    C dim            D head_dim       R latent rank              A activated experts
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Position = Literal["learned", "sinusoidal", "rope"]
Norm = Literal["layer", "rms"]
FeedForward = Literal["gelu", "swiglu"]
Score = Literal["sigmoid", "softmax"]
GroupScore = Literal["top2", "max"]

_SIZES = ("vocab_size", "max_seq_len", "dim", "n_layers", "n_heads", "inter_dim", "rope_original_len")
_SIZES_OR_NONE = (
    "n_kv_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "n_routed_experts", "n_shared_experts", "n_activated_experts", "moe_inter_dim", "n_dense_layers",
    "n_expert_groups", "n_limited_groups", "n_mtp_layers",
)  # fmt: skip
# A mistyped number must fail here, not fill the memory; far above any model that was trained.
_MOST = {"vocab_size": 2**31 - 1, "max_seq_len": 2**31 - 1, "rope_original_len": 2**31 - 1} | dict.fromkeys(
    ("n_layers", "n_heads", "n_kv_heads", "n_routed_experts", "n_dense_layers", "n_mtp_layers"), 2**14
)
_MOST_WIDE = 2**20  # of every other size
_FLAGS = ("has_bias", "is_head_tied", "norm_topk_prob", "scales_residual_init")
_POSITIVE = ("norm_eps", "init_std", "rope_theta", "rope_beta_fast", "rope_beta_slow", "route_scale")
_NAMES = {
    "position": Position, "norm": Norm, "feed_forward": FeedForward, "score_func": Score, "group_score": GroupScore,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything that fixes a model; two equal configs give models that can exchange weights.

    The defaults are GPT-2's parts. `kv_lora_rank` above 0 makes the attention latent, `n_routed_experts` above 0 makes
    the feed-forward layers behind the first `n_dense_layers` mixtures of experts.
    Raises: ValueError when a field is out of range or two fields do not fit together.
    """

    vocab_size: int  # ids 0 .. vocab_size - 1
    max_seq_len: int  # trained context; a hard limit with learned positions
    dim: int  # width of the residual stream
    n_layers: int  # blocks
    n_heads: int  # query heads; without latent attention they must divide dim
    inter_dim: int  # width inside the dense feed-forward layers; GPT-2 takes 4·dim
    position: Position = "learned"  # a table, fixed waves that have no last position, or rotated queries and keys
    norm: Norm = "layer"  # "layer" (mean and variance, with bias) or "rms" (variance alone, no bias)
    feed_forward: FeedForward = "gelu"  # two matrices with GELU, or three with SwiGLU
    has_bias: bool = True  # of all linear layers but the head
    is_head_tied: bool = True  # the output head shares the token embedding's matrix
    dropout: float = 0.0  # probability, on the input, the attention weights and both branches; 0 for pre-training
    norm_eps: float = 1e-5  # added to the variance in every norm
    init_std: float = 0.02  # of every matrix at the start
    scales_residual_init: bool = True  # matrices that write to the residual stream start at init_std / √(2·n_layers)

    n_kv_heads: int = 0  # heads of keys and values, each shared by n_heads / n_kv_heads queries; 0: as many as n_heads

    kv_lora_rank: int = 0  # R: width of the latent from which keys and values come; 0: no latent attention
    q_lora_rank: int = 0  # width of the latent of the queries; 0: straight from the residual stream
    qk_nope_head_dim: int = 0  # width of queries and keys that carries no position
    qk_rope_head_dim: int = 0  # width of queries and keys that is rotated; one such key for all heads
    v_head_dim: int = 0  # width of the values

    rope_theta: float = 10_000.0  # base of the rotation's wavelengths
    rope_factor: float = 1.0  # YaRN: longest context / rope_original_len; 1: plain rotation
    rope_original_len: int = 4096  # YaRN: context before it was stretched
    rope_beta_fast: float = 32.0  # YaRN: dimensions of more rotations in rope_original_len are left as they are
    rope_beta_slow: float = 1.0  # YaRN: dimensions of fewer are slowed by rope_factor
    rope_mscale: float = 0.0  # YaRN: attention scores grow by (0.1·rope_mscale·ln(rope_factor) + 1)²

    n_routed_experts: int = 0  # E: of which each token takes some; 0: every layer is dense
    n_activated_experts: int = 0  # A: how many
    n_shared_experts: int = 0  # experts that every token takes, stored as one of their joint width
    moe_inter_dim: int = 0  # width inside an expert
    n_dense_layers: int = 0  # first layers without experts
    score_func: Score = "sigmoid"  # of the router; "sigmoid" has a bias that balances the load
    norm_topk_prob: bool = True  # the weights of the chosen experts sum to 1
    route_scale: float = 1.0  # what the weights are multiplied by
    n_expert_groups: int = 1  # groups of experts that stand together
    n_limited_groups: int = 1  # of which a token may choose
    group_score: GroupScore = "top2"  # a group counts as its two best experts together (V3), or as its best (V2)

    n_mtp_layers: int = 0  # blocks that predict a further token each, sharing embedding and head

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_attention()
        self._check_experts()

    def _check_fields(self) -> None:
        for name in (*_SIZES, *_SIZES_OR_NONE):
            value, least = getattr(self, name), int(name in _SIZES)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
            if value > (most := _MOST.get(name, _MOST_WIDE)):
                raise ValueError(f"{name} must be at most {most:,}, got {value:,}")
        for name, choices in _NAMES.items():
            if (got := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {got!r}")
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in (*_POSITIVE, "dropout", "rope_factor", "rope_mscale"):
            if type(value := getattr(self, name)) not in (int, float):
                raise ValueError(f"{name} must be a number, got {value!r}")
            try:  # 10000 becomes 10000.0: files that are written from this tell integers from other numbers
                object.__setattr__(self, name, float(value))
            except OverflowError:
                raise ValueError(f"{name} must be a number, got an integer of {value.bit_length()} bits") from None
        for name in _POSITIVE:
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        if not 1.0 <= self.rope_factor < math.inf:
            raise ValueError(f"rope_factor must be at least 1, got {self.rope_factor!r}")
        if self.rope_factor > 1.0 and self.rope_theta <= 1.0:
            raise ValueError(f"rope_theta must be above 1 where rope_factor is, got {self.rope_theta!r}")
        if not 0.0 <= self.rope_mscale < math.inf:
            raise ValueError(f"rope_mscale must be 0 or more, got {self.rope_mscale!r}")
        if self.rope_beta_slow > self.rope_beta_fast:
            raise ValueError(
                f"rope_beta_slow ({self.rope_beta_slow}) must not exceed rope_beta_fast ({self.rope_beta_fast})"
            )

    def _check_attention(self) -> None:
        if self.position == "sinusoidal" and self.dim % 2:
            raise ValueError(f"dim must be even for sinusoidal positions, got {self.dim}; hint: use dim={self.dim + 1}")
        if self.is_latent:
            self._check_latent()
            return
        for name in ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name):
                raise ValueError(f"{name} needs latent attention, got kv_lora_rank=0; hint: set kv_lora_rank")
        if self.dim % self.n_heads:
            raise ValueError(
                f"n_heads ({self.n_heads}) must divide dim ({self.dim}); "
                f"hint: use n_heads={_nearest_divisor(self.dim, self.n_heads)} "
                f"or dim={self.n_heads * math.ceil(self.dim / self.n_heads)}"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads ({self.n_kv_heads}) must divide n_heads ({self.n_heads}); "
                f"hint: use n_kv_heads={_nearest_divisor(self.n_heads, self.n_kv_heads)}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"dim / n_heads must be even to be rotated, got {self.head_dim}")

    def _check_latent(self) -> None:
        if self.position != "rope":
            raise ValueError(
                f"latent attention rotates its positions, got position={self.position!r}; hint: use 'rope'"
            )
        if self.n_kv_heads not in (0, self.n_heads):
            raise ValueError(f"latent attention has a key for each head, got n_kv_heads={self.n_kv_heads}; hint: use 0")
        for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"latent attention needs {name}, got {getattr(self, name)}")
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even to be rotated, got {self.qk_rope_head_dim}")

    def _check_experts(self) -> None:
        E, A, G = self.n_routed_experts, self.n_activated_experts, self.n_expert_groups
        if E == 0:
            for name in ("n_activated_experts", "n_shared_experts", "moe_inter_dim", "n_dense_layers"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs experts, got n_routed_experts=0; hint: set n_routed_experts")
            return
        if self.feed_forward != "swiglu":
            raise ValueError(f"experts are SwiGLU, got feed_forward={self.feed_forward!r}; hint: use 'swiglu'")
        if self.has_bias:
            raise ValueError("experts have no bias, got has_bias=True; hint: use has_bias=False")
        if not 1 <= A <= E:
            raise ValueError(f"n_activated_experts must be from 1 to n_routed_experts ({E}), got {A}")
        if self.moe_inter_dim < 1:
            raise ValueError(f"moe_inter_dim must be at least 1 with experts, got {self.moe_inter_dim}")
        if self.n_dense_layers > self.n_layers:
            raise ValueError(f"n_dense_layers ({self.n_dense_layers}) must not exceed n_layers ({self.n_layers})")
        if G < 1 or E % G:
            raise ValueError(f"n_expert_groups ({G}) must divide n_routed_experts ({E})")
        if not 1 <= self.n_limited_groups <= G:
            raise ValueError(f"n_limited_groups must be from 1 to n_expert_groups ({G}), got {self.n_limited_groups}")
        if self.n_limited_groups * (E // G) < A:
            raise ValueError(
                f"n_limited_groups ({self.n_limited_groups}) of {E // G} experts hold fewer than "
                f"n_activated_experts ({A}); hint: use n_limited_groups={math.ceil(A * G / E)}"
            )
        if G > 1 and self.group_score == "top2" and E // G < 2:
            raise ValueError(f"group_score 'top2' needs groups of 2 experts or more, got {E // G}; hint: use 'max'")

    @property
    def is_latent(self) -> bool:
        """Whether keys and values come from a latent that is cached in their place."""
        return self.kv_lora_rank > 0

    @property
    def head_dim(self) -> int:
        """D: width of a query and a key; of latent attention, both of their parts."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_latent else self.dim // self.n_heads

    @property
    def value_dim(self) -> int:
        """Width of a head's values."""
        return self.v_head_dim if self.is_latent else self.head_dim

    @property
    def kv_heads(self) -> int:
        """K: heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def rope_dim(self) -> int:
        """Width of a head that is rotated."""
        return self.qk_rope_head_dim if self.is_latent else self.head_dim

    @property
    def position_limit(self) -> int | None:
        """The number of positions the model can tell apart, or None when there is no last one."""
        return self.max_seq_len if self.position == "learned" else None

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward part of a layer is a mixture of experts; layers of further tokens come last."""
        return self.n_routed_experts > 0 and layer >= self.n_dense_layers

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ModelConfig":
        """The config of that name (`gpt2-small` or `gpt2_small`), with some fields replaced.

        When `dim` is replaced and `inter_dim` is not, `inter_dim` keeps its ratio to `dim`.
        Raises: ValueError for an unknown name or field, naming the nearest one.
        """
        config = PRESETS.get(name.replace("_", "-"))
        if config is None:
            raise ValueError(f"expected a preset ({', '.join(PRESETS)}), got {name!r}{_nearest(name, PRESETS)}")
        fields = [field.name for field in dataclasses.fields(cls)]
        for field in overrides:
            if field not in fields:
                raise ValueError(f"expected a field of the model config, got {field!r}{_nearest(field, fields)}")
        if type(overrides.get("dim")) is int and "inter_dim" not in overrides:
            overrides["inter_dim"] = overrides["dim"] * config.inter_dim // config.dim
        return dataclasses.replace(config, **overrides)


def _nearest_divisor(n: int, near: int) -> int:
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - near))


def _nearest(name: str, names: Any) -> str:
    matches = difflib.get_close_matches(name, names, n=1)
    return f"; hint: did you mean {matches[0]!r}" if matches else ""


def _gpt(dim: int, n_layers: int, n_heads: int, max_seq_len: int = 1024) -> ModelConfig:
    return ModelConfig(
        vocab_size=50_257, max_seq_len=max_seq_len, dim=dim, n_layers=n_layers, n_heads=n_heads, inter_dim=4 * dim
    )


def _modern(**sizes: Any) -> ModelConfig:
    """Rotated positions, RMSNorm, SwiGLU, no bias, a head of its own."""
    return ModelConfig(position="rope", norm="rms", feed_forward="swiglu", has_bias=False, is_head_tied=False, **sizes)


def _deepseek(**sizes: Any) -> ModelConfig:
    return _modern(norm_eps=1e-6, scales_residual_init=False, **sizes)


_V2: dict[str, Any] = {
    "vocab_size": 102_400, "max_seq_len": 163_840, "n_dense_layers": 1, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_shared_experts": 2, "n_activated_experts": 6, "score_func": "softmax", "norm_topk_prob": False,
    "group_score": "max", "rope_factor": 40.0, "rope_mscale": 0.707, "init_std": 0.006,
}  # fmt: skip
_V3: dict[str, Any] = {
    "dim": 7168, "n_layers": 61, "inter_dim": 18_432, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_shared_experts": 1, "n_activated_experts": 8, "moe_inter_dim": 2048, "rope_mscale": 1.0, "init_std": 0.006,
}  # fmt: skip

# Sources: GPT-2's report, table 2; arXiv 2005.14165, table 2.1; arXiv 2405.04434 and its released configurations;
# arXiv 2412.19437, section 4.2; Kimi-K2's released configuration. llama-small and deepseek-tiny/-small are our own.
PRESETS: dict[str, ModelConfig] = {
    "gpt2-small": _gpt(768, 12, 12),
    "gpt2-medium": _gpt(1024, 24, 16),
    "gpt2-large": _gpt(1280, 36, 20),
    "gpt2-xl": _gpt(1600, 48, 25),
    "gpt3-175b": _gpt(12_288, 96, 96, 2048),
    "llama-small": _modern(
        vocab_size=32_000, max_seq_len=2048, dim=768, n_layers=12, n_heads=12, n_kv_heads=4, inter_dim=2048
    ),
    "deepseek-tiny": _deepseek(
        vocab_size=4096, max_seq_len=512, dim=192, n_layers=6, n_heads=6, inter_dim=512,
        kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        n_dense_layers=1, n_routed_experts=8, n_shared_experts=1, n_activated_experts=2, moe_inter_dim=128,
        n_mtp_layers=1,
    ),
    "deepseek-small": _deepseek(
        vocab_size=32_768, max_seq_len=2048, dim=768, n_layers=12, n_heads=12, inter_dim=2048,
        kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
        n_dense_layers=1, n_routed_experts=32, n_shared_experts=1, n_activated_experts=4, moe_inter_dim=384,
        n_mtp_layers=1,
    ),
    "deepseek-v2-lite": _deepseek(
        dim=2048, n_layers=27, n_heads=16, inter_dim=10_944, n_routed_experts=64, moe_inter_dim=1408, **_V2,
    ),
    "deepseek-v2": _deepseek(
        dim=5120, n_layers=60, n_heads=128, q_lora_rank=1536, inter_dim=12_288, n_routed_experts=160,
        moe_inter_dim=1536, n_expert_groups=8, n_limited_groups=3, route_scale=16.0, **_V2,
    ),
    "deepseek-v3": _deepseek(
        vocab_size=129_280, max_seq_len=163_840, n_heads=128, n_dense_layers=3, n_routed_experts=256,
        n_expert_groups=8, n_limited_groups=4, route_scale=2.5, rope_factor=40.0, n_mtp_layers=1, **_V3,
    ),
    "kimi-k2": _deepseek(
        vocab_size=163_840, max_seq_len=131_072, n_heads=64, n_dense_layers=1, n_routed_experts=384,
        route_scale=2.827, rope_theta=50_000.0, rope_factor=32.0, rope_beta_fast=1.0, **_V3,
    ),
}  # fmt: skip
