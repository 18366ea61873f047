"""A decoder-only transformer, from GPT-2's kind to DeepSeek-V3's.

    tokens (B, T) ─▶ Embedding ─▶ n_layers × Block ─▶ norm ─▶ head ─▶ logits (B, T, V)
                                                       │
                        next tokens' vectors ─▶ FurtherToken ─▶ norm ─▶ head ─▶ logits of one token more

Unusual here: a tied head has no tensor of its own, so nothing is counted or saved twice; the weights depend on the
seed alone, not on the device or on torch's global generator; there are no buffers, so a model built on the meta device
becomes a real one by `to_empty(device=...)` and `init_weights(seed)`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from gptrs.model.attend import DocumentAttention, Mask, sight
from gptrs.model.block import Block, FurtherToken, holding, run_block, run_within
from gptrs.model.cache import KVCache, LatentCache
from gptrs.model.config import ModelConfig
from gptrs.model.embedding import Embedding
from gptrs.model.loss import IGNORED, further_targets, linear_cross_entropy_z
from gptrs.model.matmul import Linear, linear
from gptrs.model.moe import Experts, MoE, Router, Use
from gptrs.model.norm import norm
from gptrs.model.ranks import Span, enter, gather, part
from gptrs.model.rope import rotations


class _Undrawn(TorchFunctionMode):
    """Layers leave their matrices as memory is: drawing costs seconds and numbers of torch's global generator, and, on
    the meta device, the import of the compiler."""

    DRAWING = nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The tensor itself where one is drawn, else what the function gives."""
        kwargs = kwargs or {}
        return (args[0] if args else kwargs["tensor"]) if function in self.DRAWING else function(*args, **kwargs)


