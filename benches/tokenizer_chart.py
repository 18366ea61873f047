"""The newest rows of the tokenizer's benchmarks as one picture: `python benches/tokenizer_chart.py [FILE.png]`.

Bars are MB of text a second on a logarithmic axis, medians of one run; an engine whose ids differ is hatched. The file
holds the digest of the speeds that it shows.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizer_table import CORPORA, PEERS, TRAIN, TRAINED, VOCABULARIES, Row, Rows, find, newest

PICTURE = Path(__file__).parent / "results" / "tokenizer.png"
NAMES = {"bench_en": "prose", "code": "code", "bench_multi": "many scripts", "mixed": "prose and code"}
COLORS = {"gptrs": "#c0392b", "gigatoken": "#2c3e50", "fastokens": "#2980b9", "tokie": "#16a085",
          "rustbpe": "#8e44ad", "tiktoken": "#7f8c8d", "tokenizers": "#bdc3c7"}  # fmt: skip


PANELS = (
    *((f"encode, {name}, one thread, cold", "encode", name, CORPORA) for name in VOCABULARIES),
    ("train 50,257 tokens, all cores", "train", TRAIN, TRAINED),
    ("text to shards, all cores", "train and encode", TRAIN, CORPORA),
)
DIGEST = "Comment"  # the file's field


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = newest()
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for axis, (title, task, vocabulary, corpora) in zip(axes.flat, PANELS, strict=True):
        draw(axis, rows, task, vocabulary, corpora)
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    figure.legend(handles, list(COLORS), loc="outside lower center", ncols=len(COLORS), frameon=False)
    machines = sorted({"{cpu}, {cores} cores".format(**row["machine"]) for row in shown(rows)})
    note = f"MB of text a second, logarithmic; {' or '.join(machines)}; hatched: other ids"
    figure.suptitle(note, fontsize=10, x=0.01, ha="left")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    figure.savefig(path, dpi=110, metadata={DIGEST: digest(rows)})
    print(path)


def is_current() -> bool:
    """Whether the committed picture shows the newest rows."""
    return PICTURE.exists() and digest(newest()).encode() in PICTURE.read_bytes()


def digest(rows: Rows) -> str:
    names = ("task", "engine", "corpus", "vocabulary", "mb_per_s", "same_result")
    return hashlib.sha256(json.dumps([[row.get(name) for name in names] for row in shown(rows)]).encode()).hexdigest()


def shown(rows: Rows) -> Iterator[Row]:
    for _, task, vocabulary, corpora in PANELS:
        found = (find(rows, task, engine, corpus, vocabulary) for corpus in corpora for engine in ("gptrs", *PEERS))
        yield from (row for row in found if row is not None)


def draw(axis: Any, rows: Rows, task: str, vocabulary: str, corpora: tuple[str, ...]) -> None:
    """One panel: a group of bars for each text, ours first, each with its speed above."""
    for group, corpus in enumerate(corpora):
        engines = [e for e in ("gptrs", *PEERS) if find(rows, task, e, corpus, vocabulary)]
        width = 0.86 / max(len(engines), 1)
        for i, engine in enumerate(engines):
            row = find(rows, task, engine, corpus, vocabulary)
            assert row is not None
            is_other = task == "encode" and not row["same_result"]
            x, speed = group - 0.43 + (i + 0.5) * width, row["mb_per_s"]
            axis.bar(x, speed, width * 0.94, color=COLORS[engine], hatch="//" if is_other else None)
            axis.annotate(f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}", (x, speed), xytext=(0, 2),
                          textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
    axis.set_yscale("log")
    axis.margins(y=0.12)
    axis.set_xticks(range(len(corpora)), [NAMES[corpus] for corpus in corpora])
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)


if __name__ == "__main__":
    main()
