"""Training steps per second against transformers' GPT-2: same shapes, batches, optimizer and thread count, in turn.

The shape is nanoGPT's CPU setting (4 layers, 4 heads, dim 128, context 64, batch 12) over a byte vocabulary.

    python benches/bench_train.py
"""

import time
from pathlib import Path

import numpy as np
import torch
from harness import arguments, record, summary

from gptrs.model import ModelConfig, Transformer

V, C, L, H, T, B = 256, 128, 4, 4, 64, 12
STEPS = 100


def main() -> None:
    options = arguments(__doc__).parse_args()
    batches = make_batches()
    engines = {"gptrs": ours(), "transformers GPT2LMHeadModel": theirs()}
    first = {name: float(engine(batches[0], update=False)) for name, engine in engines.items()}
    assert max(first.values()) - min(first.values()) < 0.05, f"untrained losses differ: {first}"
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for round_ in range(options.rounds + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            for step in range(STEPS):
                loss = engine(batches[step % len(batches)], update=True)
            rate = STEPS / (time.perf_counter() - start)
            if round_ > 0:  # the first round warms up
                rates[name].append(rate)
    for name, engine in engines.items():
        last = float(engine(batches[0], update=False))
        assert last < first[name] - 0.5, f"{name} did not learn: {first[name]} -> {last}"
        record("train", {"task": "train nanoGPT's CPU setting, fp32, fused AdamW, 2 threads", "engine": name,
                         "B": B, "T": T, "threads": torch.get_num_threads(), "last_loss": round(float(loss), 4),
                         "steps_per_s": summary(rates[name], 2)}, packages=["torch", "transformers"])  # fmt: skip


def make_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of a text that can be learned: this file, repeated."""
    data = np.frombuffer(Path(__file__).read_bytes() * 4, dtype=np.uint8).astype(np.int64)
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(np.stack([data[s : s + T + 1] for s in rng.integers(0, len(data) - T - 1, B)]))
            for _ in range(32)]  # fmt: skip
    return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


def engine_of(parameters, loss_of):  # type: ignore[no-untyped-def]
    """One training step as a function: forward, backward, clip to 1.0, fused AdamW."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step(batch: tuple[torch.Tensor, torch.Tensor], *, update: bool) -> torch.Tensor:
        loss = loss_of(*batch)
        if update:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def ours():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=V, max_seq_len=T, dim=C, n_layers=L, n_heads=H, inter_dim=4 * C))
    return engine_of(model.parameters(), model.loss)


def theirs():  # type: ignore[no-untyped-def]
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=H, resid_pdrop=0.0, embd_pdrop=0.0,
                        attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = GPT2LMHeadModel(config).train()

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())

    return engine_of(model.parameters(), loss_of)


if __name__ == "__main__":
    main()
