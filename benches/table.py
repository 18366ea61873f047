"""The measured tables: all newest rows of results/*.jsonl in RESULTS.md, the ones that people ask for in README.md.

python benches/table.py --write    # writes both
python benches/table.py --check    # exit code 1 when one of them, or the picture, is not of the newest rows
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizer_chart
import tokenizer_table
from tokenizer_table import Line

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "RESULTS.md"
MARKERS = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)
SECTIONS = {
    "Tokenizer": {"tokenizer"},
    "Data": {"prepare", "loader", "pack", "seek"},
    "Models": {"model"},
    "Training": {"train", "checkpoint", "parallel", "quality"},
}
# What a task's name begins with, for README: where others lead too.
ASKED_FOR = (
    *("train a", "text to shards", "encode, gpt2", "encode, o200k", "encode(", "decode, gpt2", "load gpt2"),
    *(".txt of 230 MB (prose, many scripts and code) to shards, GPT-2's",
      ".parquet of 230 MB (prose, many scripts and code) to shards, GPT-2's"),
    *("delivered int64", "time blocked", "next() of tensors", "a batch anywhere in a trillion tokens, 15 shards"),
    *("one new token", "training step", "200 new tokens, deepseek-tiny"),
    *("train nanoGPT", "a checkpoint of", "kill -9", "loss of 8,192 tokens, vocabulary 129,280, dim 2,048, bf16"),
    *("validation loss of shakespeare_cpu", "validation loss of `gptrs demo`"),
)  # fmt: skip
Row = dict[str, Any]
Rows = dict[tuple[str, str, str], Row]


def main() -> int:
    rows, tokenizer = newest_rows(), tokenizer_table.newest()
    lines = {name: list(section(name, rows, tokenizer)) for name in SECTIONS}
    results, short = every(lines, provenance(rows, tokenizer)), asked_for(lines)
    readme = README.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        README.write_text(MARKERS.sub(lambda m: m[1] + short + m[2], readme), encoding="utf-8")
        RESULTS.write_text(results, encoding="utf-8")
        return 0
    found = MARKERS.search(readme)
    stale = {
        "README.md's measured table": found is None or found[0] != f"{found[1]}{short}{found[2]}",
        "benches/RESULTS.md": not RESULTS.exists() or RESULTS.read_text(encoding="utf-8") != results,
    }
    if not tokenizer_chart.is_current():
        print("benches/results/tokenizer.png is of other rows; hint: python benches/tokenizer_chart.py")
        return 1
    if any(stale.values()):
        names = " and ".join(name for name, differs in stale.items() if differs)
        print(f"not of the newest rows in benches/results: {names}; hint: python benches/table.py --write")
        return 1
    return 0


def asked_for(lines: dict[str, list[Line]]) -> str:
    """README's table: the best peer alone."""
    table = ["| task | gptrs | the best peer in the same run |", "|---|---|---|"]
    for name, section_lines in lines.items():
        table.append(f"| **{name}** | | |")
        table += [
            f"| {line.task} | {line.ours} | {line.best} |" for line in section_lines if line.task.startswith(ASKED_FOR)
        ]
    return "\n".join(table) + "\n"


def every(lines: dict[str, list[Line]], note: str) -> str:
    """RESULTS.md: all tasks with all peers."""
    parts = [
        "# Measured\n",
        "Written by `python benches/table.py --write` from the newest rows in [results](results); how they are made is "
        "in [METHOD.md](METHOD.md). A ratio is the peer's time over ours.\n",
    ]
    for name, section_lines in lines.items():
        parts += [f"## {name}\n", "| task | gptrs | peers in the same run |", "|---|---|---|"]
        parts += [f"| {line.task} | {line.ours} | {line.peers} |" for line in section_lines]
        parts.append("")
    return "\n".join(parts) + f"\n{note}\n"


def provenance(rows: Rows, tokenizer: tokenizer_table.Rows) -> str:
    ours = [row for row in [*tokenizer.values(), *rows.values()] if row["engine"] == "gptrs"]
    machines = "; ".join(sorted({"{cpu}, {cores} cores, {memory_gib} GiB".format(**row["machine"]) for row in ours}))
    commits = ", ".join(sorted({row["commit"] for row in ours}))
    return f"Shared cloud machines, each line's figures from one of them: {machines}. Medians. Commits {commits}."


def newest_rows() -> Rows:
    """The last row of every (bench, task, engine), tokenizer's and docs/learn's left out: they have tables."""
    rows = {}
    for path in sorted((HERE / "results").glob("*.jsonl")):
        if path == tokenizer_table.RESULTS or path.name.startswith("learn"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["bench"], task(row), row["engine"]] = row
    return rows


