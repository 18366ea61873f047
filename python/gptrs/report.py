"""report.html: one self-contained page about a run. Every figure in it comes from that run's own files and model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptrs import chart
from gptrs.data import Dataset
from gptrs.files import write_atomic
from gptrs.holdout import Source
from gptrs.model import count
from gptrs.model.config import ModelConfig
from gptrs.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptrs.trace import Guess, Neighbours, Reach

EXAMPLE_TOKENS = 220  # of held-out text, shown in colours
LONGEST_TOKENS = (20, 6)  # with letters, without
SHOWN_FILES = 8
CURVE_POINTS = 60  # means of neighbouring losses: single small batches scatter


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Facts:
    """Everything that the page shows."""

    name: str
    result: dict[str, Any]  # val_loss, unigram_entropy, bits_per_byte, seconds, steps, is_capped
    sources: Sequence[Source]  # empty for prepared datasets
    tokenizer: Tokenizer
    train: Dataset
    val: Dataset
    n_bytes: tuple[int, int]  # text of train and val
    model: ModelConfig
    parts: Sequence[count.Part]  # counted in the trained model
    lines: Sequence[dict[str, Any]]  # of metrics.jsonl
    samples: Sequence[tuple[str, str]]  # (prompt, continuation)
    sentence: str
    guesses: "Sequence[Guess]"
    gradients: "Sequence[Reach]"
    neighbours: "Sequence[Neighbours]"
    environment: dict[str, str]
    config: str  # resolved, as TOML


def write(path: Path, facts: Facts) -> None:
    """Writes the page; an earlier one stays until the new one is complete."""
    write_atomic(path, html(facts).encode())


def html(facts: Facts) -> str:
    """Returns the page."""
    sections = (
        ("Result", _result(facts)),
        ("Loss", _loss(facts)),
        ("Samples", _samples(facts)),
        ("Data", _data(facts)),
        ("Tokenizer", _tokenizer(facts)),
        ("Parameters", _parameters(facts)),
        ("One sentence, position by position", _sentence(facts)),
        ("Where the gradient reaches", _gradients(facts)),
        ("Neighbours of ten tokens", _neighbours(facts)),
        ("Environment and config", _environment(facts)),
    )
    body = "\n".join(f"<section><h2>{escape(title)}</h2>\n{content}\n</section>" for title, content in sections)
    title = f"gptrs run {escape(facts.name)}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = f"<header><h1>{title}</h1></header>\n<main>\n{body}\n</main>"
    head += f"\n<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{page}\n</body>\n</html>\n'


def _result(facts: Facts) -> str:
    r = facts.result
    speeds = sorted(line["tokens_per_s"] for line in facts.lines if line["kind"] == "train")
    tiles = (
        (f"{r['val_loss']:.4f}", "validation loss, nats per token"),
        (f"{r['unigram_entropy']:.4f}", "unigram entropy of the validation tokens, nats"),
        (f"{r['unigram_entropy'] - r['val_loss']:.2f}", "nats gained over token frequencies"),
        (f"{r['bits_per_byte']:.3f}", "bits per byte of held-out text"),
        (f"{sum(part.n_params for part in facts.parts):,}", "parameters"),
        (f"{r['steps']:,}", "optimizer updates" + ", then train.max_minutes ended it" * r["is_capped"]),
        (f"{r['seconds']:.0f} s", "training time, evaluation included"),
        (f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "none", "tokens per second, median"),
    )
    out = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    return f'<div class="tiles">{out}</div>'


def _loss(facts: Facts) -> str:
    train = [(line["step"], line["loss"]) for line in facts.lines if line["kind"] == "train"]
    val = [(line["step"], line["val_loss"]) for line in facts.lines if line["kind"] == "eval"]
    width = max(1, -(-len(train) // CURVE_POINTS))
    runs = [train[i : i + width] for i in range(0, len(train), width)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
    entropy = facts.result["unigram_entropy"]
    ends = [x for x, _ in train + val]
    curves = (
        chart.Line(label="training", points=means, color="var(--train)"),
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
    out = (f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>" for prompt, text in facts.samples)
    return "<p>The prompt is bold; the rest was written by the trained model.</p>" + "".join(out)


def _data(facts: Facts) -> str:
    rows = [
        (part, f"{dataset.n_documents:,}", f"{n_bytes:,}", f"{dataset.n_tokens:,}", dataset.fingerprint[:16])
        for part, dataset, n_bytes in zip(("train", "validation"), (facts.train, facts.val), facts.n_bytes, strict=True)
    ]
    out = _table(("part", "documents", "bytes of text", "tokens", "fingerprint"), rows, numbers=(1, 2, 3))
    if not facts.sources:
        return out
    largest = sorted(facts.sources, key=lambda source: -source.n_bytes)[:SHOWN_FILES]
    n, total = len(facts.sources), sum(source.n_bytes for source in facts.sources)
    n_held_out = sum(source.part == "val" for source in facts.sources)
    how = f"{n_held_out:,} of them held out whole" if n_held_out else "the end of which is held out"
    out += f"<p>{n:,} file{'s' * (n > 1)} of {total:,} bytes, {how}.</p>"
    shown = [(source.path, f"{source.n_bytes:,}", source.part) for source in largest]
    return out + _details("The largest files", _table(("file", "bytes", "part"), shown, numbers=(1,)))


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
    example = "".join(_span(i, tokenizer.id_to_token(n) or b"", line_end="⏎\n") for i, n in enumerate(ids))
    return (
        _table((), rows)
        + f"<h3>Longest tokens, with letters and without</h3><p>{longest[0]}</p><p>{longest[1]}</p>"
        + f"<h3>The first {len(ids)} tokens of the held-out text</h3><pre>{example}</pre>"
    )


def _longest(pieces: Sequence[bytes], n: int, *, has_letters: bool) -> str:
    """The n longest of the tokens that have a letter, or of those that have none, each with its length."""
    chosen = [
        piece for piece in pieces if piece and any(map(str.isalpha, piece.decode("utf-8", "ignore"))) == has_letters
    ]
    longest = sorted(chosen, key=len, reverse=True)[:n]
    return " ".join(f"{_span(i, piece)}<small>{len(piece)}</small>" for i, piece in enumerate(longest))


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
    table = _table(("part", "formula", "parameters", "share", "trainability"), rows, numbers=(2, 3))
    return f"<p>Counted in the trained model: {escape(sizes)}, {facts.model.position} positions.</p>{table}"


def _sentence(facts: Facts) -> str:
    rows = [
        (
            _Markup("".join(_span(i, piece) for i, piece in enumerate(guess.prefix))),
            _Markup(_span(len(guess.prefix), guess.target)),
            _Markup(_bar(guess.probability)),
            _Markup(f"{_span(0, guess.likeliest)} {_percent(guess.likeliest_probability)}"),
        )
        for guess in facts.guesses
    ]
    head = ("prefix that the model has read", "target", "probability of the target", "likeliest token")
    loss = sum(-math.log(max(guess.probability, 1e-30)) for guess in facts.guesses) / max(len(facts.guesses), 1)
    intro = f"<p>“{escape(facts.sentence)}” gives one training example for each position, all in one forward pass. "
    intro += f"The mean of −ln(probability) is the loss of the sentence: {loss:.4f}.</p>"
    return intro + _table(head, rows)


def _gradients(facts: Facts) -> str:
    reached = sum(gradient.norm > 0 for gradient in facts.gradients)
    n = len(facts.gradients)
    verdict = "every trainable tensor" if reached == n else f"{reached} of {n} trainable tensors"
    rows = [(g.name, " × ".join(map(str, g.shape)), f"{g.norm:.3e}") for g in facts.gradients]
    table = _table(("tensor", "shape", "gradient norm"), rows, numbers=(1, 2))
    return (
        f"<p>The loss of this sentence, propagated back through the trained model, reaches <b>{verdict}</b>: "
        f"{reached} of {n} gradients differ from zero.</p>{_details('All gradient norms', table)}"
    )


def _neighbours(facts: Facts) -> str:
    def cell(found: Sequence[tuple[bytes, float]]) -> "_Markup":
        return _Markup(
            " ".join(f"{_span(i, token)}<small>{cosine:.2f}</small>" for i, (token, cosine) in enumerate(found))
        )

    rows = [(_Markup(_span(0, n.token)), cell(n.before), cell(n.after)) for n in facts.neighbours]
    intro = "Nearest embeddings by cosine: random before training, what the model has learned after it."
    return f"<p>{intro}</p>" + _table(("token", "before training", "after training"), rows)


def _environment(facts: Facts) -> str:
    table = _table((), list(facts.environment.items()))
    return table + _details("The resolved config", f"<pre>{escape(facts.config)}</pre>")


class _Markup(str):
    """HTML that a table takes as it is; any other text is escaped."""

    __slots__ = ()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Returns a table; the columns in `numbers` are set flush right."""

    def cell(tag: str, column: int, value: str) -> str:
        name = ' class="number"' if column in numbers else ""
        return f"<{tag}{name}>{value if isinstance(value, _Markup) else escape(str(value))}</{tag}>"

    top = "".join(cell("th", i, value) for i, value in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, value) for i, value in enumerate(row))}</tr>\n" for row in rows)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f"<div class='wide'><table>{top}<tbody>{body}</tbody></table></div>"


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _span(i: int, token: bytes, *, line_end: str = "⏎") -> str:
    """A token on a coloured ground; neighbours differ. Bytes that are no character are shown as \\x.."""
    text = token.decode("utf-8", "backslashreplace").replace("\t", "⇥").replace("\r", "␍").replace("\n", line_end)
    return f'<span class="t{i % 4}">{escape(text)}</span>'


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span> {_percent(share)}'


