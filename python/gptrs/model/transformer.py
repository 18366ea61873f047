"""A decoder-only transformer of the GPT-2 kind.

    tokens (B, T) ─▶ Embedding ─▶ n_layers × Block ─▶ LayerNorm ─▶ head ─▶ logits (B, T, V)

    Block:  x ─▶ x + dropout(Attention(LayerNorm(x))) ─▶ x + dropout(FeedForward(LayerNorm(x)))

Unusual here: a tied head has no tensor of its own, so nothing is counted or saved twice; the weights depend on the
seed alone, not on the device or on torch's global generator; there are no buffers, so a model built on the meta device
becomes a real one by `to_empty(device=...)` and `init_weights(seed)`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.attention import Attention
from gptrs.model.cache import KVCache
from gptrs.model.config import ModelConfig
from gptrs.model.embedding import Embedding

INIT_STD = 0.02  # of every matrix, as GPT-2


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in nats over all positions whose target is not -100, in float32 or wider.

    Args: logits: (B, T, V); targets: (B, T), the id that follows each position. Returns: a scalar.
    """
    B, T, V = logits.shape
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.view(B * T, V), targets.reshape(B * T), ignore_index=-100)


class FeedForward(nn.Module):
    """Two linear layers with GELU between, C → inter_dim → C; GELU in its tanh form, as GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.inter_dim)
        self.down = nn.Linear(config.inter_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))  # (B, T, C)
        return y


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy and adds to the residual stream (pre-LN)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config, layer)
        self.ffn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.dropout(self.attn(self.attn_norm(x), mask=mask, cache=cache))  # (B, T, C)
        y: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))  # (B, T, C)
        return y


class Transformer(nn.Module):
    """The model: `model(tokens)` gives logits, `model.loss(tokens, targets)` the training loss.

    Built on torch's default device (`with torch.device("meta")`: shapes only, no memory).

    Attributes: embed, layers, norm, head (None when tied to the token embedding).
    Example: `Transformer(ModelConfig.preset("gpt2-small"))(tokens).shape == (B, T, 50257)`.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Shapes first: torch's own initialisation would cost seconds and draw from the global generator.
        with torch.device("meta"):
            self.embed = Embedding(config)
            self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
            self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
            self.head = None if config.is_head_tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.to_empty(device=device)
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Sets every weight: matrices N(0, 0.02), those that write to the residual stream N(0, 0.02/√(2·n_layers)),
        biases 0, norms 1. Drawn on the CPU, so that a seed gives the same model on every device.

        Source: GPT-2's report, section 2.3; the residual scale keeps the variance level over 2·n_layers additions.
        """
        if self.embed.token.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith(("attn.output", "ffn.down")) else INIT_STD
                weight = module.weight
                drawn = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                weight.copy_(drawn.normal_(0.0, std, generator=generator))
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()

    def forward(self, tokens: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """The logits of the token after each position, (B, T, V).

        Args: as `hidden`.
        """
        return self.logits(self.hidden(tokens, cache=cache, positions=positions))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean next-token cross-entropy; targets (B, T) with -100 where a position does not count."""
        return next_token_loss(self(tokens), targets)

    def hidden(self, tokens: Tensor, *, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """The normalised states before the head, (B, T, C); generation needs the logits of the last one only.

        Args:
            tokens: (B, T) ids.
            cache: what came before; the tokens follow each sequence's last known position and are added to it.
            positions: (T,) or (B, T), below max_seq_len when learned; by default 0 .. T - 1, or what the cache says.

        Raises: ValueError when the tokens run past the learned positions or the cache.
        """
        _, T = tokens.shape
        if cache is None:
            mask = None
            self._check_limit(T)
            positions = torch.arange(T, device=tokens.device) if positions is None else positions  # (T,) or (B, T)
        else:
            if positions is not None:
                raise ValueError("expected positions or a cache, got both; hint: the cache knows its positions")
            cache.check(T)
            mask = cache.mask(T)
            positions = cache.positions(T)  # (T,) or (B, T)
        x = self.embed(tokens, positions)  # (B, T, C)
        for block in self.layers:
            x = block(x, mask=mask, cache=cache)  # (B, T, C)
        if cache is not None:
            cache.advance(T)
        y: Tensor = self.norm(x)  # (B, T, C)
        return y

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: (..., C) → (..., V)."""
        weight = self.embed.token.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight)

    def _check_limit(self, T: int) -> None:
        limit = self.config.position_limit
        if limit is not None and limit < T:
            raise ValueError(
                f"expected at most max_seq_len ({limit}) tokens with learned positions, got {T}; "
                f"hint: shorten the input or train with max_seq_len={T} or position='sinusoidal'"
            )
