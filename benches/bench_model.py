"""Training steps and decoding against transformers' models: same sizes, batches and threads, in turn.

    python benches/bench_model.py                                   # every row, some 20 minutes on 2 cores
    python benches/bench_model.py --only decode --rounds 3
    python benches/bench_model.py --only speculative                # trains its model first, some minutes, once
    python benches/bench_model.py --device cuda                     # the same on a GPU
    python benches/bench_model.py measure step-deepseek gptrs cpu   # one engine once: what every round runs, as JSON

CPU rows have 4 layers of the preset's widths, B 4, T 512, fp32, 2 threads. transformers runs with SDPA in its default
mode for experts, as it is and compiled. "In backward" is compiled, with AdamW inside the backward pass. Peak memory is
what the process grew by behind its imports. CUDA rows have all layers of the preset, B 8 and T 1,024 in bf16: steps
with float32 weights, ours rounded in the graph and transformers' by autocast, the others with bf16 weights; peak memory
is that of torch's allocator.
"""

import dataclasses
import json
import resource
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from harness import arguments, child, record, summary

# Rows, positions and layers of a step by device; 0 layers are the preset's.
STEPS = {"cpu": (4, 512, 4), "cuda": (8, 1024, 0)}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
DECODE_BATCH, DECODE_CACHED, DECODE_TOKENS = 8, 8192, 8
GENERATED, GENERATE_PROMPT = 64, 64
SPECULATED, SPECULATE_STEPS = 200, 550
TRAINED = Path(__file__).parent.parent / "runs" / "bench-speculative"
THREADS = 2
PRESETS = {"step-deepseek": "deepseek-small", "step-gpt2": "gpt2-small"}
TASKS = {
    "step-deepseek": "training step of deepseek-small, 4 layers, B 4, T 512, fp32, 2 threads",
    "step-gpt2": "training step of gpt2-small, 4 layers, B 4, T 512, fp32, 2 threads",
    "experts": "forward and backward of deepseek-small's experts (4 + 1 of 33), or a dense layer of their FLOPs",
    "decode": "one new token through an MLA layer of deepseek-v2-lite, batch 8, 8,192 cached, fp32, 2 threads",
    "generate-1": "64 new tokens behind 64, deepseek-small, 4 layers, batch 1, fp32, 2 threads",
    "generate-16": "64 new tokens behind 64, deepseek-small, 4 layers, batch 16, fp32, 2 threads",
    "speculative": "200 new tokens, deepseek-tiny after 550 steps on Python's source, batch 1, greedy, fp32, 2 threads",
}
CUDA_TASKS = {
    "step-deepseek": "training step of deepseek-small, B 8, T 1,024, bf16, CUDA",
    "step-gpt2": "training step of gpt2-small, B 8, T 1,024, bf16, CUDA",
    "experts": "forward and backward of deepseek-small's experts (4 + 1 of 33), or a dense layer of their FLOPs, CUDA",
    "decode": "one new token through an MLA layer of deepseek-v2-lite, batch 8, 8,192 cached, bf16, CUDA",
    "generate-1": "64 new tokens behind 64, deepseek-small, batch 1, bf16, CUDA",
    "generate-16": "64 new tokens behind 64, deepseek-small, batch 16, bf16, CUDA",
    "speculative": "200 new tokens, deepseek-tiny after 550 steps on Python's source, batch 1, greedy, CUDA",
}
ENGINES = {
    "step-deepseek": ("gptrs", "gptrs compiled", "gptrs in backward", "transformers", "transformers compiled"),
    "step-gpt2": ("gptrs", "gptrs compiled", "transformers", "transformers compiled"),
    "experts": ("gptrs", "dense layer"),
    "decode": ("gptrs", "transformers"),
    "generate-1": ("gptrs", "gptrs compiled"),
    "generate-16": ("gptrs", "gptrs compiled"),
    "speculative": ("gptrs", "gptrs 1 draft", "gptrs 2 drafts", "gptrs 3 drafts"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), help="these tasks")
    parser.add_argument("--engines", nargs="+", help="these engines, by default all of a task")
    parser.add_argument("--device", choices=list(STEPS), default="cpu", help="where the rows are measured")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    texts = TASKS if options.device == "cpu" else CUDA_TASKS
    for task in options.only:
        if task == "speculative":
            train_drafts()
        rounds: dict[str, list[dict[str, Any]]] = {
            engine: [] for engine in ENGINES[task] if options.engines is None or engine in options.engines
        }
        for _ in range(options.rounds):
            for engine, results in rounds.items():
                results.append(child(__file__, "measure", task, engine, options.device, threads=THREADS))
        checks = {engine: results[0]["check"] for engine, results in rounds.items()}
        assert max(checks.values()) - min(checks.values()) < 0.05, (
            f"{task}: untrained losses or outputs differ: {checks}"
        )
        for engine, results in rounds.items():
            rate = summary([result["tokens_per_s"] for result in results], 1)
            memory = summary([result["peak_mb"] for result in results], 0)
            record("model", {"task": texts[task], "engine": engine, "threads": THREADS, "check": checks[engine],
                             "tokens_per_s": rate, "peak_mb": memory, **name_of(options.device),
                             **results[0].get("found", {})},
                   packages=["torch", "transformers"])  # fmt: skip


