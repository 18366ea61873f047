"""What a pre-training step is made of: the parts of its loss, borders of documents, and the balance of experts.

tokens ─ends of documents─▶ losses ─weights─▶ loss ─▶ … update … ─▶ routers' biases
                               └──────── their means ────────────────────▶ log
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model import Transformer
from gptrs.model.moe import MoE, max_violation, rebalance
from gptrs.train import corpus


class Rows(Protocol):
    """Some rows of a dataset."""

    @property
    def tokens(self) -> Tensor: ...  # (B, T) int64

    @property
    def targets(self) -> Tensor: ...  # (B, T) int64


@dataclass(kw_only=True, slots=True)
class Parts:
    """The loss of a model as its stage weighs it, and what a log says about the last update."""

    mtp_weight: float
    balance_weight: float
    bias_speed: float
    attention: Literal["stream", "documents"]
    eot_id: int | None  # the token that ends each document; None: documents have no border
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the microbatches since the last update
    n_summed: int = 0
    means: dict[str, Tensor] = field(default_factory=dict)  # of the last update
    loads: list[Tensor] = field(default_factory=list)  # (E,) of each mixture in the last update

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """The training loss of some rows, in nats for a token."""
        assert isinstance(model, Transformer)
        pieces = self._pieces(rows)
        ends = None if self.eot_id is None else rows.tokens == self.eot_id  # (B, T)
        if pieces is not None:
            ends = F.pad(pieces["doc_ids"].diff(dim=-1) != 0, (0, 1))  # (B, T)
        seen = self.documents(rows.tokens) if pieces is None or self.attention == "stream" else pieces
        losses = model.losses(rows.tokens, rows.targets, ends=ends, **seen)
        if len(losses) > 1:
            self._note(losses)
        loss = losses["next"]
        if "further" in losses:
            loss = loss + self.mtp_weight * losses["further"]
        if "balance" in losses:
            loss = loss + self.balance_weight * losses["balance"]
        share = rows.share if isinstance(rows, corpus.Rows) else None
        if share is None:
            return loss
        return torch.where(share > 0, share * loss, 0.0).to(loss.dtype)  # the mean over no target is nan

    def next_loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """The mean cross-entropy of the rows' next tokens alone."""
        assert isinstance(model, Transformer)
        return model.next_loss(rows.tokens, rows.targets, **self.documents(rows.tokens))

    def documents(self, tokens: Tensor) -> dict[str, Tensor]:
        """What a model is told about the documents of its rows: nothing when attention reads the stream."""
        if self.attention == "stream":
            return {}
        assert self.eot_id is not None, "checked before the run"
        return documents(tokens == self.eot_id)

    def after_update(self, mixtures: list[MoE], is_left_out: Tensor | None = None) -> None:
        """Moves the routers' biases by the loads of the update's microbatches, and closes its means.

        Args: is_left_out: 1 where the optimizer made no step: biases then stay too.
        """
        self.means = {name: total / self.n_summed for name, total in self.sums.items()}
        self.sums, self.n_summed, self.loads = {}, 0, []
        for mixture in mixtures:
            loads = mixture.take_loads()
            assert loads is not None, "every update runs every mixture"
            if mixture.router.bias is not None:
                counted = loads if is_left_out is None else loads * (1 - is_left_out).to(loads.dtype)  # of 0 none moves
                rebalance(mixture.router, counted, speed=self.bias_speed)
            self.loads.append(loads)

    def log(self) -> dict[str, float]:
        """What metrics.jsonl says of the last update beside its loss: nothing for a model without such parts."""
        found = {f"{name}_loss": value.item() for name, value in self.means.items()}
        if self.loads:
            found["max_violation"] = round(max(map(max_violation, self.loads)), 4)
        return found

    def _pieces(self, rows: Rows) -> dict[str, Tensor] | None:
        """The pieces of packed rows, as `documents`; one that goes on in another row has no end to be found by."""
        positions = rows.positions if isinstance(rows, corpus.Rows) else None
        if positions is None:
            return None
        return {"doc_ids": (positions == 0).cumsum(dim=-1) - 1, "positions": positions.long()}

    def _note(self, losses: dict[str, Any]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.n_summed += 1


def documents(ends: Tensor) -> dict[str, Tensor]:
    """Whose token each is and how far from the first of its document in this row; (B, T) booleans → (B, T) each.

    Example: ends (0, 0, 1, 0) give doc_ids (0, 0, 0, 1) and positions (0, 1, 2, 0).
    """
    places = torch.arange(ends.shape[1], device=ends.device).expand(ends.shape)  # (B, T)
    is_first = ends.roll(1, dims=-1)  # (B, T)
    is_first[:, 0] = True
    firsts = places.masked_fill(~is_first, 0).cummax(dim=-1).values  # (B, T)
    return {"doc_ids": is_first.cumsum(dim=-1) - 1, "positions": places - firsts}
