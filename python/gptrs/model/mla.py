"""Multi-head latent attention: keys and values of all heads come from one narrow latent, which is all that is cached.

    x ─kv_down─▶ (latent | rotated key)          the latent is normalised, the key turned by its position
                    │ kv_up                      naive: keys and values of each head, as plain attention has them
                    ▼
    q ─────────▶ attention ─output─▶ y

A key is W_UK·latent, so q·(W_UK·latent) = (W_UKᵀ·q)·latent: absorbed, the queries move into the latent's space, every
head reads the same cached latent, and neither keys nor values are ever made. For many new positions the naive form
costs less, for few the absorbed one; both give the same numbers.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptrs.model.attend import Mask, attend
from gptrs.model.attend_by_tiles import attend_latents_by_tiles, goes_by_tiles
from gptrs.model.attention import causal_weights
from gptrs.model.cache import LatentCache
from gptrs.model.config import ModelConfig
from gptrs.model.matmul import Linear
from gptrs.model.norm import norm
from gptrs.model.ranks import enter
from gptrs.model.rope import rotate, softmax_scale


class LatentAttention(nn.Module):
    """Multi-head latent attention with decoupled rotary keys.

    Attributes:
        q: C → H·D, or with q_lora_rank q_down: C → q_lora_rank, q_norm, and q: q_lora_rank → H·D; D is
            (qk_nope_head_dim | qk_rope_head_dim).
        kv_down: C → (R | qk_rope_head_dim); kv_norm over R.
        kv_up: R → H·(qk_nope_head_dim | v_head_dim).
        output: H·v_head_dim → C.
    Source: arXiv 2405.04434, section 2.1 and appendix C; the absorbed form is the end of section 2.1.2.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.nope, self.rope, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rank = config.kv_lora_rank
        self.scale = softmax_scale(config)
        self.dropout = config.dropout
        C, H, has_bias = config.dim, config.n_heads, config.has_bias
        self.q_down = Linear(C, config.q_lora_rank, bias=has_bias) if config.q_lora_rank else None
        self.q_norm = norm(config, config.q_lora_rank) if config.q_lora_rank else None
        self.q = Linear(config.q_lora_rank or C, H * (self.nope + self.rope), bias=False)
        self.kv_down = Linear(C, self.rank + self.rope, bias=has_bias)
        self.kv_norm = norm(config, self.rank)
        self.kv_up = Linear(self.rank, H * (self.nope + self.v_dim), bias=False)
        self.output = Linear(H * self.v_dim, C, bias=has_bias)
        self.group: dist.ProcessGroup | None = None  # ranks that share the heads

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = None,
        cache: LatentCache | None = None,
        turns: Tensor | None = None,
        is_absorbed: bool | None = None,
    ) -> Tensor:
        """Returns (B, T, C).

        Args:
            x, mask: as in `Attention`.
            cache: latents of earlier positions; those of x are appended.
            turns: rotations of the positions of x.
            is_absorbed: which form; by default the absorbed one for a few new positions of a cache.
        """
        assert turns is not None, "latent attention has rotary positions"
        B, T, _ = x.shape
        q_nope, q_rope = self._queries(x, turns)  # (B, H, T, nope), (B, H, T, rope)
        latent = self._latent(x, turns)  # (B, 1, T, R + rope)
        if cache is not None:
            latent = cache.append(self.layer, latent)  # (B, 1, S, R + rope)
        if is_absorbed is None:
            is_absorbed = cache is not None and self._costs_less_absorbed(T, latent.shape[2])
        is_causal = mask is None and not (cache is not None and T == 1)
        attend = self._absorbed if is_absorbed else self._naive
        out = attend(q_nope, q_rope, latent, mask, is_causal)  # (B, H, T, v)
        y: Tensor = self.output(out.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)
        return y

    def weights(self, x: Tensor, *, turns: Tensor) -> Tensor:
        """As `Attention.weights`; both forms have the same: (B, H, T, T)."""
        return causal_weights(*self.queries_and_keys(x, turns=turns), self.scale)

    def queries_and_keys(self, x: Tensor, *, turns: Tensor) -> tuple[Tensor, Tensor]:
        """As those of `Attention`, of the naive form: (B, H, T, D) each."""
        q = torch.cat(self._queries(x, turns), dim=-1)  # (B, H, T, D)
        k, _, key = self._keys_and_values(self._latent(x, turns))
        return q, torch.cat((k, key.expand(-1, self.n_heads, -1, -1)), dim=-1)  # (B, H, T, D) each

    def _queries(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        B, T, _ = x.shape
        if self.q_down is not None and self.q_norm is not None:
            x = self.q_norm(self.q_down(x))  # (B, T, q_lora_rank)
        q = self.q(x).view(B, T, self.n_heads, -1).transpose(1, 2)  # (B, H, T, D)
        q_nope, q_rope = torch.split(q, [self.nope, self.rope], dim=-1)
        return q_nope, rotate(q_rope, turns)

    def _latent(self, x: Tensor, turns: Tensor) -> Tensor:
        """The key of the absorbed form: normalised latent and rotated key, (B, 1, T, R + rope)."""
        latent, key = torch.split(self.kv_down(x).unsqueeze(1), [self.rank, self.rope], dim=-1)
        return torch.cat((self.kv_norm(latent), rotate(key, turns)), dim=-1)

    def _costs_less_absorbed(self, T: int, S: int) -> bool:
        """Whether multiplying T queries into the latent's space costs less than making keys and values of S latents."""
        up = self.rank * (self.nope + self.v_dim)  # multiplications for each head and latent, or query
        naive = S * up + T * S * (self.nope + self.rope + self.v_dim)
        absorbed = T * up + T * S * (2 * self.rank + self.rope)
        return absorbed < naive

    def _keys_and_values(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What heads make of the latents: (B, 1, S, R + rope) → (B, H, S, nope), (B, H, S, v), and the key of all."""
        B, _, S, _ = latent.shape
        latent, key = torch.split(latent, [self.rank, self.rope], dim=-1)  # (B, 1, S, R), (B, 1, S, rope)
        key = enter(key, self.group)
        up = self.kv_up(latent.squeeze(1)).view(B, S, self.n_heads, -1).transpose(1, 2)  # (B, H, S, nope + v)
        k, v = torch.split(up, [self.nope, self.v_dim], dim=-1)
        return k, v, key

    def _naive(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, mask: Mask, is_causal: bool) -> Tensor:
        q = torch.cat((q_nope, q_rope), dim=-1)  # (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        if mask is None and is_causal and dropout == 0.0 and self._keeps_latents():
            narrow, key = torch.split(latent, [self.rank, self.rope], dim=-1)  # (B, 1, T, R), (B, 1, T, rope)
            up: Tensor = self.kv_up.weight
            if goes_by_tiles(q, key, narrow, up):
                return attend_latents_by_tiles(q, narrow.squeeze(1), key, up, self.scale)
        k, v, key = self._keys_and_values(latent)  # (B, H, S, nope), (B, H, S, v), (B, 1, S, rope)
        return attend(q, k, v, key=key, mask=mask, is_causal=is_causal, dropout=dropout, scale=self.scale)

    def _keeps_latents(self) -> bool:
        """Whether keys and values may be made again in the backward pass: all heads are here, and nobody looks on."""
        is_plain = type(self.kv_up) is Linear and not (self.kv_up._forward_hooks or self.kv_up._forward_pre_hooks)
        return torch.is_grad_enabled() and self.group is None and is_plain

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, mask: Mask, is_causal: bool) -> Tensor:
        """All heads read the same latents: one head of H·T queries, so that nothing is copied for each head."""
        B, H, T, _ = q_nope.shape
        S = latent.shape[2]
        up = self.kv_up.weight.view(H, self.nope + self.v_dim, self.rank)  # (H, nope + v, R)
        to_key, to_value = torch.split(up, [self.nope, self.v_dim], dim=1)
        q = torch.cat((torch.einsum("bhtn,hnr->bhtr", q_nope, to_key), q_rope), dim=-1)  # (B, H, T, R + rope)
        if is_causal:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)  # (T, S)
        if mask is not None:
            assert isinstance(mask, Tensor), "documents are packed in training, a cache has none"
            mask = mask.expand(B, H, T, S).reshape(B, 1, H * T, S)
        out = attend(
            q.reshape(B, 1, H * T, -1),
            latent,
            latent[..., : self.rank],
            mask=mask,
            is_causal=False,
            dropout=self.dropout if self.training else 0.0,
            scale=self.scale,
        )  # (B, 1, H·T, R)
        return torch.einsum("bhtr,hvr->bhtv", out.view(B, H, T, self.rank), to_value)  # (B, H, T, v)
