"""What happens inside a model: its guesses along a text, where gradients reach, which tokens lie close together, and
how experts and further tokens fare.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs.model import Transformer
from gptrs.model.loss import IGNORED, crosses_an_end
from gptrs.model.moe import Use
from gptrs.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What the model expects after a prefix."""

    prefix: tuple[bytes, ...]  # the tokens read so far
    target: bytes  # the token that follows in the text
    probability: float  # that the model gives it
    likeliest: bytes  # the model's own first choice
    likeliest_probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """The gradient that the loss of one text sends to a tensor."""

    name: str
    shape: tuple[int, ...]
    norm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The tokens whose embeddings lie nearest to one token's, by cosine, nearest first."""

    token: bytes
    before: tuple[tuple[bytes, float], ...]  # training
    after: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How often each expert of a layer was chosen."""

    layer: str  # "layer 1", "further token 1"
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Further:
    """How well one depth predicts, over the positions whose further token is in their own document."""

    depth: int  # 1: the token behind the next
    n_targets: int
    loss: float  # nats
    right: float  # share of likeliest guesses that are the text's token
    next_right: float  # the same of the main model, which has read one token more for each depth
    accepted: float  # share of likeliest guesses that are the main model's own, as greedy decoding would take them


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a model did with some text."""

    n_tokens: int
    loads: tuple[Load, ...] = ()
    further: tuple[Further, ...] = ()


@torch.no_grad()
def usage(
    model: Transformer,
    rows: Iterable[tuple[Tensor, Tensor]],
    *,
    eot_id: int | None,
    documents: Callable[[Tensor], dict[str, Tensor]] = lambda tokens: {},
) -> Usage:
    """Returns how experts and further tokens fared on rows of (tokens, targets), (B, T) each; nothing for a GPT.

    Args: documents: positions and doc_ids of tokens, as the model was trained.
    """
    loads: dict[str, Tensor] = {}
    hooks = [mixture.register_forward_hook(_adder(loads, name)) for name, mixture in model.experts()]
    sums = [torch.zeros(5, dtype=torch.float64) for _ in model.further]
    was_training, n_tokens = model.training, 0
    model.eval()
    try:
        for tokens, targets in rows if hooks or sums else ():
            n_tokens += tokens.numel()
            _guess_further(model, tokens, targets, sums, eot_id, documents(tokens))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    found = tuple(Load(layer=_layer(name), counts=tuple(counts.tolist())) for name, counts in loads.items())
    return Usage(n_tokens=n_tokens, loads=found, further=tuple(_further(i + 1, s) for i, s in enumerate(sums) if s[0]))


def _guess_further(
    model: Transformer,
    tokens: Tensor,
    targets: Tensor,
    sums: list[Tensor],
    eot_id: int | None,
    given: dict[str, Tensor],
) -> None:
    """Adds (n, loss, right, right of the main model, accepted) of a batch to each depth's sums."""
    positions, doc_ids = given.get("positions"), given.get("doc_ids")
    hidden = model.hidden(tokens, positions=positions, doc_ids=doc_ids)  # (B, T, C)
    if not sums:
        return
    own = model.logits(hidden).argmax(dim=-1)  # (B, T)
    ends = torch.zeros_like(tokens, dtype=torch.bool) if eot_id is None else tokens == eot_id
    states = model.further_states(hidden, tokens, positions, doc_ids)
    for depth, (state, _) in enumerate(states, start=1):
        counts = ~crosses_an_end(ends, depth) & (targets[:, depth:] != IGNORED)  # (B, T - depth)
        logits, expected, main = model.logits(state)[counts], targets[:, depth:][counts], own[:, depth:][counts]
        guess = logits.argmax(dim=-1)
        loss = F.cross_entropy(logits.float(), expected, reduction="sum")
        found = (counts.sum(), loss, (guess == expected).sum(), (main == expected).sum(), (guess == main).sum())
        sums[depth - 1] += torch.stack([value.double().cpu() for value in found])


def _further(depth: int, sums: Tensor) -> Further:
    n, loss, right, next_right, accepted = sums.tolist()
    return Further(
        depth=depth, n_targets=int(n), loss=loss / n, right=right / n, next_right=next_right / n, accepted=accepted / n
    )


