"""The report of a tokenizer's training: how well it packs text and what its tokens are, as JSON or as a page.

Every figure comes from the counts that were trained on, so that no text is read a second time; only held-out text is
encoded. With merges across spaces the usage of tokens may be that of a sample of the runs of words.
"""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptrs import _core, chart
from gptrs.files import write_atomic
from gptrs.page import Markup, page, table, tiles, token_span

LONGEST = 40
MOST_USED = 40
CURVE_POINTS = 60


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Facts:
    """What training knows at its end."""

    tokenizer: _core.Tokenizer
    options: dict[str, int | float | str]  # those that were given
    n_bytes: int  # of the text trained on, as are the next two
    n_words: int  # different ones
    n_documents: int
    seconds: dict[str, float]  # by stage
    usage: npt.NDArray[np.uint64]  # occurrences of each id in the text
    held_out: tuple[int, int, int] | None  # bytes, tokens, documents


def write(path: Path, facts: Facts) -> None:
    """Writes the report as its ending says, .html or .json; an earlier one stays until the new one is complete."""
    summary = summarize(facts)
    text = html(summary) if path.suffix == ".html" else json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode())


def summarize(facts: Facts) -> dict[str, Any]:
    """Returns the report as JSON holds it; tokens are text where they are UTF-8, with \\x escapes where not."""
    tokenizer = facts.tokenizer
    special = set(tokenizer.special_tokens.values())
    tokens = {i: token for i in range(tokenizer.vocab_size) if i not in special and (token := tokenizer.token_bytes(i))}
    usage = {i: int(facts.usage[i]) for i in tokens}
    n_tokens = sum(usage.values())
    # Lengths times uses are the bytes that were encoded: all of the text, or of the sample.
    n_encoded = sum(len(tokens[i]) * n for i, n in usage.items())
    by_use = sorted(tokens, key=lambda i: (-usage[i], i))
    by_length = sorted(tokens, key=lambda i: (-len(tokens[i]), i))

    def row(i: int) -> dict[str, Any]:
        return {"id": i, "token": show(tokens[i]), "n_bytes": len(tokens[i]), "n_uses": usage[i]}

    lengths = np.bincount([len(token) for token in tokens.values()])
    return {
        "version": 1,
        "tokenizer": {
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "pattern": tokenizer.pattern,
            "special_tokens": tokenizer.special_tokens,
        },
        "options": facts.options,
        "corpus": {"n_bytes": facts.n_bytes, "n_documents": facts.n_documents, "n_words": facts.n_words},
        "seconds": {stage: round(seconds, 4) for stage, seconds in facts.seconds.items()},
        "trained_text": _packing(n_encoded, n_tokens),
        "held_out": facts.held_out and {**_packing(*facts.held_out[:2]), "n_documents": facts.held_out[2]},
        "tokens": {
            "n_unused": sum(n == 0 for n in usage.values()),
            "lengths": {str(n): int(count) for n, count in enumerate(lengths) if count},
            "longest": [row(i) for i in by_length[:LONGEST]],
            "most_used": [row(i) for i in by_use[:MOST_USED]],
            "least_used": [row(i) for i in reversed(by_use) if len(tokens[i]) > 1][:LONGEST],
            "coverage": _coverage([usage[i] for i in by_use], n_tokens),
        },
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "gptrs": _core.__version__},
    }


def _packing(n_bytes: int, n_tokens: int) -> dict[str, Any]:
    return {
        "n_bytes": n_bytes,
        "n_tokens": n_tokens,
        "bytes_per_token": round(n_bytes / n_tokens, 4) if n_tokens else None,
    }


def _coverage(usage: list[int], n_tokens: int) -> list[tuple[int, float]]:
    """(k, share of the text's tokens that are one of the k most used ids) for some k."""
    if not n_tokens:
        return []
    sums = np.cumsum(usage, dtype=np.float64) / n_tokens
    ranks = np.unique(np.geomspace(1, len(usage), CURVE_POINTS).astype(np.int64))
    return [(int(k), round(float(sums[k - 1]), 6)) for k in ranks]


def show(token: bytes) -> str:
    """A token's text on one line, \\x escapes for bytes that are no character."""
    text = token.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def html(summary: dict[str, Any]) -> str:
    """Returns the page of a summary."""
    sections = (
        ("Result", _result(summary)),
        ("Time by stage", _time(summary["seconds"])),
        ("Lengths of tokens", _lengths(summary["tokens"]["lengths"])),
        ("How much the most used tokens cover", _curve(summary["tokens"]["coverage"])),
        ("Longest tokens", _tokens(summary["tokens"]["longest"])),
        ("Most used tokens", _tokens(summary["tokens"]["most_used"])),
        ("Least used merges", _tokens(summary["tokens"]["least_used"])),
        ("Tokenizer and machine", _machine(summary)),
    )
    return page(f"gptrs tokenizer {summary['tokenizer']['digest'][:16]}", sections)


def _result(summary: dict[str, Any]) -> str:
    corpus, text, held_out = summary["corpus"], summary["trained_text"], summary["held_out"]
    figures = [
        (f"{summary['tokenizer']['vocab_size']:,}", "ids"),
        (_ratio(text), "bytes per token of the text trained on"),
        (f"{corpus['n_bytes']:,}", "bytes of text"),
        (f"{corpus['n_documents']:,}", "documents"),
        (f"{corpus['n_words']:,}", "different words"),
        (f"{summary['tokens']['n_unused']:,}", "ids that the text never needs"),
        (f"{sum(summary['seconds'].values()):.2f} s", "in all"),
    ]
    if held_out:
        label = f"bytes per token of held-out text ({held_out['n_bytes']:,} bytes)"
        figures.insert(1, (_ratio(held_out), label))
    return tiles(figures)


def _ratio(text: dict[str, Any]) -> str:
    return "–" if text["bytes_per_token"] is None else f"{text['bytes_per_token']:.3f}"


def _time(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values()) or 1.0
    rows = [(stage, f"{time:.3f}", _bar(time / whole)) for stage, time in seconds.items()]
    return table(("stage", "seconds", "share"), rows, numbers=(1,))


def _lengths(lengths: dict[str, int]) -> str:
    most = max(lengths.values())
    rows = [(n, f"{count:,}", _bar(count / most)) for n, count in lengths.items()]
    return table(("bytes", "tokens", ""), rows, numbers=(0, 1))


def _curve(coverage: list[tuple[int, float]]) -> str:
    if not coverage:
        return "<p>The text has no tokens.</p>"
    line = chart.Line(
        label="share of all tokens", points=[(k, 100 * share) for k, share in coverage], color="var(--val)"
    )
    return chart.svg([line], x_label="most used ids", y_label="% of the text's tokens")


def _tokens(rows: list[dict[str, Any]]) -> str:
    spans = (Markup(token_span(i, row["token"].encode())) for i, row in enumerate(rows))
    cells = [
        (str(row["id"]), span, str(row["n_bytes"]), f"{row['n_uses']:,}") for row, span in zip(rows, spans, strict=True)
    ]
    return table(("id", "token", "bytes", "uses"), cells, numbers=(0, 2, 3))


def _machine(summary: dict[str, Any]) -> str:
    tokenizer = summary["tokenizer"]
    special = ", ".join(f"{text} = {i}" for text, i in tokenizer["special_tokens"].items())
    rows = [("digest", tokenizer["digest"]), ("pattern", tokenizer["pattern"]), ("special tokens", special)]
    rows += [(name, str(value)) for name, value in (summary["options"] | summary["machine"]).items()]
    return table((), rows)


def _bar(share: float) -> Markup:
    return Markup(f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>')
