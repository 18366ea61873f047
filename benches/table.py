"""Prints README's measured table from the newest rows of results/*.jsonl; `--check` compares it with README.md.

python benches/table.py            # the table, to paste between the markers
python benches/table.py --write    # puts it there
python benches/table.py --check    # exit code 1 when README says something else
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import tokenizer_table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKERS = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)
Row = dict[str, Any]


def main() -> int:
    table = render(newest_rows(), tokenizer_table.newest())
    readme = README.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        README.write_text(MARKERS.sub(lambda m: m[1] + table + m[2], readme), encoding="utf-8")
    elif "--check" in sys.argv:
        found = MARKERS.search(readme)
        if found is None or found[0] != f"{found[1]}{table}{found[2]}":
            print("README.md's measured table differs from benches/results; hint: python benches/table.py --write")
            return 1
    else:
        print(table)
    return 0


def newest_rows() -> dict[tuple[str, str, str], Row]:
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


def render(rows: dict[tuple[str, str, str], Row], tokenizer: tokenizer_table.Rows) -> str:
    """Markdown: one line for each task, ours first, then every peer and the ratio."""
    lines = ["| task | gptrs | peers in the same run |", "|---|---|---|"]
    lines += [f"| {name} | {ours} | {peers} |" for name, ours, peers in tokenizer_table.lines(tokenizer)]
    for (bench, name, engine), row in rows.items():
        if engine != "gptrs" or "curve" in row:  # one run of several, which a row of their own sums up
            continue
        # A peer that the newest run left out is not of the same run.
        peers = [(e, r) for (b, t, e), r in rows.items() if (b, t) == (bench, name) and e != "gptrs"]
        peers = [(e, r) for e, r in peers if r["commit"] == row["commit"]]
        cells = [f"{e} {figure(r)}{ratio(row, r)}" for e, r in sorted(peers, key=lambda item: -speed(item[1]))]
        lines.append(f"| {name} | **{figure(row)}** | {' · '.join(cells) or '–'} |")
    ours = [row for row in [*tokenizer.values(), *rows.values()] if row["engine"] == "gptrs"]
    machines = sorted({"{cpu}, {cores} cores, {memory_gib} GiB".format(**row["machine"]) for row in ours})
    note = f"Shared cloud machines, each line's figures from one of them: {'; '.join(machines)}. Commits "
    commits = ", ".join(sorted({row["commit"] for row in ours}))
    return "\n".join(lines) + f"\n\n{note}{commits}; medians; raw rows in `benches/results/`.\n"


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