class Transformer(nn.Module):
    """The model: `model(tokens)` gives logits, `model.loss(tokens, targets)` the training loss.

    Built on torch's default device (`with torch.device("meta")`: shapes only, no memory).

    Attributes: embed; layers; norm; head (None when tied to the token embedding); further: n_mtp_layers FurtherTokens;
        checkpoints_blocks: n: of every n-th block training keeps the input alone, and the backward pass computes the
            rest again (activation checkpointing); 1: of all, 0: of none;
        span: the tokens whose vectors and logits this rank has, where ranks share the vocabulary; else None;
        vocab_multiple: what the loss fills the head's rows up to, see `linear_cross_entropy`;
        document_attention: what computes attention inside documents: "flex", "sdpa", or "auto", which is flex on CUDA
            where it can (see `sight`) and SDPA elsewhere.
    Example: `Transformer(ModelConfig.preset("gpt2-small"))(tokens).shape == (B, T, 50257)`.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.checkpoints_blocks: int = 0
        self.vocab_multiple: int | None = None
        self.span: Span | None = None
        self._run_block: Callable[..., tuple[Tensor, Use | None]] = run_block
        self.document_attention: DocumentAttention = "auto"
        with _Undrawn():
            self.embed = Embedding(config)
            self.layers = nn.ModuleList(
                Block(config, layer, has_experts=config.has_experts(layer)) for layer in range(config.n_layers)
            )
            self.norm = norm(config, config.dim)
            self.head = None if config.is_head_tied else Linear(config.dim, config.vocab_size, bias=False)
            self.further = nn.ModuleList(FurtherToken(config, depth) for depth in range(config.n_mtp_layers))
        self.init_weights(seed)

    def compile_blocks(self, *, activation_budget: float | None = None, **options: Any) -> None:
        """Compiles training's pass through a block: once for all blocks of a kind, since the block is an argument like
        its input. Evaluation and generation stay as they are.

        Args: activation_budget: the share of what a block would keep for its backward pass, see `block.keeping`.
            options: of torch.compile.
        """
        compiled = torch.compile(run_block, dynamic=False, **options)
        self._run_block = functools.partial(run_within, compiled, activation_budget)

    @torch.no_grad()
    def init_weights(self, seed: int, *, put: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
        """Sets every weight, one after the other: matrices N(0, init_std), with `scales_residual_init` those that write
        to the residual stream N(0, init_std/√(2·n_layers)), biases 0, norms 1. Drawn on the CPU: a seed gives one model
        everywhere.

        Args: put: (weight, drawn values of the whole of it), which fills a weight; ranks that share it take their part.
        Source: GPT-2's report, section 2.3; the residual scale keeps the variance level over 2·n_layers additions.
            arXiv 2412.19437, section 4.2: 0.006 for all.
        """
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must be an integer of 64 bits, got {seed!r}")
        if self.embed.token.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        std = self.config.init_std
        residual_std = std / math.sqrt(2 * self.config.n_layers) if self.config.scales_residual_init else std

        def draw(weight: Tensor, std: float) -> None:
            drawn = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
            put(weight, drawn.normal_(0.0, std, generator=generator))

        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Embedding):
                writes = name.endswith(("attn.output", "ffn.down", "ffn.shared.down"))
                draw(module.weight, residual_std if writes else std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, Router):
                draw(module.weight, std)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, Experts):
                draw(module.up, std)
                draw(module.down, residual_std)

    @staticmethod
    def first_vectors(config: ModelConfig, seed: int) -> Tensor:
        """The token vectors (V, C) that a model of this seed begins with, without the model: they are drawn first."""
        vectors = torch.empty(config.vocab_size, config.dim, device="cpu")
        return vectors.normal_(0.0, config.init_std, generator=torch.Generator().manual_seed(seed))

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: KVCache | LatentCache | None = None,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """The logits of the token after each position, (B, T, V).

        Args: as `hidden`.
        """
        return self.logits(self.hidden(tokens, cache=cache, positions=positions, doc_ids=doc_ids))

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        ends: Tensor | None = None,
        totals: Tensor | None = None,
        mtp_weight: float = 0.3,
        balance_weight: float = 1e-4,
    ) -> Tensor:
        """The training loss: mean next-token cross-entropy, further tokens' and the experts' balance added.

        Args:
            tokens, positions, doc_ids: as `hidden`.
            targets: (B, T), the id that follows each position; -100 where a position does not count.
            ends, totals: as `losses`.
            mtp_weight: λ of the further tokens' mean cross-entropy. balance_weight: α of the sum over layers of the
                experts' `balance`.
        Returns: a scalar.
        Source: arXiv 2412.19437, equations 17, 24 and 25, and section 4.2 for the weights.
        """
        losses = self.losses(tokens, targets, positions=positions, doc_ids=doc_ids, ends=ends, totals=totals)
        loss = losses["next"]
        if "further" in losses:
            loss = loss + mtp_weight * losses["further"]
        if "balance" in losses:
            loss = loss + balance_weight * losses["balance"]
        return loss

    def next_loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        total: Tensor | None = None,
    ) -> Tensor:
        """The mean next-token cross-entropy alone, by which models compare; arguments as in `loss`, total as in
        `linear_cross_entropy`."""
        return self._head_loss(self.hidden(tokens, positions=positions, doc_ids=doc_ids), targets, total)

    def losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        ends: Tensor | None = None,
        totals: Tensor | None = None,
        z_weight: float = 0.0,
    ) -> dict[str, Tensor]:
        """The parts of `loss` before they are weighted, scalars: "next", and where the model has them, "further" (the
        mean over the further tokens) and "balance" (the sum over the layers with experts).

        Args:
            ends: (B, T), whether a token is its document's last. A further token counts where it and all tokens on the
                way to it are of one document; "next" counts where its target does. By default where doc_ids change;
                whether a row's last token is an end, doc_ids do not tell, and its target decides alone.
            totals: (2 + n_mtp_layers,), `counts` of the larger batch that this one is a part of: the parts are then its
                shares of that batch's, and add up to them. By default this batch's own.
            z_weight: of the mean log²Z of the next token's logits, not further tokens'; then "next" has it in it, and
                "z" is that mean, to look at.
        """
        hidden, uses = self._run(tokens, cache=None, positions=positions, doc_ids=doc_ids)
        own = None if totals is None else totals[0]
        loss, z = self._head_loss_z(hidden, targets, own, z_weight)
        losses = {"next": loss} if z is None else {"next": loss, "z": z}
        if ends is None and doc_ids is not None:
            ends = F.pad(doc_ids.diff(dim=-1) != 0, (0, 1))  # (B, T)
        if self.further and tokens.shape[1] > 1:
            further = []
            for depth, (states, use) in enumerate(self.further_states(hidden, tokens, positions, doc_ids), start=1):
                expected = further_targets(targets, depth, ends)  # (B, T - depth)
                loss = self._head_loss(states, expected, None if totals is None else totals[depth])
                further.append(torch.where((expected != IGNORED).any(), loss, 0.0))  # rows of nothing but short ones
                uses += [] if use is None else [use]
            losses["further"] = torch.stack(further).mean()
        if uses:
            balance = torch.stack([use.balance for use in uses]).sum()
            losses["balance"] = balance if totals is None else balance * len(tokens) / totals[-1]
        return losses

    def _head_loss(self, hidden: Tensor, targets: Tensor, total: Tensor | None) -> Tensor:
        return self._head_loss_z(hidden, targets, total, 0.0)[0]

    def _head_loss_z(
        self, hidden: Tensor, targets: Tensor, total: Tensor | None, z_weight: float
    ) -> tuple[Tensor, Tensor | None]:
        given: dict[str, Any] = {"multiple": self.vocab_multiple, "span": self.span}
        return linear_cross_entropy_z(hidden, self.head_weight, targets, total, z_weight=z_weight, **given)

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: KVCache | LatentCache | None = None,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """The normalised states before the head, (B, T, C); generation needs the logits of the last one only.

        Args:
            tokens: (B, T) ids.
            cache: what came before; the tokens follow each sequence's last known position and are added to it.
            positions: (T,) or (B, T), below max_seq_len when learned; by default 0 .. T - 1, or what the cache says.
            doc_ids: (B, T), equal where two positions may look at each other; by default all of a row may.

        Raises: ValueError when the tokens run past the learned positions or the cache.
        """
        return self._run(tokens, cache=cache, positions=positions, doc_ids=doc_ids)[0]

    def _run(
        self,
        tokens: Tensor,
        *,
        cache: KVCache | LatentCache | None,
        positions: Tensor | None,
        doc_ids: Tensor | None,
    ) -> tuple[Tensor, list[Use]]:
        """`hidden`, and how experts were used in the layers that have some."""
        _, T = tokens.shape
        if cache is None:
            self._check_limit(T)
            positions = torch.arange(T, device=tokens.device) if positions is None else positions  # (T,) or (B, T)
            return self._through_layers(tokens, positions, doc_ids=doc_ids)
        if positions is not None or doc_ids is not None:
            raise ValueError("expected positions or a cache, got both; hint: the cache knows its positions")
        cache.check(T)
        states = self.step(tokens, cache)
        cache.advance(T)
        return states, []

    def step(self, tokens: Tensor, cache: KVCache | LatentCache) -> Tensor:
        """What `hidden` does with a cache, between its check and its advance, which are the caller's here.

        This is the part to compile: with `cache.fix_shapes()` its shapes and numbers are those of (B, T) alone.
        """
        T = tokens.shape[1]
        return self._through_layers(tokens, cache.positions(T), cache=cache)[0]

    def further_step(self, depth: int, hidden: Tensor, tokens: Tensor, cache: KVCache | LatentCache) -> Tensor:
        """One further-token module over the T positions behind those its cache knows: states for the head, (B, T, C).

        Args: depth: which module, counted from 0; hidden: the states that it reads, (B, T, C); tokens: (B, T), those
            depth + 1 behind each position; cache: one layer for each module; checked and advanced by the caller.
        """
        T = hidden.shape[1]
        turns = self._turns(cache.positions(T), hidden.dtype)
        module = self.further[depth]
        states: Tensor = module(hidden, self.embed.token(tokens), mask=cache.mask(T), cache=cache, turns=turns)[0]
        return states

    def _through_layers(
        self,
        tokens: Tensor,
        positions: Tensor,
        *,
        doc_ids: Tensor | None = None,
        cache: KVCache | LatentCache | None = None,
    ) -> tuple[Tensor, list[Use]]:
        x = self.embed(tokens, positions)  # (B, T, C)
        turns = self._turns(positions, x.dtype)
        mask = self._sight(doc_ids, x) if cache is None else cache.mask(tokens.shape[1])
        uses = []
        for layer, block in enumerate(self.layers):
            if cache is None:
                x, use = self._through(layer, block, x, mask=mask, turns=turns)  # (B, T, C)
            else:
                x, use = block(x, mask=mask, cache=cache, turns=turns)  # (B, T, C)
            uses += [] if use is None else [use]
        return self.norm(x), uses

    def further_states(
        self, hidden: Tensor, tokens: Tensor, positions: Tensor | None, doc_ids: Tensor | None
    ) -> Iterator[tuple[Tensor, Use | None]]:
        """For each depth d, counted from 1, the states (B, T - d, C) whose logits are those of the token d + 1 behind
        each position, and how its block's experts were used; only depths below T.

        Args: hidden: what `hidden` gave for the tokens; the others as there.
        """
        T = tokens.shape[1]
        if positions is None:
            positions = torch.arange(T, device=tokens.device)  # (T,)
        for depth, module in enumerate(self.further[: T - 1], start=1):
            n = T - depth
            turns = self._turns(positions[..., :n], hidden.dtype)
            mask = self._sight(None if doc_ids is None else doc_ids[:, :n], hidden)
            embedded = self.embed.token(tokens[:, depth:])  # (B, T - depth, C)
            assert isinstance(module, FurtherToken)
            run = self._run_block if self._is_teaching() else run_block
            hidden, use = run(module, hidden[:, :n], embedded, mask=mask, turns=turns)
            self._count(module.block, use)
            yield hidden, use

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: (..., C) → (..., V)."""
        if self.span is None:
            return linear(hidden, self.head_weight)
        return gather(linear(enter(hidden, self.span.group), part(self.head_weight)), self.span)

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the head, (V, C); that of the token embedding when tied."""
        return self.embed.token.weight if self.head is None else self.head.weight

    def experts(self) -> Iterator[tuple[str, MoE]]:
        """The mixtures of experts and their names, first layer first, those of further tokens last."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, MoE))

    def _through(self, layer: int, block: nn.Module, x: Tensor, **given: Any) -> tuple[Tensor, Use | None]:
        if not self._is_teaching():
            y, use = block(x, **given)
        elif self.checkpoints_blocks and layer % self.checkpoints_blocks == 0:
            y, use = checkpoint(holding(self._run_block, block), x, use_reentrant=False, **given)
        else:
            y, use = self._run_block(block, x, **given)
        self._count(block, use)
        return y, use

    def _is_teaching(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _count(self, block: nn.Module, use: Use | None) -> None:
        """Adds the loads of a block's experts to what they had since they were last taken, in training."""
        if use is not None and self.training:
            block.ffn.count(use.loads)  # type: ignore[operator, union-attr]

    def _sight(self, doc_ids: Tensor | None, x: Tensor) -> Mask:
        """The mask of all layers; None where a row is one document."""
        if doc_ids is None:
            return None
        return sight(doc_ids, x, self.config, by=self.document_attention, is_training=self.training)

    def _turns(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The rotations of these positions in float32 or wider; None where positions are added instead."""
        if self.config.position != "rope":
            return None
        return rotations(self.config, positions).to(torch.promote_types(dtype, torch.float32))

    def _check_limit(self, T: int) -> None:
        limit = self.config.position_limit
        if limit is not None and limit < T:
            raise ValueError(
                f"expected at most max_seq_len ({limit}) tokens with learned positions, got {T}; "
                f"hint: shorten the input or train with max_seq_len={T} or position='sinusoidal'"
            )
