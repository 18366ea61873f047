"""Which tensors of a Hugging Face file make each of ours, and in which order their rows stand.

One table serves both ways. A tensor of ours is the rows of one or several of theirs, one after the other:

    ours                  theirs
    attn.qkv              c_attn, transposed (GPT-2); q_proj | k_proj | v_proj (Llama)
    ffn.up                gate_proj | up_proj
    ffn.experts.up[e]     experts.e.gate_proj | experts.e.up_proj

Pairs that are rotated together are neighbours here; where a file has them in two halves, rows are reordered.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gptrs.exchange.hf_config import Architecture
from gptrs.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One tensor of a file."""

    name: str
    n_rows: int  # of ours that it gives
    is_transposed: bool = False  # GPT-2's Conv1D stores (in, out)
    halves: tuple[int, int] | None = None  # heads, and rows at the end of each that are rotated, in two halves there


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor of ours, or one expert's part of it, and the pieces whose rows it is."""

    ours: str
    pieces: tuple[Piece, ...]
    expert: int | None = None  # index into the first axis of ours


def entries(config: ModelConfig, architecture: Architecture, *, is_interleaved: bool) -> Iterator[Entry]:
    """Every tensor of a model, first layer first."""
    if architecture == "GPT2LMHeadModel":
        yield from _gpt2(config)
        return
    V, C = config.vocab_size, config.dim
    yield _plain("embed.token.weight", "model.embed_tokens.weight", V)
    for layer in range(config.n_layers):
        yield from _block(config, f"layers.{layer}", f"model.layers.{layer}", layer, is_interleaved=is_interleaved)
    yield _plain("norm.weight", "model.norm.weight", C)
    if not config.is_head_tied:
        yield _plain("head.weight", "lm_head.weight", V)
    for depth in range(config.n_mtp_layers):
        layer = config.n_layers + depth
        ours, theirs = f"further.{depth}", f"model.layers.{layer}"
        yield _plain(f"{ours}.embed_norm.weight", f"{theirs}.enorm.weight", C)
        yield _plain(f"{ours}.hidden_norm.weight", f"{theirs}.hnorm.weight", C)
        yield _plain(f"{ours}.joined.weight", f"{theirs}.eh_proj.weight", C)
        yield from _block(config, f"{ours}.block", theirs, layer, is_interleaved=is_interleaved)
        yield _plain(f"{ours}.norm.weight", f"{theirs}.shared_head.norm.weight", C)


def module_prefixes(config: ModelConfig) -> tuple[str, ...]:
    """What the names of each further-token module's tensors begin with."""
    return tuple(f"model.layers.{config.n_layers + depth}." for depth in range(config.n_mtp_layers))


def copies(config: ModelConfig, *, is_tied_head_stored: bool = False) -> dict[str, str]:
    """Tensors that released files store again for further tokens, and which tensor of ours each is a copy of.

    Args: is_tied_head_stored: some files store a tied head again too.
    """
    head = "embed.token.weight" if config.is_head_tied else "head.weight"
    layers = range(config.n_layers, config.n_layers + config.n_mtp_layers)
    tied = {"lm_head.weight": head} if is_tied_head_stored and config.is_head_tied else {}
    return (
        tied
        | {f"model.layers.{layer}.embed_tokens.weight": "embed.token.weight" for layer in layers}
        | {f"model.layers.{layer}.shared_head.head.weight": head for layer in layers}
    )


def from_theirs(piece: Piece, tensor: Tensor) -> Tensor:
    """The rows of ours that a tensor of theirs gives."""
    tensor = tensor.T if piece.is_transposed else tensor
    return _reordered(piece, tensor, to_neighbours=True)


