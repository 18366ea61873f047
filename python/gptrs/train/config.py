"""Settings of a training run: optimizer, schedule, loop, and what must hold between all sections. No torch here.

A config says what to compute, never where: the same file trains on the CPU and on CUDA. Keys that are unset (None)
follow from others, as their comments say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptrs import config
from gptrs.model import memory
from gptrs.model.config import ModelConfig
from gptrs.train.schedule import DEEPSEEK_STAGES, Decay, Kind, batch_rows, learning_rate, rows_before
from gptrs.train.settings import (
    DataSettings,
    LogSettings,
    ModelSettings,
    RunSettings,
    SampleSettings,
    SpeedSettings,
    TokenizerSettings,
    require,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimSettings:
    """[optim]: AdamW for all weights, or Muon for the matrices of hidden layers and AdamW for the others."""

    lr: float  # peak learning rate
    name: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.1  # on matrices and embeddings only (ndim ≥ 2)
    betas: tuple[float, ...] = (0.9, 0.95)  # decay of the two moments; 0.99 for the second suits small batches
    clip: float = 1.0  # largest norm of the whole gradient; 0: no clipping
    eps: float = 1e-8  # added to the root of the second moment
    in_backward: bool = False  # adamw: each weight moves as soon as it has its gradient, which is freed; without clip
    momentum: float = 0.95  # muon: decay of the gradients' mean
    adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"  # muon: rate of an (A, B) matrix over the peak:
    # 0.2·√max(A, B), with which AdamW's rate and decay fit, or √max(1, A/B), for rates about 0.02
    matrix_lr: float | None = None  # muon: peak of the hidden matrices; unset: lr

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "positive", self.lr)
        require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(is_pair, "optim.betas", "two numbers from 0 to below 1", list(self.betas))
        require(self.clip >= 0, "optim.clip", "0 (no clipping) or more", self.clip)
        require(self.eps > 0, "optim.eps", "positive", self.eps)
        require(0 <= self.momentum < 1, "optim.momentum", "from 0 to below 1", self.momentum)
        require(self.matrix_lr is None or self.matrix_lr > 0, "optim.matrix_lr", "positive", self.matrix_lr)
        if self.matrix_lr is not None and self.name != "muon":
            raise ValueError(f"optim.matrix_lr is Muon's, optim.name is {self.name}; hint: optim.name=muon")
        if self.in_backward and self.name != "adamw":
            raise ValueError(f"optim.in_backward is AdamW's, optim.name is {self.name}; hint: optim.name=adamw")
        if self.in_backward and self.clip > 0:
            expected = "optim.in_backward moves weights before the norm is known by which optim.clip scales gradients"
            raise ValueError(f"{expected}, got optim.clip={self.clip}; hint: optim.clip=0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """[schedule]: linear warm-up, then down to min_lr at the last step or at train.max_minutes, if earlier."""

    kind: Kind = "cosine"  # from the peak on, as "linear"; "wsd" stays at the peak until its decay; "deepseek": V3's
    warmup_steps: int = 100  # updates until the peak
    min_lr: float = 0.0  # learning rate of the last update; a tenth of the peak is usual, deepseek: a thirtieth
    decay: Decay = "linear"  # wsd: how the rate comes down; "1-sqrt" falls fast at first
    decay_share: float = 0.2  # wsd: share of the steps in which it does
    stages: tuple[float, ...] = DEEPSEEK_STAGES  # deepseek: shares of the steps after which a cosine goes down to a
    # tenth of the peak, has arrived there, and gives way to min_lr

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "schedule.warmup_steps", "0 or more", self.warmup_steps)
        require(self.min_lr >= 0, "schedule.min_lr", "0 or more", self.min_lr)
        share = self.decay_share
        require(0 < share <= 1, "schedule.decay_share", "above 0, at most 1", share)
        is_rising = len(self.stages) == 3 and list(self.stages) == sorted({*self.stages, 0.0, 1.0})[1:-1]
        require(is_rising, "schedule.stages", "three rising numbers between 0 and 1", list(self.stages))

    def rate(self, step: int, *, peak: float, steps: int) -> float:
        """Learning rate of update `step` of so many, counted from 0."""
        return learning_rate(
            step,
            peak=peak,
            min_lr=self.min_lr,
            warmup_steps=self.warmup_steps,
            steps=steps,
            kind=self.kind,
            decay=self.decay,
            decay_share=self.decay_share,
            stages=self.stages,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """[train]: how long, how much at a time, how often to look."""

    steps: int  # optimizer updates
    global_batch: int  # rows of one update
    seq_len: int  # positions of a row
    micro_batch: int | None = None  # rows of one forward on each rank; unset: all of its share. Fewer take less memory
    batch_start: int | None = None  # rows of the first updates, in whole microbatches; unset: global_batch at once
    batch_warmup_steps: int = 0  # updates over which they grow to global_batch
    max_minutes: float | None = None  # training ends there, evaluation included, the rate down by then; unset: none
    log_every: int = 10  # updates between lines of metrics.jsonl
    eval_every: int = 500  # updates between evaluations; the last update is always evaluated
    eval_rows: int | None = None  # evenly spread rows of an evaluation, the last excepted; unset: all
    checkpoint_every: int = 500  # updates between checkpoints; the last update always has one
    keep_checkpoints: int = 2  # newest ones that stay on disk
    keep_best: int = 1  # checkpoints of the least validation loss that stay as well; 0: none
    checkpoint_async: bool = True  # written beside the training, from a copy of weights and optimizer in CPU memory
    attention: Literal["stream", "documents"] = "stream"  # what a position of a row reads: all before it, or its own
    # document alone, whose positions then begin at 0. Further tokens are never taught across a document's end
    mtp_weight: float = 0.3  # of the further tokens' loss, where the model predicts some
    balance_weight: float = 1e-4  # of the experts' balance in each sequence
    bias_speed: float = 1e-3  # by which a router's biases move after each update, towards equal load
    z_loss: float = 0.0  # weight of the mean log²Z of the next token's logits, which holds them near 0; 1e-4 is usual
    ema: float | None = None  # decay of the weights' running mean, which is evaluated and saved beside them; 0.999:
    # of about the last thousand updates. Unset: none
    is_ema_corrected: bool = True  # the mean begins with the first update, not with the random weights before it

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "global_batch",
            "seq_len",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            require(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        for name in ("global_batch", "seq_len"):
            require(getattr(self, name) < 2**31, f"train.{name}", f"at most {2**31 - 1}", getattr(self, name))
        for name in ("keep_best", "mtp_weight", "balance_weight", "bias_speed", "z_loss"):
            require(getattr(self, name) >= 0, f"train.{name}", "0 or more", getattr(self, name))
        require(self.eval_rows is None or self.eval_rows >= 1, "train.eval_rows", "at least 1", self.eval_rows)
        require(self.ema is None or 0 < self.ema < 1, "train.ema", "between 0 and 1", self.ema)
        require(self.max_minutes is None or self.max_minutes > 0, "train.max_minutes", "positive", self.max_minutes)
        if self.micro_batch is not None and (self.micro_batch < 1 or self.global_batch % self.micro_batch):
            small = [d for d in range(1, math.isqrt(self.global_batch) + 1) if self.global_batch % d == 0]
            divisors = [*small, *(self.global_batch // d for d in reversed(small))]
            nearest = min(divisors, key=lambda d: abs(d - (self.micro_batch or 0)))
            got = f"got {self.micro_batch}; hint: train.micro_batch={nearest}"
            raise ValueError(f"train.micro_batch must divide train.global_batch ({self.global_batch}), {got}")

        self._check_growth()

    def rows(self, data_size: int = 1) -> int:
        """Rows of one forward on each of `data_size` ranks that read different ones.

        Raises: ValueError when the global batch cannot be divided among them.
        """
        micro = self.micro_batch or max(self.global_batch // data_size, 1)
        if self.global_batch % (micro * data_size):
            below = max(self.global_batch // (micro * data_size), 1) * micro * data_size
            ranks = f"{data_size} ranks that read {micro} rows at a time"
            got = f"got {self.global_batch}; hint: train.global_batch={below}"
            raise ValueError(f"train.global_batch must be a multiple of {micro * data_size}, for {ranks}, {got}")
        if self.batch_start is not None and self.batch_start % (micro * data_size):
            above = -(-self.batch_start // (micro * data_size)) * micro * data_size
            got = f"got {self.batch_start}; hint: train.batch_start={above}"
            raise ValueError(f"train.batch_start must be a multiple of {micro * data_size}, for {data_size} ranks that "
                             f"read {micro} rows at a time, {got}")  # fmt: skip
        return micro

    def accumulation(self, data_size: int = 1) -> int:
        """Forwards of each rank in an update, once the batch has grown."""
        return self.global_batch // (self.rows(data_size) * data_size)

    def microbatches_before(self, step: int, data_size: int = 1) -> int:
        """Forwards of each rank in all updates before `step`."""
        return self.rows_before(step, data_size=data_size) // (self.rows(data_size) * data_size)

    def rows_at(self, step: int, *, data_size: int = 1) -> int:
        """Rows of update `step`, counted from 0, over all ranks."""
        return batch_rows(step, **self._growth(data_size))

    def rows_before(self, step: int, *, data_size: int = 1) -> int:
        """Rows of all updates before `step`."""
        return rows_before(step, **self._growth(data_size))

    def _growth(self, data_size: int) -> dict[str, int]:
        start, unit = self.batch_start or self.global_batch, self.rows(data_size) * data_size
        return {"start": start, "full": self.global_batch, "warmup_steps": self.batch_warmup_steps, "unit": unit}

    def _check_growth(self) -> None:
        require(self.batch_warmup_steps >= 0, "train.batch_warmup_steps", "0 or more", self.batch_warmup_steps)
        if bool(self.batch_start) != bool(self.batch_warmup_steps):
            raise ValueError("train.batch_start and train.batch_warmup_steps belong together, got one of them")
        if self.batch_start is None:
            return
        unit = self.micro_batch or self.global_batch
        if not 0 < self.batch_start <= self.global_batch or self.batch_start % unit:
            expected = f"a multiple of train.micro_batch ({unit}) and at most train.global_batch ({self.global_batch})"
            raise ValueError(
                f"train.batch_start must be {expected}, got {self.batch_start}; hint: smaller microbatches"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How many ranks stand along each dimension of the mesh; their product is all of them."""

    replicate: int = 1  # hold the same weights and read different rows
    shard: int = 1  # hold a part of each weight each and read different rows
    expert: int = 1  # hold different routed experts and read different rows
    tensor: int = 1  # hold a part of each matrix and read the same rows


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelSettings:
    """[parallel]: how the ranks that torchrun starts share the work; one process needs nothing of it."""

    data: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"  # ddp: whole weights on each rank; fsdp: a part of them each;
    # hsdp: parts inside groups of `shard` ranks, groups alike. auto: ddp, or with `shard` fsdp or hsdp
    shard: int | None = None  # ranks that share the weights; unset: all for fsdp, those of a machine for hsdp
    expert: int = 1  # ranks that share the routed experts
    tensor: int = 1  # ranks that share each matrix, heads and inner widths
    timeout_s: float = 600.0  # seconds after which a rank that does not come or answer ends the run

    def __post_init__(self) -> None:
        for name in ("expert", "tensor"):
            require(getattr(self, name) >= 1, f"parallel.{name}", "at least 1", getattr(self, name))
        require(self.shard is None or self.shard >= 1, "parallel.shard", "at least 1", self.shard)
        require(self.timeout_s > 0, "parallel.timeout_s", "positive", self.timeout_s)
        if self.data == "ddp" and (self.shard or 1) > 1:
            raise ValueError(f"parallel.data=ddp shares no weights, got parallel.shard={self.shard}; hint: hsdp")

    def sizes(self, world_size: int, *, per_machine: int) -> Sizes:
        """Returns the mesh of so many ranks, `per_machine` of them on each machine.

        Raises: ValueError when the ranks cannot be divided so.
        """
        inner = self.expert * self.tensor
        if world_size % inner:
            got = f"got {world_size}; hint: torchrun --nproc-per-node {inner * -(-world_size // inner)}"
            raise ValueError(f"parallel.expert · parallel.tensor ({inner}) must divide the number of ranks, {got}")
        outer = world_size // inner
        shard = self.shard or {"fsdp": outer, "hsdp": max(per_machine // inner, 1)}.get(self.data, 1)
        if outer % shard or (self.data == "fsdp" and shard != outer):
            expected = f"the {outer} ranks that read different rows with the same experts"
            verb = "be" if self.data == "fsdp" else "divide"
            raise ValueError(f"parallel.shard must {verb} {expected}, got {shard}; hint: parallel.shard={outer}")
        return Sizes(replicate=outer // shard, shard=shard, expert=self.expert, tensor=self.tensor)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardSettings:
    """[guard]: what becomes of an update that cannot be trusted. "skip" leaves it out, "rollback" also takes the run
    back to its newest checkpoint and past the rows since, "stop" ends the run, "tell" makes it and says so.
    """

    nonfinite: Literal["skip", "rollback", "stop"] = "skip"  # loss or gradient that is no number: one bad row, mostly
    spike: Literal["off", "tell", "skip", "rollback", "stop"] = "tell"  # loss far above those before
    spike_sigmas: float = 6.0  # standard deviations above the mean; noise alone has 6 once in 10⁹ updates
    spike_window: int = 100  # updates over which mean and deviation run
    spike_warmup: int = 200  # updates before the first spike
    max_in_a_row: int = 10  # updates left out one after the other, then the run ends: its weights are no good
    max_rollbacks: int = 3  # to the same checkpoint, then the run ends

    def __post_init__(self) -> None:
        require(self.spike_sigmas > 0, "guard.spike_sigmas", "positive", self.spike_sigmas)
        for name, least in (("spike_window", 2), ("spike_warmup", 2), ("max_in_a_row", 1), ("max_rollbacks", 1)):
            require(getattr(self, name) >= least, f"guard.{name}", f"at least {least}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """A pre-training run, from raw text to a trained model."""

    run: RunSettings
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    model: ModelSettings
    optim: OptimSettings
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    guard: GuardSettings = GuardSettings()
    parallel: ParallelSettings = ParallelSettings()
    sample: SampleSettings = field(default_factory=SampleSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        if self.schedule.min_lr > self.optim.lr:
            raise ValueError(f"schedule.min_lr must be at most optim.lr ({self.optim.lr}), got {self.schedule.min_lr}")
        if self.schedule.kind == "deepseek" and not 0 < self.schedule.min_lr <= self.optim.lr / 10:
            got = f"got {self.schedule.min_lr}; hint: schedule.min_lr={self.optim.lr / 30:.2g}"
            raise ValueError(f"schedule.min_lr must be above 0 and at most a tenth of optim.lr for deepseek, {got}")
        model = self.model.resolve(vocab_size=self.tokenizer.vocab_size, seq_len=self.train.seq_len)
        if model.position_limit is not None and self.train.seq_len > model.position_limit:
            got = f"got {self.train.seq_len}; hint: model.max_seq_len={self.train.seq_len}"
            raise ValueError(f"train.seq_len must fit the {model.position_limit} learned positions, {got}")
        if self.train.seq_len <= model.n_mtp_layers:
            got = f"got {self.train.seq_len}; hint: train.seq_len={model.n_mtp_layers + 1}"
            raise ValueError(f"train.seq_len must exceed the {model.n_mtp_layers} further tokens predicted, {got}")
        if self.optim.in_backward:
            self._check_in_backward()
        if self.speed.cuda_graphs:
            self._check_graphs(model)
        memory.check_split(model, expert=self.parallel.expert, tensor=self.parallel.tensor)
        if self.data.is_prepared and not self.tokenizer.path:
            key = "data.train" if self.data.train else "data.mixture"
            raise ValueError(
                f"{key} needs the tokenizer that prepared it, got none; hint: tokenizer.path=tokenizer.json"
            )

    def _check_in_backward(self) -> None:
        """Refuses what needs all gradients at once, and what makes them all at once."""
        if (n := self.train.accumulation()) > 1:
            got = f"got {n}; hint: train.micro_batch={self.train.global_batch} or a smaller train.global_batch"
            raise ValueError(f"optim.in_backward needs one microbatch for an update, {got}")
        if self.log.stats_every:
            expected = "optim.in_backward frees the gradients that log.stats_every looks at"
            raise ValueError(f"{expected}, got log.stats_every={self.log.stats_every}; hint: log.stats_every=0")
        if self.run.compile and self.speed.compile == "whole":
            expected = (
                "optim.in_backward needs gradients one after the other, and speed.compile=whole makes all at once"
            )
            raise ValueError(f"{expected}, got both; hint: speed.compile=blocks, without speed.cuda_graphs")

    def _check_graphs(self, model: ModelConfig) -> None:
        """What is read between updates must not lie in a graph's memory: gradients, loads, further losses."""
        if not (self.run.compile and self.speed.compile == "whole"):
            got = f"got run.compile={self.run.compile}, speed.compile={self.speed.compile}"
            raise ValueError(f"speed.cuda_graphs needs run.compile=true and speed.compile=whole, {got}".lower())
        if (n := self.train.accumulation()) > 1:
            raise ValueError(f"speed.cuda_graphs needs one microbatch for an update, got {n}")
        if model.n_routed_experts or model.n_mtp_layers:
            got = f"got {model.n_routed_experts} experts and {model.n_mtp_layers} further tokens"
            raise ValueError(f"speed.cuda_graphs needs a dense model without further tokens, {got}")


def load(source: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Returns the run that a config file describes, by name or path, after `section.key=value` overrides."""
    return config.load(PretrainConfig, source, overrides)
