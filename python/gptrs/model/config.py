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

Position = Literal["learned", "sinusoidal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything that fixes a model's tensors; two equal configs give models that can exchange weights.

    Raises: ValueError when a field is out of range or two fields do not fit together.
    """

    vocab_size: int  # ids 0 .. vocab_size - 1
    max_seq_len: int  # trained context; a hard limit with learned positions
    dim: int  # width of the residual stream
    n_layers: int  # blocks
    n_heads: int  # must divide dim
    inter_dim: int  # width inside the feed-forward layer; GPT-2 takes 4·dim
    position: Position = "learned"  # "learned" table, or fixed "sinusoidal" waves that have no last position
    dropout: float = 0.0  # probability, on the input, the attention weights and both branches; 0 for pre-training
    is_head_tied: bool = True  # the output head shares the token embedding's matrix
    norm_eps: float = 1e-5  # added to the variance in LayerNorm

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_seq_len", "dim", "n_layers", "n_heads", "inter_dim"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.dim % self.n_heads:
            raise ValueError(
                f"n_heads ({self.n_heads}) must divide dim ({self.dim}); "
                f"hint: use n_heads={_nearest_divisor(self.dim, self.n_heads)} "
                f"or dim={self.n_heads * math.ceil(self.dim / self.n_heads)}"
            )
        if self.position not in get_args(Position):
            raise ValueError(f"position must be one of {', '.join(get_args(Position))}, got {self.position!r}")
        if self.position == "sinusoidal" and self.dim % 2:
            raise ValueError(f"dim must be even for sinusoidal positions, got {self.dim}; hint: use dim={self.dim + 1}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        if type(self.is_head_tied) is not bool:
            raise ValueError(f"is_head_tied must be true or false, got {self.is_head_tied!r}")
        if not 0.0 < self.norm_eps < math.inf:
            raise ValueError(f"norm_eps must be a positive number, got {self.norm_eps!r}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def position_limit(self) -> int | None:
        """The number of positions the model can tell apart, or None when there is no last one."""
        return self.max_seq_len if self.position == "learned" else None

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


def _gpt2(dim: int, n_layers: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50_257, max_seq_len=1024, dim=dim, n_layers=n_layers, n_heads=n_heads, inter_dim=4 * dim
    )


PRESETS: dict[str, ModelConfig] = {
    "gpt2-small": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
}
