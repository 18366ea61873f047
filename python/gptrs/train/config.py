"""Settings of a training run: the sections of a config file and what must hold between them. No torch here.

A config says what to compute, never where: the same file trains on the CPU and on CUDA. Keys that are unset (None)
follow from others, as their comments say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gptrs import config
from gptrs.model.config import ModelConfig


def _require(is_valid: bool, key: str, expected: str, got: object) -> None:
    if not is_valid:
        raise ValueError(f"{key} must be {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """[run]: what the run is called, where it lives and what computes it."""

    name: str  # names the run directory runs/NAME
    dir: str | None = None  # run directory; unset: runs/NAME
    seed: int = 1  # of the weights, the dropout and the order of rows
    beside: str | None = None  # run directory of a finished run that the report shows this one beside
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda when there is one
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of the computation; auto: bf16 on cuda, else fp32
    compile: bool = False  # torch.compile: minutes at the start, pays on long CUDA runs
    threads: int = 0  # CPU threads; 0: all cores. Bit-equal losses on the CPU need the same number

    def __post_init__(self) -> None:
        _require(self.name not in ("", ".", "..") and "/" not in self.name, "run.name", "a file name", self.name)
        _require(self.threads >= 0, "run.threads", "0 (all cores) or more", self.threads)
        _require(0 <= self.seed < 2**63, "run.seed", "from 0 to 2**63 - 1", self.seed)

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.dir) if self.dir else Path("runs") / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """[data]: raw text, which the run splits and prepares itself, or two prepared datasets."""

    text: tuple[str, ...] = ()  # files, folders (*.txt, *.jsonl) or globs to train on and to hold out of
    val_fraction: float = 0.1  # share of the bytes held out: the end of a single file, whole files of several
    text_field: str = "text"  # of a .jsonl line
    train: str | None = None  # prepared dataset, instead of text
    val: str | None = None  # prepared dataset for evaluation, with train

    def __post_init__(self) -> None:
        _require(0 < self.val_fraction < 1, "data.val_fraction", "between 0 and 1", self.val_fraction)
        if bool(self.train) != bool(self.val):
            raise ValueError("data.train and data.val belong together, got one of them")
        if self.text and self.train:
            raise ValueError(
                "data.text and data.train exclude each other, got both; hint: unset one with data.train=none"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
    """[tokenizer]: an existing one, or what to train on the training text."""

    path: str | None = None  # tokenizer.json, *.tiktoken or a directory; the keys below then say nothing
    vocab_size: int = 4096  # bytes + merges + special tokens; 256 without special tokens is the byte vocabulary
    pattern: str = "gpt2"  # a name (gpt2, cl100k_base, o200k_base, …) or a regex: the pieces that no token crosses
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)  # <|endoftext|> ends each document

    def __post_init__(self) -> None:
        least = 256 + len(self.special_tokens)
        _require(
            self.vocab_size >= least, "tokenizer.vocab_size", f"at least {least} (bytes, specials)", self.vocab_size
        )
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ValueError(f"tokenizer.special_tokens must differ, got {list(self.special_tokens)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """[model]: a preset, explicit sizes, or a preset with some of them changed. The vocabulary is the tokenizer's."""

    preset: str | None = None  # gpt2-small, …
    dim: int | None = None  # width of the residual stream
    n_layers: int | None = None  # blocks
    n_heads: int | None = None  # attention heads; must divide dim
    inter_dim: int | None = None  # width inside the feed-forward part; unset: 4 · dim
    max_seq_len: int | None = None  # learned positions; unset: the preset's, else train.seq_len
    position: Literal["learned", "sinusoidal", "rope"] | None = None  # unset: learned
    norm: Literal["layer", "rms"] | None = None  # unset: layer
    feed_forward: Literal["gelu", "swiglu"] | None = None  # unset: gelu
    has_bias: bool | None = None  # of the linear layers; unset: true
    dropout: float | None = None  # share of activations dropped in training; unset: 0
    is_head_tied: bool | None = None  # output projection = token embedding; unset: true
    norm_eps: float | None = None  # unset: 1e-5
    init_std: float | None = None  # of every matrix at the start; unset: 0.02
    scales_residual_init: bool | None = None  # less for matrices that write to the residual stream; unset: true
    n_kv_heads: int | None = None  # unset: as many as n_heads
    kv_lora_rank: int | None = None  # the latent of keys and values; unset: no latent attention
    q_lora_rank: int | None = None  # the latent of the queries; unset: none
    qk_nope_head_dim: int | None = None  # with latent attention: what carries no position,
    qk_rope_head_dim: int | None = None  # what is rotated,
    v_head_dim: int | None = None  # and the values
    rope_theta: float | None = None  # base of the rotation's wavelengths; unset: 10000
    rope_factor: float | None = None  # YaRN: how far the context is stretched; unset: 1
    rope_original_len: int | None = None  # YaRN: the context before; unset: 4096
    rope_beta_fast: float | None = None  # YaRN; unset: 32
    rope_beta_slow: float | None = None  # YaRN; unset: 1
    rope_mscale: float | None = None  # YaRN: how much scores grow; unset: 0
    n_routed_experts: int | None = None  # unset: every layer is dense
    n_activated_experts: int | None = None  # experts of each token
    n_shared_experts: int | None = None  # experts of all tokens; unset: 0
    moe_inter_dim: int | None = None  # width inside an expert
    n_dense_layers: int | None = None  # first layers without experts; unset: 0
    score_func: Literal["sigmoid", "softmax"] | None = None  # of the router; unset: sigmoid
    norm_topk_prob: bool | None = None  # weights of the chosen experts sum to 1; unset: true
    route_scale: float | None = None  # what they are multiplied by; unset: 1
    n_expert_groups: int | None = None  # unset: 1
    n_limited_groups: int | None = None  # groups that a token may choose from; unset: 1
    group_score: Literal["top2", "max"] | None = None  # unset: top2
    n_mtp_layers: int | None = None  # further tokens that are predicted; unset: 0

    def resolve(self, *, vocab_size: int, seq_len: int) -> ModelConfig:
        """Returns the architecture for a vocabulary and a row length."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if (preset := given.pop("preset", None)) is not None:
            return ModelConfig.preset(preset, vocab_size=vocab_size, **given)
        missing = [f"model.{name}" for name in ("dim", "n_layers", "n_heads") if name not in given]
        if missing:
            raise ValueError(f"a model without preset needs {', '.join(missing)}; hint: model.preset=gpt2-small")
        defaults = {"inter_dim": 4 * given["dim"], "max_seq_len": seq_len, "position": "learned"}
        return ModelConfig(vocab_size=vocab_size, **{**defaults, **given})


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimSettings:
    """[optim]: AdamW."""

    lr: float  # peak learning rate
    weight_decay: float = 0.1  # on matrices and embeddings only (ndim ≥ 2)
    betas: tuple[float, ...] = (0.9, 0.95)  # decay of the two moments; 0.99 for the second suits small batches
    clip: float = 1.0  # largest norm of the whole gradient; 0: no clipping
    eps: float = 1e-8  # added to the root of the second moment

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", "positive", self.lr)
        _require(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(is_pair, "optim.betas", "two numbers from 0 to below 1", list(self.betas))
        _require(self.clip >= 0, "optim.clip", "0 (no clipping) or more", self.clip)
        _require(self.eps > 0, "optim.eps", "positive", self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """[schedule]: linear warm-up, then a cosine to min_lr at the last step or at train.max_minutes, if earlier."""

    warmup_steps: int = 100  # updates until the peak
    min_lr: float = 0.0  # learning rate of the last update; a tenth of the peak is usual

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", "0 or more", self.warmup_steps)
        _require(self.min_lr >= 0, "schedule.min_lr", "0 or more", self.min_lr)


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
            _require(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        for name in ("mtp_weight", "balance_weight", "bias_speed"):
            _require(getattr(self, name) >= 0, f"train.{name}", "0 or more", getattr(self, name))
        _require(self.eval_rows is None or self.eval_rows >= 1, "train.eval_rows", "at least 1", self.eval_rows)
        _require(self.max_minutes is None or self.max_minutes > 0, "train.max_minutes", "positive", self.max_minutes)
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
class SampleSettings:
    """[sample]: texts that the model continues for samples.txt and the report."""

    prompts: tuple[str, ...] = ("\n",)  # one sample each
    every: int | None = None  # updates between samples; unset: with each evaluation
    max_new_tokens: int | None = None  # unset: 200, or as many as the learned positions leave after the prompts
    temperature: float = 0.8  # 0: the likeliest token always
    top_k: int | None = 200  # only the k likeliest tokens; unset: all
    top_p: float | None = None  # only the likeliest tokens that hold this probability; unset: all

    def __post_init__(self) -> None:
        _require(all(self.prompts), "sample.prompts", "texts that are not empty", list(self.prompts))
        _require(self.every is None or self.every >= 1, "sample.every", "at least 1", self.every)
        _require(
            self.max_new_tokens is None or self.max_new_tokens >= 1,
            "sample.max_new_tokens",
            "at least 1",
            self.max_new_tokens,
        )
        _require(self.temperature >= 0, "sample.temperature", "0 or more", self.temperature)
        _require(self.top_k is None or self.top_k >= 1, "sample.top_k", "at least 1", self.top_k)
        _require(self.top_p is None or 0 < self.top_p <= 1, "sample.top_p", "above 0, at most 1", self.top_p)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """A pre-training run, from raw text to a trained model."""

    run: RunSettings
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings
    optim: OptimSettings
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings
    sample: SampleSettings = SampleSettings()

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
        if self.data.train and not self.tokenizer.path:
            raise ValueError(
                "data.train needs the tokenizer that prepared it, got none; hint: tokenizer.path=tokenizer.json"
            )


def load(source: str | Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Returns the run that a config file describes, by name or path, after `section.key=value` overrides."""
    return config.load(PretrainConfig, source, overrides)