def name_of(device: str) -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}


def finished(device: str) -> float:
    """The time when the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(task: str, engine: str, device: str) -> dict[str, Any]:
    """One engine's tokens per second (median of its steps), peak memory, and the number that all engines must share."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    import transformers  # noqa: F401 - imported by all, so that the memory behind the imports compares

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if task == "speculative":
        return speculate(engine, device)
    if task.startswith("generate"):
        is_compiled = engine.endswith("compiled")
        n_tokens, check, seconds = whole(int(task.removeprefix("generate-")), device, is_compiled=is_compiled)
        return {"tokens_per_s": n_tokens / min(seconds), "check": check, "peak_mb": peak_mb(device, before)}
    if task == "decode":
        n_tokens, check, seconds = decode(engine, device)
    elif task == "experts":
        n_tokens, check, seconds = feed_forward(engine, device)
    else:
        n_tokens, check, seconds = step(PRESETS[task], engine, device)
    seconds = sorted(seconds)
    rate = n_tokens / seconds[len(seconds) // 2]
    return {"tokens_per_s": rate, "check": check, "peak_mb": peak_mb(device, before)}


def peak_mb(device: str, before: int) -> float:
    """MiB of the device at most, or those that the process grew by at most from `before`, in KiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def step(preset: str, engine: str, device: str) -> tuple[int, float, list[float]]:
    """Tokens of a step, the untrained loss, and the seconds of some steps behind the first two."""
    from gptrs.model import ModelConfig

    n_rows, length, n_layers = STEPS[device]
    config = ModelConfig.preset(preset, **({"n_layers": n_layers} if n_layers else {}))
    config = dataclasses.replace(config, n_mtp_layers=0)
    tokens = torch.randint(config.vocab_size, (n_rows, length)).to(device)
    targets = tokens.roll(-1, 1)
    is_compiled = engine.endswith(("compiled", "in backward"))
    model, loss_of = (ours if engine.startswith("gptrs") else theirs)(config, device, is_compiled=is_compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    update = in_backward if engine == "gptrs in backward" else one_after_the_other
    seconds, first = [], None
    for _ in range(7):
        start = finished(device)
        loss = loss_of(tokens, targets)
        update(loss, optimizer)
        seconds.append(finished(device) - start)
        first = float(loss.detach()) if first is None else first
    assert first is not None
    return tokens.numel(), first, seconds[2:]


def one_after_the_other(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def in_backward(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    from gptrs.train.in_backward import step_in_backward

    step_in_backward(loss, optimizer, torch.zeros((), device=loss.device))


def feed_forward(engine: str, device: str) -> tuple[int, float, list[float]]:
    """Tokens of a pass, its FLOPs over those of the chosen experts' matrices, and the seconds of some passes."""
    from torch.utils.flop_counter import FlopCounterMode

    from gptrs.model import ModelConfig
    from gptrs.model.feed_forward import SwiGLU
    from gptrs.model.moe import MoE

    config = ModelConfig.preset("deepseek-small")
    width = (config.n_activated_experts + config.n_shared_experts) * config.moe_inter_dim
    layer = MoE(config) if engine == "gptrs" else SwiGLU(config, width)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.02) if parameter.ndim > 1 else torch.nn.init.zeros_(parameter)
    layer.to(device, DTYPES[device])
    n_rows, length, _ = STEPS[device]
    x = torch.randn(n_rows, length, config.dim).to(device, DTYPES[device]).requires_grad_()
    n_tokens = n_rows * length
    seconds = []
    for _ in range(12):
        start = finished(device)
        y = layer(x)
        (y[0] if engine == "gptrs" else y).sum().backward()
        seconds.append(finished(device) - start)
        layer.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x.detach())
    return n_tokens, counter.get_total_flops() / (6 * n_tokens * config.dim * width), seconds[2:]


