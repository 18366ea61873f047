"""How likely a model finds a given text: log-probabilities of continuations, many at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptrs.model import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model gives to one continuation."""

    log_probs: tuple[float, ...]  # nats, of each token after all before it
    is_greedy: bool  # each token is the likeliest one, so generating at temperature 0 gives this continuation

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation, in nats."""
        return sum(self.log_probs)


@torch.no_grad()
def score(
    model: Transformer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 16
) -> list[Score]:
    """The scores of continuations, in the order of the pairs; the model is in eval mode meanwhile, and each part
    of it afterwards in the mode that it was in.

    Args: pairs: (prompt, continuation) as ids, of one token or more each. batch_size: rows of one forward pass.
    Raises: ValueError for an empty prompt or continuation, an id outside the vocabulary, more than the learned
        positions, or a model whose logits are not finite.
    Example: `score(model, [(tok.encode("two and two are"), tok.encode(" four"))])[0].total`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for number, (prompt, continuation) in enumerate(pairs):
        _check(model, number, prompt, continuation)
    found: list[Score | None] = [None] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))  # rows of like length
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, result in zip(chosen, _scores(model, [pairs[i] for i in chosen]), strict=True):
                found[i] = result
    finally:
        for module in training:  # and no other: a part may be frozen
            module.training = True
    return [result for result in found if result is not None]


def _check(model: Transformer, number: int, prompt: Sequence[int], continuation: Sequence[int]) -> None:
    V, limit = model.config.vocab_size, model.config.position_limit
    for name, ids in (("prompt", prompt), ("continuation", continuation)):
        if not ids:
            raise ValueError(f"expected a {name} of one token or more, got none in pair {number}")
        if not 0 <= min(ids) <= max(ids) < V:
            wrong = next(i for i in ids if not 0 <= i < V)
            raise ValueError(f"expected ids from 0 to {V - 1}, got {wrong} in the {name} of pair {number}")
    n = len(prompt) + len(continuation) - 1
    if limit is not None and n > limit:
        raise ValueError(
            f"pair {number} needs {n} positions, the model has {limit}; hint: shorten the prompt from the left"
        )


def _scores(model: Transformer, pairs: list[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
    """One forward pass; padding stands on the right, where no real position looks."""
    rows = [[*prompt, *continuation][:-1] for prompt, continuation in pairs]
    T = max(map(len, rows))
    device = model.embed.token.weight.device
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)  # (B, T)
    hidden = model.hidden(tokens)  # (B, T, C)
    return [_score(model, states, *pair) for states, pair in zip(hidden, pairs, strict=True)]


def _score(model: Transformer, states: Tensor, prompt: Sequence[int], continuation: Sequence[int]) -> Score:
    """Args: states: (T, C) of the pair's row."""
    n = len(continuation)
    logits = model.logits(states[len(prompt) - 1 : len(prompt) - 1 + n]).float()  # (n, V)
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise ValueError("expected finite logits, got nan or infinity; hint: the model's training has diverged")
    targets = torch.tensor(continuation, device=states.device)  # (n,)
    log_probs = logits.log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)  # (n,)
    return Score(log_probs=tuple(log_probs.tolist()), is_greedy=bool((logits.argmax(dim=-1) == targets).all()))
