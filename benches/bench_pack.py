"""How fast packed rows are planned, and how much of them is padding: synthetic documents, and files of Python packages.

The core's benchmark (cargo bench -p gptrs-core --bench pack) plans in one thread, CPU time, and beside it the way that
looks at all rows for each document; that no token is lost is what the tests are for (rust/gptrs-core/tests/pack.rs).

    python benches/bench_pack.py
"""

import tempfile
from pathlib import Path
from typing import Any

import corpora
from bench_loader import core_rows
from harness import arguments, record

import gptrs


def main() -> None:
    arguments(__doc__).parse_args()
    for row in core_rows("pack"):
        record_row(row, "10 million lognormal documents")
    with tempfile.TemporaryDirectory() as work:
        dataset = python_files(Path(work))
        for row in core_rows("pack", str(dataset.path)):
            record_row(row, "the files of Python packages")


def python_files(work: Path) -> gptrs.Dataset:
    """Every .py file of the installed packages as a document, under a vocabulary trained on a part of them."""
    texts = [text.decode("utf-8", "replace") for text in corpora.sources((".py",))]
    tokenizer = gptrs.Tokenizer.train_from_iterator(texts[::10], 32_000, progress=False)
    return gptrs.prepare_documents(texts, tokenizer, work / "data", progress=False)


def record_row(row: dict[str, Any], what: str) -> None:
    """Plans for rows of 2,048 go into the table, the others beside it."""
    if "padding_percent" not in row:
        record("pack", {"task": f"{row['bench']}: {what}", "engine": "gptrs core", **row})
        return
    seq_len = int(row["bench"].rsplit(" ", 1)[1])
    rate = {"median": row["million_per_s"], "min": row["low"], "max": row["high"]}
    record("pack", {"task": f"plan packed rows of {seq_len:,}, one core: {what}",
                    "engine": "gptrs" if seq_len == 2048 else "gptrs core", "m_documents_per_s": rate,
                    "padding_percent": row["padding_percent"], "bytes_per_document": row["plan_bytes_per_document"],
                    "grown_bytes_per_document": row["grown_bytes_per_document"], "dataset": row["bench"]})  # fmt: skip


if __name__ == "__main__":
    main()
