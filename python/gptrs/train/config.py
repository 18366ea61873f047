"""Settings of a training run: optimizer, schedule, loop, and what must hold between all sections. No torch here.

A config says what to compute, never where: the same file trains on the CPU and on CUDA. Keys that are unset (None)
follow from others, as their comments say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptrs import config
from gptrs.train.settings import DataSettings, ModelSettings, RunSettings, SampleSettings, TokenizerSettings, require


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimSettings:
    """[optim]: AdamW."""

    lr: float  # peak learning rate
    weight_decay: float = 0.1  # on matrices and embeddings only (ndim ≥ 2)
    betas: tuple[float, ...] = (0.9, 0.95)  # decay of the two moments; 0.99 for the second suits small batches
    clip: float = 1.0  # largest norm of the whole gradient; 0: no clipping
    eps: float = 1e-8  # added to the root of the second moment

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "positive", self.lr)
        require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(is_pair, "optim.betas", "two numbers from 0 to below 1", list(self.betas))
        require(self.clip >= 0, "optim.clip", "0 (no clipping) or more", self.clip)
        require(self.eps > 0, "optim.eps", "positive", self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """[schedule]: linear warm-up, then a cosine to min_lr at the last step or at train.max_minutes, if earlier."""

    warmup_steps: int = 100  # updates until the peak
    min_lr: float = 0.0  # learning rate of the last update; a tenth of the peak is usual

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, "schedule.warmup_steps", "0 or more", self.warmup_steps)
        require(self.min_lr >= 0, "schedule.min_lr", "0 or more", self.min_lr)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """[train]: how long, how much at a time, how often to look."""

    steps: int  # optimizer updates
    global_batch: int  # rows of one update
    seq_len: int  # positions of a row
    micro_batch: int | None = None  # rows of one forward; unset: global_batch. Fewer take less memory
    max_minutes: float | None = None  # training ends there, evaluation included, the rate down by then; unset: none
    log_every: int = 10  # updates between lines of metrics.jsonl
    eval_every: int = 500  # updates between evaluations; the last update is always evaluated
    eval_rows: int | None = None  # evenly spread rows of an evaluation, the last excepted; unset: all
    checkpoint_every: int = 500  # updates between checkpoints; the last update always has one
    keep_checkpoints: int = 2  # newest ones that stay on disk
    attention: Literal["stream", "documents"] = "stream"  # what a position of a row reads: all before it, or its own
    # document alone, whose positions then begin at 0. Further tokens are never taught across a document's end
    mtp_weight: float = 0.3  # of the further tokens' loss, where the model predicts some
    balance_weight: float = 1e-4  # of the experts' balance in each sequence
    bias_speed: float = 1e-3  # by which a router's biases move after each update, towards equal load

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
        for name in ("mtp_weight", "balance_weight", "bias_speed"):
            require(getattr(self, name) >= 0, f"train.{name}", "0 or more", getattr(self, name))
        require(self.eval_rows is None or self.eval_rows >= 1, "train.eval_rows", "at least 1", self.eval_rows)
        require(self.max_minutes is None or self.max_minutes > 0, "train.max_minutes", "positive", self.max_minutes)
        if self.micro_batch is not None and (self.micro_batch < 1 or self.global_batch % self.micro_batch):
            divisors = [d for d in range(1, self.global_batch + 1) if self.global_batch % d == 0]
            nearest = min(divisors, key=lambda d: abs(d - (self.micro_batch or 0)))
            got = f"got {self.micro_batch}; hint: train.micro_batch={nearest}"
            raise ValueError(f"train.micro_batch must divide train.global_batch ({self.global_batch}), {got}")

    @property
    def accumulation(self) -> int:
        """Microbatches of one update."""
        return self.global_batch // (self.micro_batch or self.global_batch)


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
    guard: GuardSettings = GuardSettings()
    sample: SampleSettings = field(default_factory=SampleSettings)

    def __post_init__(self) -> None:
        if self.schedule.min_lr > self.optim.lr:
            raise ValueError(f"schedule.min_lr must be at most optim.lr ({self.optim.lr}), got {self.schedule.min_lr}")
        model = self.model.resolve(vocab_size=self.tokenizer.vocab_size, seq_len=self.train.seq_len)
        if model.position_limit is not None and self.train.seq_len > model.position_limit:
            got = f"got {self.train.seq_len}; hint: model.max_seq_len={self.train.seq_len}"
            raise ValueError(f"train.seq_len must fit the {model.position_limit} learned positions, {got}")
        if self.train.seq_len <= model.n_mtp_layers:
            got = f"got {self.train.seq_len}; hint: train.seq_len={model.n_mtp_layers + 1}"
            raise ValueError(f"train.seq_len must exceed the {model.n_mtp_layers} further tokens predicted, {got}")
        if self.data.is_prepared and not self.tokenizer.path:
            key = "data.train" if self.data.train else "data.mixture"
            raise ValueError(
                f"{key} needs the tokenizer that prepared it, got none; hint: tokenizer.path=tokenizer.json"
            )


def load(source: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Returns the run that a config file describes, by name or path, after `section.key=value` overrides."""
    return config.load(PretrainConfig, source, overrides)