def _adder(loads: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, tuple[Tensor, Use]], None]:
    def add(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Use]) -> None:
        loads[name] = loads.get(name, 0) + output[1].loads

    return add


def _layer(name: str) -> str:
    kind, number = name.split(".")[:2]
    return f"layer {number}" if kind == "layers" else f"further token {int(number) + 1}"


@torch.no_grad()
def guesses(model: Transformer, tokenizer: Tokenizer, text: str) -> list[Guess]:
    """Returns the model's guess at every position of a text but the last, from the prefix up to there.

    Raises: ValueError when the text is a single token: then nothing follows.
    """
    tokens, targets = _row(model, tokenizer, text)  # (1, T) each
    probabilities = _in_eval_mode(model, tokens).float().softmax(dim=-1)[0]  # (T, V)
    pieces = [_bytes(tokenizer, i) for i in tokens[0].tolist()]
    found = []
    for t, (target, row) in enumerate(zip(targets[0].tolist(), probabilities, strict=True)):
        best = int(row.argmax())
        found.append(
            Guess(
                prefix=tuple(pieces[: t + 1]),
                target=_bytes(tokenizer, target),
                probability=float(row[target]),
                likeliest=_bytes(tokenizer, best),
                likeliest_probability=float(row[best]),
            )
        )
    return found


def gradients(model: Transformer, tokenizer: Tokenizer, text: str) -> list[Reach]:
    """Returns the norm of the gradient of the text's loss for every trainable tensor; the model stays as it is."""
    tokens, targets = _row(model, tokenizer, text)  # (1, T) each
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    with torch.enable_grad():
        logits = _in_eval_mode(model, tokens)  # (1, T, V)
        loss = F.cross_entropy(logits[0].float(), targets[0])
        found = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in found]
    return [Reach(name=n, shape=tuple(p.shape), norm=norm) for (n, p), norm in zip(named, norms, strict=True)]


def neighbours(before: Tensor, after: Tensor, tokenizer: Tokenizer, ids: list[int], *, k: int = 5) -> list[Neighbours]:
    """Returns the k nearest tokens of each id in two embeddings (V, C), before and after training."""
    pairs = zip(ids, nearest(before, ids, k=k), nearest(after, ids, k=k), strict=True)

    def named(found: list[tuple[int, float]]) -> tuple[tuple[bytes, float], ...]:
        return tuple((_bytes(tokenizer, i), cosine) for i, cosine in found)

    return [Neighbours(token=_bytes(tokenizer, i), before=named(b), after=named(a)) for i, b, a in pairs]


def nearest(weight: Tensor, ids: list[int], *, k: int) -> list[list[tuple[int, float]]]:
    """Returns for each id the k other rows of `weight` (V, C) with the largest cosine: (id, cosine), largest first."""
    directions = F.normalize(weight.detach().float(), dim=-1)  # (V, C)
    cosines = directions[ids] @ directions.T  # (len(ids), V)
    cosines[torch.arange(len(ids)), ids] = -torch.inf  # not the token itself
    values, indices = cosines.topk(min(k, len(weight) - 1), dim=-1)  # (len(ids), k)
    return [list(zip(row, scores, strict=True)) for row, scores in zip(indices.tolist(), values.tolist(), strict=True)]


def _row(model: Transformer, tokenizer: Tokenizer, text: str) -> tuple[Tensor, Tensor]:
    ids = tokenizer.encode_ordinary(text)
    if len(ids) < 2:
        raise ValueError(f"expected a text of two tokens or more, got {len(ids)} in {text!r}")
    limit = model.config.position_limit
    ids = ids if limit is None else ids[: limit + 1]  # a short context reads the beginning
    row = torch.tensor([ids], device=next(model.parameters()).device)  # (1, T + 1)
    return row[:, :-1], row[:, 1:]


def _in_eval_mode(model: nn.Module, tokens: Tensor) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        logits: Tensor = model(tokens)  # (1, T, V)
    finally:
        model.train(was_training)
    return logits


def _bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    return tokenizer.id_to_token(token_id) or b""
