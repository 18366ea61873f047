"""What a transformer repeats: a block, and the module that predicts one token further with a block of its own.

Block:  x ─▶ x + dropout(attention(norm(x))) ─▶ x + dropout(feed-forward(norm(x)))
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.func import functional_call

from gptrs.model.attend import Mask
from gptrs.model.attention import Attention
from gptrs.model.cache import KVCache, LatentCache
from gptrs.model.config import ModelConfig
from gptrs.model.feed_forward import feed_forward
from gptrs.model.matmul import Linear
from gptrs.model.mla import LatentAttention
from gptrs.model.moe import MoE, Use
from gptrs.model.norm import norm


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy and adds to the residual stream (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int, *, has_experts: bool) -> None:
        super().__init__()
        self.attn_norm = norm(config, config.dim)
        self.attn = LatentAttention(config, layer) if config.is_latent else Attention(config, layer)
        self.ffn_norm = norm(config, config.dim)
        self.ffn = MoE(config) if has_experts else feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = None,
        cache: KVCache | LatentCache | None = None,
        turns: Tensor | None = None,
    ) -> tuple[Tensor, Use | None]:
        """The stream behind this block, (B, T, C), and how its experts were used, when it has some and no cache is
        given: generation has no loss that would ask for it."""
        x = x + self.dropout(self.attn(self.attn_norm(x), mask=mask, cache=cache, turns=turns))  # (B, T, C)
        use = None
        if isinstance(self.ffn, MoE):
            y, use = self.ffn(self.ffn_norm(x), counts_use=cache is None)
        else:
            y = self.ffn(self.ffn_norm(x))
        return x + self.dropout(y), use


class FurtherToken(nn.Module):
    """Predicts the token behind the next: from a position's state and the vector of its next token, one block more.

    Attributes: embed_norm, hidden_norm; joined: (vector | state) 2·C → C; block; norm, before the shared head.
    Source: arXiv 2412.19437, equations 21 to 23; (vector | state) is the order of the released weights.
    """

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.embed_norm = norm(config, config.dim)
        self.hidden_norm = norm(config, config.dim)
        self.joined = Linear(2 * config.dim, config.dim, bias=False)
        self.block = Block(config, depth, has_experts=config.n_routed_experts > 0)
        self.norm = norm(config, config.dim)

    def forward(
        self,
        hidden: Tensor,
        embedded: Tensor,
        *,
        mask: Mask = None,
        cache: KVCache | LatentCache | None = None,
        turns: Tensor | None = None,
    ) -> tuple[Tensor, Use | None]:
        """Args: hidden: normalised states; embedded: vectors of the tokens behind them; (B, T, C) each.

        Returns: normalised states for the head, (B, T, C), and how the block's experts were used.
        """
        x = self.joined(torch.cat((self.embed_norm(embedded), self.hidden_norm(hidden)), dim=-1))  # (B, T, C)
        x, use = self.block(x, mask=mask, cache=cache, turns=turns)
        return self.norm(x), use


def run_block(block: nn.Module, *states: Tensor, **given: Any) -> tuple[Tensor, Use | None]:
    """A block's or a further-token module's output, with the module as an argument: compiled, it serves all alike."""
    found: tuple[Tensor, Use | None] = block(*states, **given)
    return found


def run_within(
    compiled: Callable[..., tuple[Tensor, Use | None]],
    budget: float | None,
    block: nn.Module,
    *states: Tensor,
    **given: Any,
) -> tuple[Tensor, Use | None]:
    """`run_block` as it was compiled, with a share of what it keeps: see `keeping`."""
    with keeping(budget, states[0].device):
        return compiled(block, *states, **given)


def keeping(budget: float | None, device: torch.device) -> AbstractContextManager[None]:
    """Has what is compiled meanwhile keep so much, at most, of what it would keep for its backward pass; what costs
    least is computed again.

    Args: budget: a share, from 0 to 1. None: 0.9 on the CPU, where a norm is computed again sooner than read; elsewhere
        as torch is set.
    Source: torch's `activation_memory_budget`, a knapsack over what the products and norms of a graph need.
    """
    if budget is None and device.type != "cpu":
        return nullcontext()
    share = 0.9 if budget is None else budget
    context: AbstractContextManager[None] = torch._functorch.config.patch(activation_memory_budget=share)
    return context


def holding(run: Callable[..., Any], block: nn.Module) -> Callable[..., Any]:
    """`run(block, …)` with the weights that the block has now.

    Under `functional_call` a block has rounded weights until the loss is there. What computes it again in the backward
    pass must have them too.
    """
    weights: dict[str, Tensor] = {f"block.{name}": weight for name, weight in block.named_parameters()}
    if torch.compiler.is_compiling() or all(isinstance(weight, nn.Parameter) for weight in weights.values()):
        return functools.partial(run, block)
    held = _Held(run, block)
    return lambda *states, **given: functional_call(held, weights, states, given)


class _Held(nn.Module):
    """A block and what runs it, as a module, so that functional_call can exchange the weights."""

    def __init__(self, run: Callable[..., Any], block: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.block = block

    def forward(self, *states: Tensor, **given: Any) -> Any:
        return self.run(self.block, *states, **given)
