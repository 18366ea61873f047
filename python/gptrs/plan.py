"""A model's plan: what it counts, computes, stores and costs, before anything of it is built. No torch here.

    preset + settings ─▶ config ─count, memory─▶ plan: plain values, as JSON has them

The plan is one dictionary whose keys stay; the tables and the picture of `plan_view` read it and know nothing more.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptrs import config as settings
from gptrs.model import count, memory
from gptrs.model.config import ModelConfig

_SEQ_LEN = 4096  # the longest context that a plan takes by itself
_OUTSIDE = "outside"  # of the layers: embeddings, last norm, head


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How many ranks share a model, and what each takes at a time."""

    data: int = 1  # whole copies of all but routed experts are data × expert
    expert: int = 1  # divides routed experts
    tensor: int = 1  # divides matrices
    micro_batch: int = 1  # sequences in one forward pass of a rank

    @property
    def world(self) -> int:
        """All ranks."""
        return self.data * self.expert * self.tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A run whose time and cost are asked for."""

    tokens: float  # that it trains on
    gpus: int
    peak_tflops: float  # of one GPU, dense, in the type that most products have: 989 for bfloat16 on an H100
    mfu: float  # share of the peak that a run reaches
    price: float | None = None  # of a GPU's hour, in any currency

    def __post_init__(self) -> None:
        for name in ("tokens", "gpus", "peak_tflops"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu must be above 0 and at most 1, got {self.mfu!r}; hint: 0.4 is 40 %")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"price must be 0 or more, got {self.price!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sections:
    model: ModelConfig


def find(preset: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """The preset with `key=value` put in.

    Raises: ValueError for an unknown name, naming the nearest, or a value that does not fit.
    """
    base = ModelConfig.preset(preset)
    values: dict[str, Any] = {"model": {}}
    for text in overrides:
        if "=" not in text.removeprefix("="):
            raise ValueError(f"expected key=value, got {text!r}; hint: n_layers=4")
        values = settings.override(_Sections, values, [text if text.startswith("model.") else f"model.{text}"])
    for name, value in values["model"].items():  # types first: the config's own checks expect them
        example = getattr(base, name)
        kinds = (int, float) if isinstance(example, float) else type(example)
        if not isinstance(value, kinds) or isinstance(value, bool) is not isinstance(example, bool):
            raise ValueError(f"expected {name} of the kind of {example!r}, got {value!r}")
    return ModelConfig.preset(preset, **values["model"])


def make(
    config: ModelConfig,
    *,
    name: str = "",
    seq_len: int | None = None,
    split: Split | None = None,
    training: Training | None = None,
    is_released: bool = False,
) -> dict[str, Any]:
    """The plan as plain values.

    Args: seq_len: context of FLOPs and activations, by default max_seq_len, at most 4096; is_released: with the files'
        size in DeepSeek-V3's form.
    Raises: ValueError when the model has no such context, split or form.
    """
    T = min(config.max_seq_len, _SEQ_LEN) if seq_len is None else seq_len
    if T < 1 or (config.position_limit is not None and config.position_limit < T):
        raise ValueError(f"seq_len must be from 1 to max_seq_len ({config.max_seq_len}), got {T}")
    split = split or Split()
    flops = _flops(config, T)
    return {
        "preset": name,
        "config": dataclasses.asdict(config),
        "parameters": _parameters(config),
        "layers": _layers(config),
        "flops_per_token": flops,
        "cache": [dataclasses.asdict(kind) for kind in memory.cache_kinds(config)],
        "rank": _rank(config, T, split),
        "training": None if training is None else _training(training, flops["training"]),
        "released": _released(config) if is_released else None,
    }


def check(config: ModelConfig) -> dict[str, Any]:
    """Builds the model on the meta device, without its memory, and holds its tensors against the formulas.

    Returns: n_tensors, and differences as lines, none when all agree.
    """
    import torch

    from gptrs.model.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(config)
    expected = {(p.name, p.is_trainable): p.n_params for p in count.parameters(config) if p.n_params}
    found = {(p.name, p.is_trainable): p.n_params for p in count.of_model(model)}
    layers = {layer: sum(parts.values()) for layer, parts in count.by_layer(config).items()}
    built = count.layers_of_model(model)
    pairs = [
        (f"{n}{'' if t else ', frozen'}", expected.get((n, t), 0), found.get((n, t), 0)) for n, t in expected | found
    ]
    pairs += [(f"layer {n or _OUTSIDE}", layers.get(n, 0), built.get(n, 0)) for n in layers | built]
    differences = [
        f"{name}: {formula:,} by formula, {tensors:,} built" for name, formula, tensors in pairs if formula != tensors
    ]
    return {"n_tensors": sum(1 for _ in model.parameters()), "differences": differences}


def _parameters(config: ModelConfig) -> dict[str, Any]:
    found = count.totals(config)
    parts = [dataclasses.asdict(part) | {"share": part.n_params / found.total} for part in count.parameters(config)]
    return {"parts": parts, "total": found.total} | dataclasses.asdict(found)


def _layers(config: ModelConfig) -> list[dict[str, Any]]:
    return [
        {"layer": layer or _OUTSIDE, "parts": parts, "n_params": sum(parts.values())}
        for layer, parts in sorted(count.by_layer(config).items(), key=lambda item: item[0] != "")
    ]


def _flops(config: ModelConfig, seq_len: int) -> dict[str, int]:
    main = count.flops_per_token(config, seq_len)
    attention = config.n_layers * count.attention_flops(config, seq_len)
    return {
        "seq_len": seq_len,
        "parameters": main - attention,
        "attention": attention,
        "main": main,
        "main_causal_halved": main - attention // 2,
        "training": count.flops_per_token(config, seq_len, has_further=True),
    }


def _rank(config: ModelConfig, seq_len: int, split: Split) -> dict[str, Any]:
    found = memory.rank(
        config,
        data=split.data,
        expert=split.expert,
        tensor=split.tensor,
        seq_len=seq_len,
        micro_batch=split.micro_batch,
    )
    sums = {"total": found.total, "total_checkpointed": found.total_checkpointed}
    kept = dataclasses.asdict(memory.activations(config, tensor=split.tensor))
    sizes = dataclasses.asdict(split) | {"world": split.world}
    return {"split": sizes, "activation_bytes_per_token": kept} | dataclasses.asdict(found) | sums


def _training(training: Training, flops_per_token: int) -> dict[str, Any]:
    seconds = training.tokens * flops_per_token / (training.peak_tflops * 1e12 * training.mfu)  # of one GPU
    gpu_hours = seconds / 3600
    if not 0 < gpu_hours < math.inf:
        raise ValueError(f"expected tokens and peak_tflops of a run that ends, got {gpu_hours} GPU hours")
    return dataclasses.asdict(training) | {
        "flops": training.tokens * flops_per_token,
        "tokens_per_s": training.tokens / seconds * training.gpus,
        "gpu_hours": gpu_hours,
        "hours": gpu_hours / training.gpus,
        "cost": None if training.price is None else gpu_hours * training.price,
    }


def _released(config: ModelConfig) -> dict[str, int]:
    found = memory.released(config)
    return dataclasses.asdict(found) | {"total": found.total, "n_bytes": found.n_bytes}