def task(row: Row) -> str:
    """The task, with what is fed to it where a benchmark has several."""
    if row["bench"] != "prepare":
        return str(row["task"])
    vocabulary = {"own": "a vocabulary of this text", "gpt2": "GPT-2's vocabulary"}[row["vocabulary"]]
    return f".{row['input']} of {row['mb']:.0f} MB ({row['corpus']}) to shards, {vocabulary}, {row['threads']} threads"


def section(name: str, rows: Rows, tokenizer: tokenizer_table.Rows) -> Iterator[Line]:
    if name == "Tokenizer":
        yield from tokenizer_table.lines(tokenizer)
    for (bench, what, engine), row in rows.items():
        if (
            bench not in SECTIONS[name] or engine != "gptrs" or "curve" in row
        ):  # a curve is one of several that a row sums up
            continue
        # A peer that the newest run left out is not of the same run.
        peers = [(e, r) for (b, t, e), r in rows.items() if (b, t) == (bench, what) and e != "gptrs"]
        peers = sorted(((e, r) for e, r in peers if r["commit"] == row["commit"]), key=lambda item: -speed(item[1]))
        cells = [f"{e} {figure(r)}{ratio(row, r)}" for e, r in peers]
        others = [cell for cell, (e, _) in zip(cells, peers, strict=True) if not e.startswith("gptrs")]
        # Another way of ours, where nothing else is there to compare with.
        faster = [(e, r) for e, r in peers if e.startswith("gptrs ") and not others and speed(r) > speed(row)]
        ours = figure(row) + "".join(f"; {e.removeprefix('gptrs ')}: {figure(r)}" for e, r in faster[:1])
        yield Line(what, f"**{ours}**", " · ".join(cells) or "–", (others or ["–"])[0])


def figure(row: Row) -> str:
    if "percent_of_encode" in row:
        rate, percent = row["mb_per_s"]["median"], row["percent_of_encode"]["median"]
        return f"{rate:.0f} MB/s, {percent:.0f} % of encoding from memory"
    if "gb_above" in row:
        return f"{row['gb_above']:.2f} GB above inputs and gradients, {row['seconds']:.0f} s"
    if "pause_over_copy" in row:
        pause, share, write = (row[name]["median"] for name in ("pause_s", "pause_over_copy", "write_s"))
        return f"{pause:.2f} s, {share:.2f} of a copy in memory; {write:.1f} s to write beside the training"
    if "restart_s" in row:
        return f"{row['restart_s']['median']:.1f} s"
    if "m_tokens_per_s" in row:
        return f"{row['m_tokens_per_s']['median']:.0f} M tokens/s"
    if "peak_mb" in row:
        return f"{row['tokens_per_s']['median']:.1f} tokens/s, {row['peak_mb']['median']:.0f} MB"
    if "steps_per_s" in row:
        return f"{row['steps_per_s']['median']:.1f} steps/s"
    if "percent" in row:
        return f"{row['percent']['median']:.2f} %"
    if "us" in row:
        return " · ".join(f"{name} {value:.0f} µs" for name, value in row["us"].items())
    if "state_to_first_batch_ms" in row:
        names = ("open_ms", "state_to_first_batch_ms", "batch_at_ms", "memory_growth_mb")
        opened, first, later, growth = (row[name]["median"] for name in names)
        return f"opened in {opened:.1f} ms, first batch {first:.1f} ms, any other {later:.2f} ms, {growth:.0f} MB"
    if "m_documents_per_s" in row:
        rate, padding, size = (row[name] for name in ("m_documents_per_s", "padding_percent", "bytes_per_document"))
        return f"{rate['median']:.0f} M documents/s, padding {padding:.4f} %, {size:.1f} bytes a document"
    if "muon" in row:
        beside = f", AdamW {row['adamw']['median']:.3f}; {row['seeds_reached']} of 3 seeds" if "adamw" in row else ""
        return f"val loss {row['muon']['median']:.3f}{beside}"
    if "max_violation" in row:
        return f"val loss {row['val_loss']['mean']:.3f}, MaxVio {row['max_violation']['mean']:.2f}"
    below = row["unigram_entropy"] - row["val_loss"]
    return f"{row['val_loss']:.3f}, {below:.2f} below the unigram entropy, {row['seconds']:.0f} s"


def speed(row: Row) -> float:
    """Larger is faster, whatever the unit."""
    for key in ("m_tokens_per_s", "tokens_per_s", "steps_per_s"):
        if key in row:
            return float(row[key]["median"])
    return 0.0


def ratio(ours: Row, peer: Row) -> str:
    return f" ({speed(ours) / speed(peer):.1f}×)" if speed(peer) else ""


if __name__ == "__main__":
    sys.exit(main())
