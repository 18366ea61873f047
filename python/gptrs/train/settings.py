"""The sections of a config that say what is trained, on what, and what is told of it. No torch here.

How it is trained stands in `config`. Keys that are unset (None) follow from others, as their comments say.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gptrs.model.config import ModelConfig


def require(is_valid: bool, key: str, expected: str, got: object) -> None:
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
    compile: bool = False  # torch.compile of what speed.compile says: pays on long CUDA runs
    threads: int = 0  # CPU threads; 0: all cores. Bit-equal losses on the CPU need the same number
    deterministic: bool = False  # CUDA sums in one order too: the same bits twice, slower; the CPU always does

    def __post_init__(self) -> None:
        require(self.name not in ("", ".", "..") and "/" not in self.name, "run.name", "a file name", self.name)
        require(0 <= self.threads <= 1024, "run.threads", "0 (all cores) to 1024", self.threads)
        require(0 <= self.seed < 2**63, "run.seed", "from 0 to 2**63 - 1", self.seed)

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.dir) if self.dir else Path("runs") / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSettings:
    """[speed]: what makes an update faster or smaller and changes nothing but rounding; what each gained
    is in docs/log.md."""

    tf32: bool = False  # products of fp32 on CUDA with factors of 10 bits; helps where run.dtype is fp32
    compile: Literal["blocks", "whole"] = "blocks"  # what run.compile compiles: one block for all of its kind, or loss
    # and backward as one, which starts more slowly the deeper the model is
    activation_budget: float | None = None  # share of what run.compile would keep for the backward pass; the rest, what
    # costs least, is computed again; unset: 0.9 on the CPU, where that is as fast, else all
    checkpoint_blocks: int = 0  # every n-th block keeps its input alone and runs again backward; 1: all, 0: none
    vocab_multiple: int | None = None  # the loss fills the head's rows up to it; unset: 128 on CUDA, else 1 (as it is)
    cuda_graphs: bool = False  # an update's kernels recorded and started at once; dense models, one microbatch
    fp8: bool = False  # products of the blocks in 8 bits, training alone; pays from about a billion parameters

    def __post_init__(self) -> None:
        require(self.checkpoint_blocks >= 0, "speed.checkpoint_blocks", "0 (none) or more", self.checkpoint_blocks)
        budget = self.activation_budget
        require(budget is None or 0 <= budget <= 1, "speed.activation_budget", "from 0 to 1", budget)
        is_multiple = self.vocab_multiple is None or 1 <= self.vocab_multiple <= 1 << 16
        require(is_multiple, "speed.vocab_multiple", f"from 1 to {1 << 16}", self.vocab_multiple)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """[data]: raw text, which the run splits and prepares itself, or prepared datasets; and how rows come from it."""

    text: tuple[str, ...] = ()  # files, folders (*.txt, *.jsonl, *.parquet) or globs to train on and to hold out of
    val_fraction: float = 0.1  # share of the bytes held out: the end of a single file, whole files of several
    text_field: str = "text"  # of a .jsonl line or a .parquet row, or a template of several: "{title}: {text}"
    train: str | None = None  # prepared dataset, instead of text
    mixture: tuple[str, ...] = ()  # several prepared datasets that are mixed row by row, instead of train
    weights: tuple[float, ...] = ()  # share of each, of any sum; unset: as they were prepared, else by size
    max_epochs: int | None = None  # times that a row of the mixture may come; unset: any number
    val: str | None = None  # prepared dataset for evaluation, with train or mixture
    pack: Literal["stream", "bestfit"] = "stream"  # documents one after the other across rows, or whole where they fit
    order: Literal["shuffled", "blocks", "sequential"] = "shuffled"  # of rows; blocks: for disks slow at random reads

    def __post_init__(self) -> None:
        require(0 < self.val_fraction < 1, "data.val_fraction", "between 0 and 1", self.val_fraction)
        if self.mixture:
            self._check_mixture()
        elif self.weights or self.max_epochs is not None:
            key = "data.weights" if self.weights else "data.max_epochs"
            raise ValueError(f"{key} belongs to data.mixture, got none; hint: data.mixture=FIRST,SECOND")
        elif bool(self.train) != bool(self.val):
            raise ValueError("data.train and data.val belong together, got one of them")
        if self.text and (self.train or self.mixture):
            key = "data.train" if self.train else "data.mixture"
            raise ValueError(f"data.text and {key} exclude each other, got both; hint: unset one with data.text=")
        if self.train or self.mixture:
            self._check_text_alone("data.train" if self.train else "data.mixture")

    def _check_text_alone(self, key: str) -> None:
        for field in fields(self):
            if field.name in ("val_fraction", "text_field") and getattr(self, field.name) != field.default:
                name, got = f"data.{field.name}", getattr(self, field.name)
                expected = f"{name} is of data.text and says nothing of the prepared {key}"
                raise ValueError(f"{expected}, got {got!r}; hint: unset it with {name}={field.default}")

    def _check_mixture(self) -> None:
        if self.train or not self.val:
            got = "data.train too" if self.train else "none"
            raise ValueError(f"data.mixture needs data.val and no data.train, got {got}; hint: data.val=FOLDER")
        folders = {os.path.realpath(path) for path in self.mixture}  # one folder may have several spellings
        require(len(folders) == len(self.mixture), "data.mixture", "different datasets", list(self.mixture))
        is_fit = not self.weights or (len(self.weights) == len(self.mixture) and min(self.weights) >= 0)
        require(is_fit and sum(self.weights or (1,)) > 0, "data.weights", "a share for each dataset of data.mixture",
                list(self.weights))  # fmt: skip
        require(self.max_epochs is None or self.max_epochs >= 1, "data.max_epochs", "at least 1", self.max_epochs)

    @property
    def is_prepared(self) -> bool:
        """Whether it names prepared datasets."""
        return bool(self.train or self.mixture)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
    """[tokenizer]: an existing one, or what to train on the training text."""

    path: str | None = None  # tokenizer.json, *.tiktoken or a directory; the keys below then say nothing
    vocab_size: int = 4096  # bytes + merges + special tokens; 256 without special tokens is the byte vocabulary
    pattern: str = "gpt2"  # a name (gpt2, cl100k_base, o200k_base, …) or a regex: the pieces that no token crosses
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)  # <|endoftext|> ends each document

    def __post_init__(self) -> None:
        least = 256 + len(self.special_tokens)
        require(
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
    dropout: float | None = None  # probability, in training; unset: 0
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
    rope_mscale: float | None = None  # YaRN: scores grow by (0.1·rope_mscale·ln(rope_factor) + 1)²; unset: 0
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
        """Returns the architecture for a vocabulary and a row length.

        Raises: ValueError for parts that do not fit together, told as those of [model].
        """
        try:
            return self._resolve(vocab_size, seq_len)
        except ValueError as error:
            raise ValueError(f"[model] {error}") from None

    def _resolve(self, vocab_size: int, seq_len: int) -> ModelConfig:
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
class SampleSettings:
    """[sample]: texts that the model continues for samples.txt and the report."""

    prompts: tuple[str, ...] = ("\n",)  # one sample each
    every: int | None = None  # updates between samples; unset: with each evaluation
    max_new_tokens: int | None = None  # unset: 200, or as many as the learned positions leave after the prompts
    temperature: float = 0.8  # 0: the likeliest token always
    top_k: int | None = 200  # only the k likeliest tokens; 0: all; `none`, which TOML cannot write, becomes 0
    top_p: float | None = None  # only the likeliest tokens that hold this probability; unset: all
    min_p: float | None = None  # only tokens at least so many times as likely as the likeliest; unset: all

    def __post_init__(self) -> None:
        require(all(self.prompts), "sample.prompts", "texts that are not empty", list(self.prompts))
        require(self.every is None or self.every >= 1, "sample.every", "at least 1", self.every)
        require(
            self.max_new_tokens is None or self.max_new_tokens >= 1,
            "sample.max_new_tokens",
            "at least 1",
            self.max_new_tokens,
        )
        require(self.temperature >= 0, "sample.temperature", "0 or more", self.temperature)
        if self.top_k is None:
            object.__setattr__(self, "top_k", 0)  # a stored config says what was asked, not what the default is
        require(self.top_k is not None and self.top_k >= 0, "sample.top_k", "0 (all tokens) or more", self.top_k)
        require(self.top_p is None or 0 < self.top_p <= 1, "sample.top_p", "above 0, at most 1", self.top_p)
        require(self.min_p is None or 0 <= self.min_p <= 1, "sample.min_p", "from 0 to 1", self.min_p)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSettings:
    """[log]: what a run tells beside metrics.jsonl, TensorBoard, loss.png and report.html, which are always there."""

    trackers: tuple[Literal["wandb", "trackio", "mlflow"], ...] = ()  # that get the same lines; their own settings
    # (offline, address, account) are in their environment variables
    project: str = "gptrs"  # under which trackers file the run; MLflow calls it experiment
    stats_every: int = 0  # updates between looks at gradients, weights, activations and loads; 0: none
    profile: tuple[int, ...] = ()  # first and last update to trace, as 20,22; empty: none

    def __post_init__(self) -> None:
        require(len(set(self.trackers)) == len(self.trackers), "log.trackers", "different names", list(self.trackers))
        require(self.project != "", "log.project", "a name", self.project)
        require(self.stats_every >= 0, "log.stats_every", "0 (none) or more", self.stats_every)
        is_range = len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]
        require(not self.profile or is_range, "log.profile", "a first and a last update, from 1", list(self.profile))
