"""What a run looks at on its way: the loss on held-out text, and texts that the model continues.

held-out rows ─▶ val loss ─▶ metrics.jsonl, loss.png          prompts ─▶ continuations ─▶ samples.txt, report.html
"""

import math
from collections.abc import Iterator

import torch

from gptrs import trace
from gptrs.generate import generate
from gptrs.model import ModelConfig, Transformer
from gptrs.train import corpus, metrics
from gptrs.train.average import Average
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus, Rows
from gptrs.train.guard import Event
from gptrs.train.journal import Journal
from gptrs.train.loop import Position, mean_loss
from gptrs.train.parts import Parts
from gptrs.train.spread import Spread

DEFAULT_NEW_TOKENS = 200


class Looks:
    """Evaluations and samples of one run.

    Attributes: val_loss: of the last evaluation, nan before; samples: (prompt, continuation) of the last sampling.
    """

    def __init__(
        self,
        config: PretrainConfig,
        data: Corpus,
        spread: Spread,
        parts: Parts,
        journal: Journal,
        *,
        dtype: torch.dtype,
    ) -> None:
        """Raises: ValueError when the prompts and the new tokens do not fit the learned positions."""
        self.config = config
        self.corpus = data
        self.spread = spread
        assert isinstance(spread.model, Transformer)
        self.model_config: ModelConfig = spread.model.config
        self.parts = parts
        self.journal = journal
        self.dtype = dtype
        self.dir = config.run.path
        self.prompts = [data.tokenizer.encode_ordinary(prompt) for prompt in config.sample.prompts]
        self.max_new_tokens = self._max_new_tokens()
        self.average: Average | None = None  # of the weights, looked at beside them where there is one
        self.val_loss = math.nan
        self.samples: list[tuple[str, str]] = []
        self._plots = metrics.Pace()

    def evaluate(self, position: Position, is_last: bool) -> None:
        """A loss that is no number is an event on the way.

        Raises: ValueError when it comes at the last step: such a run has no result.
        """
        loss, n_targets = self._loss(is_last)
        if not math.isfinite(loss):
            if is_last:
                raise ValueError(f"expected a finite loss on held-out text at the last step, got {loss}; "
                                 "hint: training has diverged, lower optim.lr and start anew with --fresh")  # fmt: skip
            text = f"expected a finite loss on held-out text at step {position.step}, got {loss}; training goes on"
            self.journal.tell(Event(step=position.step, name="no held-out loss", text=text))
            return
        averaged = self._averaged_loss(is_last)
        self.val_loss = loss
        if not self.spread.world.is_main:
            return
        self.journal.write(
            "eval",
            position.step,
            val_loss=loss,
            bits_per_byte=self.corpus.bits_per_byte(loss),
            n_targets=n_targets,
            time_s=round(position.elapsed_s, 3),
            **averaged,
        )
        mean = "".join(f", of the weights' mean {value:.4f}" for value in averaged.values())
        self.journal.say(f"step {position.step}  val loss {loss:.4f}{mean} on {n_targets:,} tokens")
        self._plots.do(self._plot, is_last=is_last)

    def _plot(self) -> None:
        lines = metrics.read(self.dir / "metrics.jsonl")
        metrics.plot(self.dir / "loss.png", lines, unigram_entropy=self.corpus.unigram_entropy)

    def _loss(self, is_last: bool) -> tuple[float, int]:
        rows = self._val_rows(None if is_last else self.config.train.eval_rows)
        spread = self.spread
        return mean_loss(spread.model, rows, loss_fn=self.parts.next_loss, dtype=self.dtype, spread=spread)

    def _averaged_loss(self, is_last: bool) -> dict[str, float]:
        if self.average is None:
            return {}
        with self.average.applied():
            return {"ema_val_loss": self._loss(is_last)[0]}

    def sample(self, position: Position, is_last: bool) -> None:
        model = self.spread.whole()
        if model is None:
            return
        self.samples = self._continuations(model)
        text = f"── step {position.step}\n"
        for prompt, continuation in self.samples:
            text += f"── prompt {prompt!r}\n{prompt}{continuation}\n\n"
        self.journal.write_samples(text)

    def first_rows(self) -> Rows:
        """Returns as many held-out rows as this rank takes at a time, evenly spread: the same ones each time."""
        train = self.config.train
        return next(self._val_rows(train.rows(self.spread.world.data_size) * self.spread.world.data_size))

    def usage(self, model: Transformer) -> trace.Usage:
        """Returns how experts and further tokens fare on as much held-out text as a look on the way reads.

        Args: model: as `Spread.whole` gives it to rank 0, which alone reads here.
        """
        rows = self._val_rows(self.config.train.eval_rows, is_shared=False)
        pairs = ((batch.tokens, batch.targets) for batch in rows)
        return trace.usage(model, pairs, eot_id=self.parts.eot_id, documents=self.parts.documents)

    def _continuations(self, model: Transformer) -> list[tuple[str, str]]:
        sample, tokenizer = self.config.sample, self.corpus.tokenizer
        stop = () if tokenizer.eot_id is None else (tokenizer.eot_id,)
        found = generate(
            model,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=sample.temperature,
            top_k=sample.top_k or None,
            top_p=sample.top_p,
            min_p=sample.min_p,
            stop_tokens=stop,
            seed=self.config.run.seed,
        )
        texts = [tokenizer.decode(ids[:-1] if ids[-1] in stop else ids) for ids in found]
        return list(zip(sample.prompts, texts, strict=True))

    def _max_new_tokens(self) -> int:
        """Returns the setting, or what fits: said before work starts, not at the first sample."""
        longest = max((len(ids) for ids in self.prompts), default=0)
        limit = self.model_config.position_limit
        room = DEFAULT_NEW_TOKENS if limit is None else limit - longest
        wanted = self.config.sample.max_new_tokens or min(DEFAULT_NEW_TOKENS, room)
        if limit is not None and not 1 <= wanted <= room:
            expected = f"expected sample.prompts and new tokens to fit the {limit} learned positions"
            raise ValueError(f"{expected}, got {longest} and {wanted}; hint: sample.max_new_tokens={max(room, 1)}")
        return wanted

    def _val_rows(self, n_rows: int | None, *, is_shared: bool = True) -> Iterator[Rows]:
        """Rows of the held-out part; shared among the data ranks, or all of them."""
        train, world = self.config.train, self.spread.world
        return corpus.rows(
            self.corpus.val,
            seq_len=train.seq_len,
            batch=train.rows(world.data_size),
            device=world.device,
            n_rows=n_rows,
            rank=world.data_rank if is_shared else 0,
            world_size=world.data_size if is_shared else 1,
        )
