"""What a checkpoint of a 124M model costs: the loop's pause against a copy of the state, and a restart after kill -9.

    python benches/bench_checkpoint.py [pause] [restart]

The state is GPT-2 small's weights and AdamW's moments, 1.5 GB. A restart is timed from the kill to the line of the next
step of the same command, with a batch so small that a step does not count.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from corpora import sources
from harness import arguments, child, peak_rss_mb, record, summary

from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint
from gptrs.train.optim import adamw
from gptrs.train.saver import Saver
from gptrs.train.snapshot import tensors_of
from gptrs.train.tensorfile import n_bytes


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("tasks", nargs="*", help="pause, restart (default: both)")
    parser.add_argument("--child", action="store_true", help="measures a pause in this process")
    options = parser.parse_args()
    if options.child:
        pause(options.rounds)
        return
    for task in options.tasks or ("pause", "restart"):
        if task == "pause":
            found = child(__file__, "--child", f"--rounds={options.rounds}")
            record(
                "checkpoint",
                {"task": "a checkpoint of 124M with AdamW: pause of the loop", "engine": "gptrs", **found},
                packages=["torch"],
            )
        else:
            found = [restart() for _ in range(options.rounds)]
            wall_s, cpu_s = (summary(list(values), 2) for values in zip(*found, strict=True))
            row = {"task": "kill -9 of a run of 124M to its next step, CPU", "engine": "gptrs"}
            row |= {"threads": torch.get_num_threads(), "restart_s": wall_s, "cpu_s": cpu_s}
            record("checkpoint", row, packages=["torch"])


def pause(rounds: int) -> None:
    """Prints the times of saves and of copies of the same state, taken in turn."""
    model, optimizer = trained()
    state = tensors_of(model, optimizer)
    live = [tensor for of_kind in state.values() for tensor in of_kind.values()]
    fresh_s = timed(lambda: [tensor.clone() for tensor in live])
    copies = [tensor.clone() for tensor in live]
    times: dict[str, list[float]] = {"copy": [], "pause": [], "write": []}
    cpu_ratios = []
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), keep=1)

        def save(step: int) -> float:
            return timed(lambda: saver.save(step=step, model=model, optimizer=optimizer, state={}))

        first_s = save(0)
        saver.finish()
        for step in range(1, rounds + 1):
            clock = time.process_time()
            times["copy"].append(timed(lambda: [a.copy_(b) for a, b in zip(copies, live, strict=True)]))
            between = time.process_time()
            times["pause"].append(save(step))
            cpu_ratios.append((time.process_time() - between) / (between - clock))
            times["write"].append(timed(saver.finish))
        path = checkpoint.find(Path(folder)).newest
        assert path is not None
        verify_s = timed(lambda: checkpoint.verify(path))
        other, its_optimizer = trained()
        load_s = timed(lambda: checkpoint.load(path, other, its_optimizer))
        for kind, tensors in tensors_of(other, its_optimizer).items():
            assert all(torch.equal(tensor, state[kind][name]) for name, tensor in tensors.items()), kind
        alone = Saver(Path(folder) / "alone", keep=1, is_async=False)
        sync_s = timed(lambda: alone.save(step=1, model=model, optimizer=optimizer, state={}))
    ratios = [b / a for a, b in zip(times["copy"], times["pause"], strict=True)]
    row = {
        "state_bytes": sum(map(n_bytes, state.values())), "threads": torch.get_num_threads(),
        **{f"{name}_s": summary(values) for name, values in times.items()}, "pause_over_copy": summary(ratios, 3),
        "cpu_of_pause_over_copy": summary(cpu_ratios, 3),
        "first_pause_s": round(first_s, 4), "copy_into_fresh_memory_s": round(fresh_s, 4),
        "without_thread_s": round(sync_s, 3), "verify_s": round(verify_s, 3), "verify_and_load_s": round(load_s, 3),
        "peak_mb": round(peak_rss_mb()),
    }  # fmt: skip
    print(json.dumps(row))


def trained() -> tuple[Transformer, torch.optim.AdamW]:
    """GPT-2 small after one update, without the time of a backward pass."""
    model = Transformer(ModelConfig.preset("gpt2-small"))
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def timed(work) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def restart() -> tuple[float, float]:
    """Seconds from kill -9 to the next step of a run that is started again at once, and what it computed until then."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_bytes(b"".join(itertools.islice(sources((".py",)), 1000)))
        command = [
            *(sys.executable, "-m", "gptrs", "train", "shakespeare_cpu", f"data.text={text}"),
            *(f"run.dir={folder}/run", "model.preset=gpt2-small", "model.max_seq_len=1024", "train.steps=1000000"),
            *("tokenizer.vocab_size=50257", "tokenizer.special_tokens=<|endoftext|>", "train.global_batch=1"),
            *("train.seq_len=8", "train.log_every=1", "train.checkpoint_every=4", "train.keep_checkpoints=1"),
            "train.eval_every=1000000",
        ]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("step ") and checkpoint.find(Path(folder) / "run" / "checkpoints").newest is not None:
                break
        start = time.perf_counter()
        first.kill()
        assert first.wait() == -signal.SIGKILL
        saved = checkpoint.find(Path(folder) / "run" / "checkpoints").newest
        assert saved is not None
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        line = next(line for line in second.stdout if line.startswith("step "))
        seconds = time.perf_counter() - start
        second.kill()
        usage = os.wait4(second.pid, 0)[2]
        assert line.startswith(f"step {int(saved.name[5:]) + 1}/"), line
        return seconds, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