def ours(config: Any, device: str, *, is_compiled: bool) -> tuple[torch.nn.Module, Any]:
    from gptrs.model import Transformer
    from gptrs.train.distributed import World
    from gptrs.train.spread import Spread

    model = Transformer(config).to(device).train()
    if DTYPES[device] != torch.float32:  # weights are rounded as in training
        spread = Spread(model, World.alone(torch.device(device)), dtype=DTYPES[device], is_compiled=is_compiled)
        return model, lambda *batch: spread.loss(lambda m, *given: m.loss(*given), *batch)
    if is_compiled:
        model.compile_blocks()
    return model, model.loss


def theirs(config: Any, device: str, *, is_compiled: bool) -> tuple[torch.nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from gptrs.exchange import hf_config

    keys = {key: value for key, value in hf_config.write(config).items() if key != "architectures"}
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**keys), attn_implementation="sdpa").train().to(device)
    )
    forward = torch.compile(model) if is_compiled else model
    dtype = DTYPES[device]

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = forward(tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return model, loss_of


@torch.inference_mode()
def decode(engine: str, device: str) -> tuple[int, float, list[float]]:
    """Tokens of a call, the mean size of its output, and the seconds of some calls behind the first two."""
    from gptrs.model import ModelConfig
    from gptrs.model.mla import LatentAttention

    config = ModelConfig.preset("deepseek-v2-lite", n_layers=1)
    layer = LatentAttention(config, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    width = config.kv_lora_rank + config.qk_rope_head_dim
    latent = torch.randn(DECODE_BATCH, 1, DECODE_CACHED, width, generator=generator).to(device, DTYPES[device])
    inputs = torch.randn(DECODE_TOKENS, DECODE_BATCH, 1, config.dim, generator=generator).to(device, DTYPES[device])
    layer.to(device, DTYPES[device])
    call = (decoder if engine == "gptrs" else their_decoder)(config, layer, latent)
    seconds, out = [], None
    for x in inputs:
        start = finished(device)
        y = call(x)
        seconds.append(finished(device) - start)
        out = y if out is None else out
    assert out is not None
    return DECODE_BATCH, float(out.abs().mean()), seconds[2:]


def decoder(config: Any, layer: Any, latent: torch.Tensor) -> Any:
    from gptrs.model.cache import LatentCache
    from gptrs.model.rope import rotations

    n_positions = DECODE_CACHED + DECODE_TOKENS
    cache = LatentCache(config, DECODE_BATCH, n_positions, device=latent.device, dtype=latent.dtype)
    cache.append(0, latent)
    cache.advance(DECODE_CACHED)

    def call(x: torch.Tensor) -> torch.Tensor:
        turns = rotations(config, cache.positions(1)).float()
        out: torch.Tensor = layer(x, mask=cache.mask(1), cache=cache, turns=turns)
        cache.advance(1)
        return out

    return call


def their_decoder(config: Any, layer: Any, latent: torch.Tensor) -> Any:
    """transformers' DeepseekV2Attention with the same weights and the same latents in its cache."""
    from transformers import AutoConfig, DynamicCache
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

    from gptrs.exchange import hf_config, hf_tensors

    keys = {key: value for key, value in hf_config.write(config).items() if key != "architectures"}
    theirs_config = AutoConfig.for_model(**keys)
    theirs_config._attn_implementation = "sdpa"
    attention = DeepseekV2Attention(theirs_config, 0).eval()
    mine = dict(layer.named_parameters())
    for entry in hf_tensors.entries(config, "DeepseekV2ForCausalLM", is_interleaved=True):
        if entry.ours.startswith("layers.0.attn."):
            for name, tensor in hf_tensors.to_theirs(entry, mine[entry.ours.removeprefix("layers.0.attn.")].detach()):
                attention.get_parameter(name.removeprefix("model.layers.0.self_attn.")).data.copy_(tensor)
    attention.to(latent.device, latent.dtype)
    rotary = DeepseekV2RotaryEmbedding(theirs_config).to(latent.device)
    cache = DynamicCache(config=theirs_config)
    cache.update(latent[..., : config.kv_lora_rank], latent[..., config.kv_lora_rank :], 0)
    position = DECODE_CACHED

    def call(x: torch.Tensor) -> torch.Tensor:
        nonlocal position
        positions = torch.full((DECODE_BATCH, 1), position, device=x.device)
        position += 1
        out: torch.Tensor = attention(
            x, position_embeddings=rotary(x, positions), attention_mask=None, position_ids=positions, cache=cache
        )[0]
        return out

    return call


def whole(batch_size: int, device: str, *, is_compiled: bool) -> tuple[int, float, list[float]]:
    """New tokens of a generation, their mean log-probability, and the seconds of some behind the first."""
    from gptrs.generate import Settings, complete
    from gptrs.model import ModelConfig, Transformer

    n_layers = STEPS[device][2]
    config = ModelConfig.preset("deepseek-small", **({"n_layers": n_layers} if n_layers else {}))
    model = Transformer(config).to(device, DTYPES[device]).eval()
    prompts = torch.randint(model.config.vocab_size, (batch_size, GENERATE_PROMPT)).tolist()
    settings: Settings = {"max_new_tokens": GENERATED, "temperature": 0.0, "logprobs": 0, "is_compiled": is_compiled}
    seconds, check = [], 0.0
    for _ in range(4):
        start = time.perf_counter()
        found = complete(model, prompts, **settings)
        seconds.append(time.perf_counter() - start)
        check = sum(sum(completion.logprobs) for completion in found) / (batch_size * GENERATED)
    return batch_size * GENERATED, check, seconds[1:]


def train_drafts() -> None:
    """The model that "speculative" measures: the demo's run with deepseek-tiny, once, some minutes."""
    from gptrs import demo
    from gptrs.train import rundir

    if not rundir.is_finished(TRAINED):
        sizes = ["model.dim=none", "model.n_layers=none", "model.n_heads=none", "model.preset=deepseek-tiny"]
        steps = [f"train.steps={SPECULATE_STEPS}", "train.global_batch=4", "train.max_minutes=none"]
        demo.run(overrides=[f"run.dir={TRAINED}", "schedule.warmup_steps=25", "train.eval_every=1000", *sizes, *steps])


def speculate(engine: str, device: str) -> dict[str, Any]:
    """Tokens per second of greedy generation with some drafts a pass; the check is a digest of the tokens."""
    from gptrs.cli_model import open_model
    from gptrs.generate import complete

    model, tokenizer = open_model(str(TRAINED), None, device)
    n_drafts = int(engine.split()[1]) if " " in engine else 0
    prompts = [tokenizer.encode(text) for text in ("def ", "import os\n", "class Reader:\n", "for line in ")]
    seconds, ids, n_drafted, n_accepted = 0.0, [], 0, 0
    for number, prompt in enumerate(prompts[:1] + prompts):  # the first once more: it warms up
        start = time.perf_counter()
        (found,) = complete(model, [prompt], max_new_tokens=SPECULATED, temperature=0.0, n_drafts=n_drafts)
        if number == 0:
            continue
        seconds += time.perf_counter() - start
        ids += found.ids
        n_drafted, n_accepted = n_drafted + found.n_drafted, n_accepted + found.n_accepted
    found_drafts = {"n_drafted": n_drafted, "n_accepted": n_accepted} if n_drafts else {}
    return {"tokens_per_s": len(ids) / seconds, "check": zlib.crc32(repr(ids).encode()), "peak_mb": peak_mb(device, 0),
            "found": found_drafts}  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        sys.path.insert(0, str(Path(__file__).parent))
        print(json.dumps(measure(*sys.argv[2:5])))
    else:
        main()