def _percent(share: float) -> str:
    """Three digits that count, also of small shares."""
    return f"{100 * share:.3g}%"


_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1d2330; --soft: #6d7585; --rule: #e3e5ea;
  --train: #6f9bd1; --val: #c8553d; --t0: #dbe8fb; --t1: #fbe7cf; --t2: #dcf1dc; --t3: #f3dcef; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --card: #1b1f27; --ink: #e4e7ee; --soft: #939cad;
  --rule: #2d333f; --train: #6f9bd1; --val: #ee8068; --t0: #263a57; --t1: #4d3a20; --t2: #244029; --t3: #472a43; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 0 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 2.2rem 0 0; } h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; } p { margin: .3rem 0 .8rem; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; margin-top: 1.2rem;
  padding: 1.1rem 1.3rem 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; }
.tiles b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.tiles span, small, summary { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .85rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; } .number { text-align: right; }
pre { background: var(--ground); border: 1px solid var(--rule); border-radius: 6px; padding: .7rem .9rem;
  margin: .6rem 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 28rem; overflow-y: auto;
  font: 13px/1.5 ui-monospace, monospace; }
.t0, .t1, .t2, .t3 { border-radius: 3px; padding: 0 1px; white-space: pre; font: 13px/1.6 ui-monospace, monospace; }
pre [class] { white-space: pre-wrap; }
.t0 { background: var(--t0); } .t1 { background: var(--t1); }
.t2 { background: var(--t2); } .t3 { background: var(--t3); }
small { margin: 0 .6rem 0 .15rem; } details { margin-top: .6rem; } summary { cursor: pointer; }
.bar { display: inline-block; width: 7rem; height: .6rem; background: var(--rule); border-radius: 3px;
  margin-right: .4rem; }
.bar i { display: block; height: 100%; background: var(--train); border-radius: 3px; min-width: 1px; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); }
"""