def to_theirs(entry: Entry, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of theirs that a tensor of ours gives, by name."""
    tensor = tensor if entry.expert is None else tensor[entry.expert]
    for piece, rows in zip(entry.pieces, torch.split(tensor, [p.n_rows for p in entry.pieces]), strict=True):
        rows = _reordered(piece, rows, to_neighbours=False)
        yield piece.name, (rows.T if piece.is_transposed else rows).contiguous()


def _reordered(piece: Piece, tensor: Tensor, *, to_neighbours: bool) -> Tensor:
    """Rows of each head whose rotated ones go from two halves to neighbouring pairs, or back."""
    if piece.halves is None:
        return tensor
    n_heads, n_turned = piece.halves
    heads = tensor.reshape(n_heads, -1, *tensor.shape[1:])  # (H, rows of a head, …)
    still, turned = torch.split(heads, [heads.shape[1] - n_turned, n_turned], dim=1)
    shape = (n_heads, 2, n_turned // 2) if to_neighbours else (n_heads, n_turned // 2, 2)
    turned = turned.reshape(*shape, *tensor.shape[1:]).transpose(1, 2).reshape(turned.shape)
    return torch.cat((still, turned), dim=1).reshape(tensor.shape)


def _plain(ours: str, theirs: str, n_rows: int, *, is_transposed: bool = False) -> Entry:
    return Entry(ours=ours, pieces=(Piece(name=theirs, n_rows=n_rows, is_transposed=is_transposed),))


def _gpt2(config: ModelConfig) -> Iterator[Entry]:
    C, m = config.dim, config.inter_dim
    yield _plain("embed.token.weight", "transformer.wte.weight", config.vocab_size)
    yield _plain("embed.position.weight", "transformer.wpe.weight", config.max_seq_len)
    for layer in range(config.n_layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        for mine, other, n_rows, is_matrix in (
            ("attn_norm", "ln_1", C, False),
            ("attn.qkv", "attn.c_attn", 3 * C, True),
            ("attn.output", "attn.c_proj", C, True),
            ("ffn_norm", "ln_2", C, False),
            ("ffn.up", "mlp.c_fc", m, True),
            ("ffn.down", "mlp.c_proj", C, True),
        ):
            yield _plain(f"{ours}.{mine}.weight", f"{theirs}.{other}.weight", n_rows, is_transposed=is_matrix)
            yield _plain(f"{ours}.{mine}.bias", f"{theirs}.{other}.bias", n_rows)
    yield _plain("norm.weight", "transformer.ln_f.weight", C)
    yield _plain("norm.bias", "transformer.ln_f.bias", C)
    if not config.is_head_tied:
        yield _plain("head.weight", "lm_head.weight", config.vocab_size)


def _block(config: ModelConfig, ours: str, theirs: str, layer: int, *, is_interleaved: bool) -> Iterator[Entry]:
    C = config.dim
    yield _plain(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", C)
    attention = _latent if config.is_latent else _attention
    yield from attention(config, f"{ours}.attn", f"{theirs}.self_attn", is_interleaved=is_interleaved)
    yield _plain(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", C)
    if not config.has_experts(layer):
        yield from _swiglu(config, f"{ours}.ffn", f"{theirs}.mlp", config.inter_dim)
        return
    E, m = config.n_routed_experts, config.moe_inter_dim
    yield _plain(f"{ours}.ffn.router.weight", f"{theirs}.mlp.gate.weight", E)
    if config.score_func == "sigmoid":
        yield _plain(f"{ours}.ffn.router.bias", f"{theirs}.mlp.gate.e_score_correction_bias", E)
    for e in range(E):
        expert = f"{theirs}.mlp.experts.{e}"
        yield Entry(ours=f"{ours}.ffn.experts.up", pieces=_gate_and_up(expert, m), expert=e)
        yield Entry(
            ours=f"{ours}.ffn.experts.down", pieces=(Piece(name=f"{expert}.down_proj.weight", n_rows=C),), expert=e
        )
    if config.n_shared_experts:
        yield from _swiglu(config, f"{ours}.ffn.shared", f"{theirs}.mlp.shared_experts", config.n_shared_experts * m)


def _attention(config: ModelConfig, ours: str, theirs: str, *, is_interleaved: bool) -> Iterator[Entry]:
    H, K, D = config.n_heads, config.kv_heads, config.head_dim
    for kind in ("weight", "bias") if config.has_bias else ("weight",):
        pieces = tuple(
            Piece(name=f"{theirs}.{name}_proj.{kind}", n_rows=n * D, halves=halves)
            for name, n, halves in (
                ("q", H, None if is_interleaved else (H, D)),
                ("k", K, None if is_interleaved else (K, D)),
                ("v", K, None),
            )
        )
        yield Entry(ours=f"{ours}.qkv.{kind}", pieces=pieces)
        yield _plain(f"{ours}.output.{kind}", f"{theirs}.o_proj.{kind}", config.dim)


def _latent(config: ModelConfig, ours: str, theirs: str, *, is_interleaved: bool) -> Iterator[Entry]:
    H, rope, R = config.n_heads, config.qk_rope_head_dim, config.kv_lora_rank
    rows = H * (config.qk_nope_head_dim + rope)
    halves = None if is_interleaved else (H, rope)
    if config.q_lora_rank:
        yield _plain(f"{ours}.q_down.weight", f"{theirs}.q_a_proj.weight", config.q_lora_rank)
        yield _plain(f"{ours}.q_norm.weight", f"{theirs}.q_a_layernorm.weight", config.q_lora_rank)
    name = "q_b_proj" if config.q_lora_rank else "q_proj"
    yield Entry(ours=f"{ours}.q.weight", pieces=(Piece(name=f"{theirs}.{name}.weight", n_rows=rows, halves=halves),))
    down = Piece(
        name=f"{theirs}.kv_a_proj_with_mqa.weight", n_rows=R + rope, halves=None if is_interleaved else (1, rope)
    )
    yield Entry(ours=f"{ours}.kv_down.weight", pieces=(down,))
    yield _plain(f"{ours}.kv_norm.weight", f"{theirs}.kv_a_layernorm.weight", R)
    up = H * (config.qk_nope_head_dim + config.v_head_dim)
    yield _plain(f"{ours}.kv_up.weight", f"{theirs}.kv_b_proj.weight", up)
    yield _plain(f"{ours}.output.weight", f"{theirs}.o_proj.weight", config.dim)


def _swiglu(config: ModelConfig, ours: str, theirs: str, width: int) -> Iterator[Entry]:
    for kind in ("weight", "bias") if config.has_bias else ("weight",):
        yield Entry(ours=f"{ours}.up.{kind}", pieces=_gate_and_up(theirs, width, kind))
        yield _plain(f"{ours}.down.{kind}", f"{theirs}.down_proj.{kind}", config.dim)


def _gate_and_up(theirs: str, width: int, kind: str = "weight") -> tuple[Piece, ...]:
    return tuple(Piece(name=f"{theirs}.{name}_proj.{kind}", n_rows=width) for name in ("gate", "up"))
