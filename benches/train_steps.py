"""One process's training steps, ours or transformers', as `bench_train.py` measures them: first step, pace and peak."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from harness import peak_rss_mb

from gptrs.model import ModelConfig, Transformer, count
from gptrs.train import speed
from gptrs.train.distributed import World
from gptrs.train.metrics import cuda_peak
from gptrs.train.optim import adamw, clip
from gptrs.train.settings import SpeedSettings
from gptrs.train.spread import Spread

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def steps_child(text: str) -> dict[str, Any]:
    """The first step with its compilation, then steps in repeats: forward, backward, clip to 1.0, fused AdamW."""
    plan = json.loads(text)
    device, rows = torch.device(plan["device"]), plan["rows"]
    config = config_of(plan["shape"])
    seq_len = min(config.max_seq_len, 1024)
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(0))
    tokens = (tokens % 64).to(device)  # some are frequent, which can be learned
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    one_step = (peer_step if plan["given"].get("peer") else our_step)(config, plan["given"], device)

    def timed(n: int) -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(n):
            value = one_step(*batch)
        return float(value), time.perf_counter() - start  # float waits for the device

    first, start_s = timed(1)
    timed(min(3, plan["n_steps"]))
    reset_peak(device.type)
    found = [timed(plan["n_steps"]) for _ in range(plan["n_repeats"])]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"first_loss": first, "last_loss": found[-1][0], "start_s": start_s, "n_tokens": rows * seq_len,
            "steps_per_s": [plan["n_steps"] / seconds for _, seconds in found], "device": name,
            "peak_mb": peak(device.type) * 1e3, "mfu_of": cuda_peak(name),
            "flops_per_token": count.flops_per_token(config, seq_len, has_further=True)}  # fmt: skip


def config_of(shape: dict[str, Any]) -> ModelConfig:
    """A preset with some of its sizes changed."""
    return ModelConfig.preset(shape["preset"], **{key: value for key, value in shape.items() if key != "preset"})


def our_step(config: ModelConfig, given: dict[str, Any], device: torch.device) -> Any:
    """What fit() does in an update, with the settings given."""
    model = Transformer(config, seed=0).to(device).train()
    names = ("tf32", "checkpoint_blocks", "vocab_multiple", "cuda_graphs", "fp8")
    settings = SpeedSettings(**{name: given[name] for name in names if name in given})
    speed.prepare(model, settings, device=device)
    kind, mode = given.get("compile"), "reduce-overhead" if given.get("cuda_graphs") else None
    spread = Spread(model, World.alone(device), dtype=DTYPES[given["dtype"]], is_compiled=kind is not None,
                    is_whole=kind == "whole", mode=mode)  # fmt: skip
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)

    def loss_fn(m: Any, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = m.loss(tokens, targets)
        return value

    def one_step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = spread.loss(loss_fn, tokens, targets)
        value.backward()
        kept = value.detach().clone()
        clip(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return kept

    return one_step


def peer_step(config: ModelConfig, given: dict[str, Any], device: torch.device) -> Any:
    """transformers' GPT-2 as its users train it: fp32 weights under autocast, compiled with its loss, fused AdamW."""
    torch.manual_seed(0)
    model = gpt2_of_transformers(config).to(device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=DTYPES[given["dtype"]]):
            logits = model(tokens).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    run = torch.compile(loss_of, dynamic=False) if given.get("compile") else loss_of

    def one_step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = run(tokens, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return one_step


def gpt2_of_transformers(config: ModelConfig) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.dim,
                   n_layer=config.n_layers, n_head=config.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                   use_cache=False, bos_token_id=0, eos_token_id=0)
    ).train()  # fmt: skip


def reset_peak(device: str) -> float:
    """Forgets the peak of memory and returns what is in use, in GB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e9
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss_mb() / 1e3


def peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else peak_rss_mb() / 1e3
