"""What happens inside a model: its guesses along a text, where gradients reach, which tokens lie close together."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs.model import Transformer
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
