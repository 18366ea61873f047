"""What a pre-training step is made of: the parts of its loss, borders of documents, and the balance of experts.

tokens ─ends of documents─▶ losses ─weights─▶ loss ─▶ … update … ─▶ routers' biases
                               └──────── their means ────────────────────▶ log
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.loader import Batch
from gptrs.model import Transformer
from gptrs.model.loss import counts
from gptrs.model.moe import MoE, max_violation, rebalance
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus
from gptrs.train.distributed import World


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
    world: World | None = None  # of the ranks that share each update; None: this process alone
    n_further: int = 0  # further tokens that the model predicts
    z_weight: float = 0.0  # of the mean log²Z of the next token's logits
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the microbatches' shares since the last update
    means: dict[str, Tensor] = field(default_factory=dict)  # of the last update
    loads: list[Tensor] = field(default_factory=list)  # (E,) of each mixture in the last update

    def counts(self, rows: Rows) -> Tensor:
        """What the parts of the loss of some rows are divided by: targets, those of further tokens, sequences."""
        return counts(rows.targets, ends=self._ends(rows), n_further=self.n_further)

    def loss(self, model: nn.Module, rows: Rows, totals: Tensor | None = None) -> Tensor:
        """The training loss of some rows, in nats for a token; given the `counts` of an update their share."""
        assert isinstance(model, Transformer)
        given: dict[str, Any] = {**self._seen(rows)}
        given |= {"ends": self._ends(rows), "totals": totals, "z_weight": self.z_weight}
        losses = model.losses(rows.tokens, rows.targets, **given)
        if len(losses) > 1 and model.training:
            self._note(losses)
        loss = losses["next"]
        if "further" in losses:
            loss = loss + self.mtp_weight * losses["further"]
        if "balance" in losses:
            loss = loss + self.balance_weight * losses["balance"]
        return loss

    def next_loss(self, model: nn.Module, rows: Rows, totals: Tensor | None = None) -> Tensor:
        """The mean cross-entropy of the rows' next tokens alone."""
        assert isinstance(model, Transformer)
        total = None if totals is None else totals[0]
        return model.next_loss(rows.tokens, rows.targets, total=total, **self.documents(rows.tokens))

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
        self.means, self.sums = self.sums, {}
        own = [mixture.take_loads() for mixture in mixtures]
        loads = [each for each in own if each is not None]
        assert len(loads) == len(mixtures), "every update runs every mixture"
        self.loads = list(self._sum(torch.stack(loads))) if loads else []
        for mixture, each in zip(mixtures, self.loads, strict=True):
            if mixture.router.bias is not None:
                counted = each if is_left_out is None else each * (1 - is_left_out).to(each.dtype)  # of 0 none moves
                rebalance(mixture.router, counted, speed=self.bias_speed)

    def log(self) -> dict[str, float]:
        """What metrics.jsonl says of the last update beside its loss: nothing for a model without such parts."""
        if not self.means:
            return {}
        means = self._sum(torch.stack(list(self.means.values()))).tolist()
        found = {f"{name}_loss": value for name, value in zip(self.means, means, strict=True)}
        if self.loads:
            found["max_violation"] = round(max(map(max_violation, self.loads)), 4)
        return found

    def _note(self, losses: dict[str, Any]) -> None:
        if "z" in losses:  # logged apart, so that next is what validation measures
            losses = {**losses, "next": losses["next"] - self.z_weight * losses["z"]}
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def _ends(self, rows: Rows) -> Tensor | None:
        """Which tokens are their document's last, (B, T); None where documents have no border."""
        if (packed := pieces(rows)) is not None:
            return F.pad(packed["doc_ids"].diff(dim=-1) != 0, (0, 1))
        return None if self.eot_id is None else rows.tokens == self.eot_id

    def _seen(self, rows: Rows) -> dict[str, Tensor]:
        if self.attention == "documents" and (packed := pieces(rows)) is not None:
            return packed
        return self.documents(rows.tokens)

    def _sum(self, tensor: Tensor) -> Tensor:
        return tensor if self.world is None else self.world.sum(tensor)


def parts_of(config: PretrainConfig, data: Corpus, world: World) -> Parts:
    """Returns the parts of a run.

    Raises: ValueError where attention stays inside documents and no token ends one.
    """
    train, eot_id = config.train, data.tokenizer.eot_id
    if train.attention == "documents" and eot_id is None:
        raise ValueError(
            "train.attention=documents needs a token that ends documents, the tokenizer has none; "
            "hint: train.attention=stream, or <|endoftext|> among tokenizer.special_tokens"
        )
    return Parts(
        mtp_weight=train.mtp_weight,
        balance_weight=train.balance_weight,
        bias_speed=train.bias_speed,
        attention=train.attention,
        eot_id=eot_id,
        world=world,
        n_further=config.model.resolve(vocab_size=data.tokenizer.vocab_size, seq_len=train.seq_len).n_mtp_layers,
        z_weight=train.z_loss,
    )


def pieces(rows: Rows) -> dict[str, Tensor] | None:
    """What `documents` says, of the pieces of packed rows, which their loader knows; None for other rows.

    A piece of a document that goes on in another row has no end-of-text token to be found by.
    """
    if not isinstance(rows, Batch) or rows.loader.pack == "stream":
        return None
    positions = rows.positions  # (B, T)
    return {"doc_ids": (positions == 0).cumsum(dim=-1) - 1, "positions": positions.long()}


def documents(ends: Tensor) -> dict[str, Tensor]:
    """Whose token each is and how far from the first of its document in this row; (B, T) booleans → (B, T) each.

    Example: ends (0, 0, 1, 0) give doc_ids (0, 0, 0, 1) and positions (0, 1, 2, 0).
    """
    places = torch.arange(ends.shape[1], device=ends.device).expand(ends.shape)  # (B, T)
    is_first = ends.roll(1, dims=-1)  # (B, T)
    is_first[:, 0] = True
    firsts = places.masked_fill(~is_first, 0).cummax(dim=-1).values  # (B, T)
    return {"doc_ids": is_first.cumsum(dim=-1) - 1, "positions": places - firsts}
