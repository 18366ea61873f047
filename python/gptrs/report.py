"""report.html: one self-contained page about a run. Every figure in it comes from that run's own files and model.

A run that goes on has one too, without the sections that read the finished model.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptrs import chart, model_report, stats_report
from gptrs.dataset import Dataset
from gptrs.files import write_atomic
from gptrs.holdout import Source
from gptrs.mixture import Mixture
from gptrs.model import count, memory
from gptrs.model.config import ModelConfig
from gptrs.page import Markup, bar, details, page, percent, table, tiles, token_span
from gptrs.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptrs.trace import Guess, Neighbours, Reach, Usage
    from gptrs.train.rundir import Outcome

EXAMPLE_TOKENS = 220  # of held-out text, shown in colours
LONGEST_TOKENS = (20, 6)  # with letters, without
SHOWN_FILES = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Facts:
    """Everything that the page shows."""

    name: str
    result: dict[str, Any]  # val_loss, unigram_entropy, bits_per_byte, seconds, steps, is_capped
    sources: Sequence[Source]  # empty for prepared datasets
    tokenizer: Tokenizer
    train: Dataset | Mixture
    val: Dataset
    n_bytes: tuple[int, int]  # text of train and val
    model: ModelConfig
    parts: Sequence[count.Part]  # counted in the trained model
    lines: Sequence[dict[str, Any]]  # of metrics.jsonl
    samples: Sequence[tuple[str, str]]  # (prompt, continuation)
    sentence: str
    guesses: "Sequence[Guess]" = ()  # these three of a finished run
    gradients: "Sequence[Reach]" = ()
    neighbours: "Sequence[Neighbours]" = ()
    environment: dict[str, str]
    config: str  # resolved, as TOML
    usage: "Usage"  # of experts and further tokens, on held-out text
    runs: "tuple[Outcome, Outcome | str] | None" = None  # this one and another, or why there is no other
    n_steps: int | None = None  # of the whole run, while it goes on


def write(path: Path, facts: Facts) -> None:
    """Writes the page; an earlier one stays until the new one is complete."""
    write_atomic(path, html(facts).encode())


def html(facts: Facts) -> str:
    """Returns the page."""
    sections = (
        ("Result" if facts.n_steps is None else "So far", _standing(facts) + _result(facts)),
        ("Loss", _loss(facts)),
        *_inside(facts),
        *_of_the_model(facts),
        ("Samples", _samples(facts)),
        ("Data", _data(facts)),
        ("Tokenizer", _tokenizer(facts)),
        ("Parameters", _parameters(facts)),
        *_of_the_weights(facts),
        ("Environment and config", _environment(facts)),
    )
    return page(f"gptrs run {facts.name}", sections)


def _standing(facts: Facts) -> str:
    """Of a run that goes on, how far it is."""
    if facts.n_steps is None:
        return ""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    step = f"<b>Not finished: step {facts.result['steps']:,} of {facts.n_steps:,}</b>, written {now}"
    return f"<p>{step}. What a finished model does with a sentence comes at the end.</p>"


def _inside(facts: Facts) -> Iterator[tuple[str, str]]:
    if shown := stats_report.statistics(facts.lines):
        yield "Inside the model on the way", shown


def _of_the_weights(facts: Facts) -> Iterator[tuple[str, str]]:
    """Sections that need the trained model itself."""
    if facts.guesses:
        yield "One sentence, position by position", _sentence(facts)
    if facts.gradients:
        yield "Where the gradient reaches", _gradients(facts)
    if facts.neighbours:
        yield "Neighbours of ten tokens", _neighbours(facts)


def _of_the_model(facts: Facts) -> Iterator[tuple[str, str]]:
    """Sections that some runs have; a GPT on its own has none of them."""
    if facts.runs is not None:
        yield "Beside another run", model_report.beside(*facts.runs)
    if facts.usage.loads:
        yield "Load of the experts", model_report.experts(facts.usage, facts.lines)
    if facts.usage.further:
        yield "Further tokens", model_report.further(facts.usage.further)
    kinds = memory.cache_kinds(facts.model)
    if not any(kind.is_own and kind.kind == "MHA" for kind in kinds):
        yield "Size of the cache", model_report.cache(kinds)


def _result(facts: Facts) -> str:
    r = facts.result
    speeds = sorted(line["tokens_per_s"] for line in facts.lines if line["kind"] == "train")
    figures = (
        (f"{r['val_loss']:.4f}", "validation loss, nats per token"),
        (f"{r['unigram_entropy']:.4f}", "unigram entropy of the validation tokens, nats"),
        (f"{r['unigram_entropy'] - r['val_loss']:.2f}", "nats gained over token frequencies"),
        (f"{r['bits_per_byte']:.3f}", "bits per byte of held-out text"),
        (f"{sum(part.n_params for part in facts.parts):,}", "parameters"),
        (f"{r['steps']:,}", "optimizer updates" + ", then train.max_minutes ended it" * r["is_capped"]),
        (f"{r['seconds']:.0f} s", "training time, evaluation included"),
        (f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "none", "tokens per second, median"),
    )
    return tiles(figures)


def _loss(facts: Facts) -> str:
    train = [(line["step"], line.get("next_loss", line["loss"])) for line in facts.lines if line["kind"] == "train"]
    val = [(line["step"], line["val_loss"]) for line in facts.lines if line["kind"] == "eval"]
    entropy = facts.result["unigram_entropy"]
    ends = [x for x, _ in train + val]
    curves = (
        chart.Line(label="training", points=chart.means(train), color="var(--train)"),
        chart.Line(label="validation", points=val, color="var(--val)", has_dots=True),
        chart.Line(
            label="unigram entropy",
            points=[(min(ends), entropy), (max(ends), entropy)],
            color="var(--soft)",
            is_dashed=True,
        ),
    )
    return chart.svg(curves, x_label="step", y_label="loss, nats per token")


def _samples(facts: Facts) -> str:
    if not facts.samples:
        return "<p>None yet.</p>" if facts.n_steps else "<p>None.</p>"
    out = (f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>" for prompt, text in facts.samples)
    return "<p>The prompt is bold; the rest was written by the trained model.</p>" + "".join(out)


def _data(facts: Facts) -> str:
    rows = [
        (part, f"{dataset.n_documents:,}", f"{n_bytes:,}", f"{dataset.n_tokens:,}", dataset.fingerprint[:16])
        for part, dataset, n_bytes in zip(("train", "validation"), (facts.train, facts.val), facts.n_bytes, strict=True)
    ]
    out = table(("part", "documents", "bytes of text", "tokens", "fingerprint"), rows, numbers=(1, 2, 3))
    if not facts.sources:
        return out
    largest = sorted(facts.sources, key=lambda source: -source.n_bytes)[:SHOWN_FILES]
    n, total = len(facts.sources), sum(source.n_bytes for source in facts.sources)
    n_held_out = sum(source.part == "val" for source in facts.sources)
    how = f"{n_held_out:,} of them held out whole" if n_held_out else "the end of which is held out"
    out += f"<p>{n:,} file{'s' * (n > 1)} of {total:,} bytes, {how}.</p>"
    shown = [(source.path, f"{source.n_bytes:,}", source.part) for source in largest]
    return out + details("The largest files", table(("file", "bytes", "part"), shown, numbers=(1,)))


def _tokenizer(facts: Facts) -> str:
    tokenizer = facts.tokenizer
    n_eot = facts.val.n_documents if tokenizer.eot_id is not None else 0
    per_token = facts.n_bytes[1] / max(facts.val.n_tokens - n_eot, 1)
    specials = ", ".join(tokenizer.special_tokens) or "none"
    rows = (
        ("vocabulary", f"{tokenizer.vocab_size:,} ids"),
        ("pattern", tokenizer.pattern),
        ("special tokens", specials),
        ("bytes per token on held-out text", f"{per_token:.3f}"),
    )
    special_ids = set(tokenizer.special_tokens.values())
    pieces = [tokenizer.id_to_token(i) or b"" for i in range(tokenizer.vocab_size) if i not in special_ids]
    longest = [_longest(pieces, n, has_letters=has) for n, has in zip(LONGEST_TOKENS, (True, False), strict=True)]
    ids = facts.val.read(0, min(EXAMPLE_TOKENS, facts.val.n_tokens)).tolist()
    example = "".join(token_span(i, tokenizer.id_to_token(n) or b"", line_end="⏎\n") for i, n in enumerate(ids))
    return (
        table((), rows)
        + f"<h3>Longest tokens, with letters and without</h3><p>{longest[0]}</p><p>{longest[1]}</p>"
        + f"<h3>The first {len(ids)} tokens of the held-out text</h3><pre>{example}</pre>"
    )


def _longest(pieces: Sequence[bytes], n: int, *, has_letters: bool) -> str:
    """The n longest of the tokens that have a letter, or of those that have none, each with its length."""
    chosen = [
        piece for piece in pieces if piece and any(map(str.isalpha, piece.decode("utf-8", "ignore"))) == has_letters
    ]
    longest = sorted(chosen, key=len, reverse=True)[:n]
    return " ".join(f"{token_span(i, piece)}<small>{len(piece)}</small>" for i, piece in enumerate(longest))


def _parameters(facts: Facts) -> str:
    expected = {part.name: part for part in count.parameters(facts.model)}
    total = sum(part.n_params for part in facts.parts)
    rows = [
        (
            part.name,
            expected[part.name].formula,
            f"{part.n_params:,}",
            f"{part.n_params / total:.2%}",
            "trained" if part.is_trainable else "frozen",
        )
        for part in facts.parts
    ]
    rows.append(("total", "", f"{total:,}", "100.00%", ""))
    sizes = ", ".join(f"{name} {getattr(facts.model, name)}" for name in ("dim", "n_layers", "n_heads", "max_seq_len"))
    shown = table(("part", "formula", "parameters", "share", "trainability"), rows, numbers=(2, 3))
    return f"<p>Counted in the trained model: {escape(sizes)}, {facts.model.position} positions.</p>{shown}"


def _sentence(facts: Facts) -> str:
    rows = [
        (
            Markup("".join(token_span(i, piece) for i, piece in enumerate(guess.prefix))),
            Markup(token_span(len(guess.prefix), guess.target)),
            Markup(bar(guess.probability)),
            Markup(f"{token_span(0, guess.likeliest)} {percent(guess.likeliest_probability)}"),
        )
        for guess in facts.guesses
    ]
    head = ("prefix that the model has read", "target", "probability of the target", "likeliest token")
    loss = sum(-math.log(max(guess.probability, 1e-30)) for guess in facts.guesses) / max(len(facts.guesses), 1)
    intro = f"<p>“{escape(facts.sentence)}” gives one training example for each position, all in one forward pass. "
    intro += f"The mean of −ln(probability) is the loss of the sentence: {loss:.4f}.</p>"
    return intro + table(head, rows)


def _gradients(facts: Facts) -> str:
    reached = sum(gradient.norm > 0 for gradient in facts.gradients)
    n = len(facts.gradients)
    verdict = "every trainable tensor" if reached == n else f"{reached} of {n} trainable tensors"
    rows = [(g.name, " × ".join(map(str, g.shape)), f"{g.norm:.3e}") for g in facts.gradients]
    shown = table(("tensor", "shape", "gradient norm"), rows, numbers=(1, 2))
    return (
        f"<p>The loss of this sentence, propagated back through the trained model, reaches <b>{verdict}</b>: "
        f"{reached} of {n} gradients differ from zero.</p>{details('All gradient norms', shown)}"
    )


def _neighbours(facts: Facts) -> str:
    def cell(found: Sequence[tuple[bytes, float]]) -> "Markup":
        return Markup(
            " ".join(f"{token_span(i, token)}<small>{cosine:.2f}</small>" for i, (token, cosine) in enumerate(found))
        )

    rows = [(Markup(token_span(0, n.token)), cell(n.before), cell(n.after)) for n in facts.neighbours]
    intro = "Nearest embeddings by cosine: random before training, what the model has learned after it."
    return f"<p>{intro}</p>" + table(("token", "before training", "after training"), rows)


def _environment(facts: Facts) -> str:
    return table((), list(facts.environment.items())) + details(
        "The resolved config", f"<pre>{escape(facts.config)}</pre>"
    )
