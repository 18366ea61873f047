"""What a tokenizer does to a text, to look at: its pieces, the merges of each in the order they happen, tokens, ids.

text ── trace ──▶ [Piece] ── lines ──▶ a terminal
                          └─ page ───▶ one HTML file that needs nothing else
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from typing import Literal

from gptrs.tokenizer import SpecialNames, Text, Tokenizer

LONGEST_TREE = 200  # bytes of a piece; a wider drawing shows nothing
COLUMN, ROW = 30, 30  # pixels of a byte and of a step of merging in the drawing
COLORS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Two neighbouring tokens that became one."""

    rank: int  # the lowest goes first, the leftmost of equals
    start: int  # of the left token, in bytes from the start of the piece
    middle: int  # where the left token ends and the right one starts
    end: int
    left: int  # ids
    right: int
    product: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What the pattern cuts off the text as one; no token crosses its ends."""

    data: bytes
    start: int  # in bytes from the start of the text
    origin: Literal["merges", "whole", "special"]  # merged; a token that merges do not reach; a special token
    merges: tuple[Merge, ...]  # in the order they happen
    tokens: tuple[tuple[int, bytes], ...]  # (id, bytes)


def trace(tokenizer: Tokenizer, text: Text, *, allowed_special: SpecialNames = ()) -> list[Piece]:
    """The pieces of `text` with their merges; special-token text is ordinary text unless allowed.

    Example:
        >>> tok = Tokenizer.train_from_iterator(["low lower lowest"], 259, special_tokens=[])
        >>> piece = trace(tok, "slow")[0]
        >>> [(tok.id_to_token(m.left), tok.id_to_token(m.right)) for m in piece.merges], piece.tokens
        ([(b'l', b'o'), (b'lo', b'w')], ((115, b's'), (257, b'low')))
    """
    pieces = []
    for (start, _), origin, merges, ids in tokenizer.core.trace(text, allowed_special):
        steps = tuple(
            Merge(rank=rank, start=at, middle=middle, end=end, left=left, right=right, product=product)
            for rank, (at, middle, end), (left, right, product) in merges
        )
        tokens = tuple((i, tokenizer.id_to_token(i) or b"") for i in ids)
        data = b"".join(token for _, token in tokens)
        pieces.append(Piece(data=data, start=start, origin=origin, merges=steps, tokens=tokens))
    return pieces


# ── as text ──


def lines(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Iterator[str]:
    """The lines that `gptrs tokenizer inspect` prints."""
    yield summary(tokenizer, pieces)
    for piece in pieces:
        yield ""
        yield f"piece {quoted(piece.data)} at byte {piece.start}: {_origin(piece)}"
        parts = [(quoted(piece.data[m.start : m.middle]), quoted(piece.data[m.middle : m.end])) for m in piece.merges]
        widths = [max((len(pair[side]) for pair in parts), default=0) for side in (0, 1)]
        for n, (merge, (left, right)) in enumerate(zip(piece.merges, parts, strict=True), 1):
            product = quoted(piece.data[merge.start : merge.end])
            yield f"  {n:3}. rank {merge.rank:6}  {left:>{widths[0]}} + {right:<{widths[1]}} → {product}"
        for token_id, token in piece.tokens:
            yield f"  token {token_id:7}  {quoted(token)}"


def summary(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> str:
    """One line of totals."""
    n_tokens = sum(len(piece.tokens) for piece in pieces)
    n_bytes = sum(len(piece.data) for piece in pieces)
    counts = ((n_bytes, "byte"), (len(pieces), "piece"), (n_tokens, "token"))
    return ", ".join(f"{n:,} {word}{'s' * (n != 1)}" for n, word in counts) + f"; pattern {tokenizer.pattern}"


def quoted(data: bytes) -> str:
    """Bytes in quotes on one line: text where it is UTF-8, \\x escapes where not."""
    text = data.decode("utf-8", "backslashreplace")
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def _origin(piece: Piece) -> str:
    if piece.origin == "special":
        return "a special token"
    if piece.origin == "whole":
        return "a token as it stands, though no merges lead to it"
    n_merges, n_tokens = len(piece.merges), len(piece.tokens)
    return f"{n_merges} merge{'s' * (n_merges != 1)}, {n_tokens} token{'s' * (n_tokens != 1)}"


# ── as a page ──


def page(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> str:
    """One HTML page without scripts or anything from elsewhere; it follows the reader's light or dark setting."""
    colors = _token_colors(pieces)
    text = "".join(_colored(piece, first) for piece, first in zip(pieces, colors, strict=True))
    details = "\n".join(_section(piece, first) for piece, first in zip(pieces, colors, strict=True))
    title = "gptrs tokenizer inspect"
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p class="soft">{escape(summary(tokenizer, pieces))}</p>
<section><h2>Tokens</h2>
<div class="text">{text}</div>
<p class="soft">A colour is a token, a gap ends a piece. Point at a token for its id and its bytes.</p>
{_table(pieces, colors)}</section>
<section><h2>Merges</h2>
<p class="soft">Bytes stand at the bottom; every box above is a merge of the two below it. The number is its turn: the
lowest rank goes first, the leftmost of equals. Coloured boxes are the tokens that remain.</p>
<div class="pieces">
{details}</div></section>
</body>
</html>
"""


def _token_colors(pieces: Sequence[Piece]) -> list[int]:
    """The number of the first token of each piece; neighbours in the whole text have different colours."""
    return list(accumulate((len(piece.tokens) for piece in pieces[:-1]), initial=0)) if pieces else []


def _colored(piece: Piece, first: int) -> str:
    spans = "".join(
        f'<span class="c{(first + i) % COLORS}" title="{escape(_about(token_id, token))}">{_marked_up(token)}</span>'
        for i, (token_id, token) in enumerate(piece.tokens)
    )
    breaks = "<br>" * piece.data.count(b"\n")
    return f'<span class="piece">{spans}</span>{breaks}'


def _about(token_id: int, token: bytes) -> str:
    n = len(token)
    return f"id {token_id}, {quoted(token)}, {n} byte{'s' * (n != 1)}: {token.hex(' ')}"


def _shown(token: bytes) -> str:
    """A token where spaces and line breaks can be seen."""
    return escape("".join(_sign(c) for c in token.decode("utf-8", "backslashreplace")))


def _marked_up(token: bytes) -> str:
    """As `_shown`, with small hexadecimal digits for the bytes that are no character."""
    parts = (
        f"<b>{ord(c) - 0xDC00:02x}</b>" if "\udc80" <= c <= "\udcff" else escape(_sign(c))
        for c in token.decode("utf-8", "surrogateescape")
    )
    return "".join(parts)


def _sign(character: str) -> str:
    signs = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
    return signs.get(character) or (character if character.isprintable() else ascii(character)[1:-1])


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _table(pieces: Sequence[Piece], colors: Sequence[int]) -> str:
    starts = zip(pieces, colors, strict=True)
    tokens = [(first + i, *token) for piece, first in starts for i, token in enumerate(piece.tokens)]
    longest = max((len(token) for _, _, token in tokens), default=1)
    rows = "".join(
        f'<tr><td class="number">{token_id}</td><td><span class="c{n % COLORS}">{_marked_up(token)}</span></td>'
        f'<td class="number">{len(token)}</td><td><i class="bar c{n % COLORS}" '
        f'style="width:{9 * len(token) / longest:.2f}rem"></i></td><td class="hex">{token.hex(" ")}</td></tr>\n'
        for n, token_id, token in tokens
    )
    head = '<th class="number">id</th><th>token</th><th class="number">bytes</th><th></th><th>in hexadecimal</th>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<details open><summary>Bytes of each token</summary><div class="wide">{table}</div></details>'


def _section(piece: Piece, first: int) -> str:
    if len(piece.data) > LONGEST_TREE:
        drawing = f'<p class="soft">{len(piece.data):,} bytes are too many to draw; the command prints the merges.</p>'
    else:
        drawing = f'<div class="wide">{_tree(piece, first)}</div>'
    return f"<div><h3>{_shown(piece.data)} <small>{escape(_origin(piece))}</small></h3>{drawing}</div>"


def _tree(piece: Piece, first: int) -> str:
    """The merges as boxes: each as wide as its bytes, above the two that it joins and below what it becomes part of."""
    height_of = {(i, i + 1): 0 for i in range(len(piece.data))}
    turns: dict[tuple[int, int], tuple[int, Merge]] = {}
    below: dict[tuple[int, int], tuple[int, int]] = {}  # a box and the one that it became part of
    for turn, merge in enumerate(piece.merges, 1):
        whole = (merge.start, merge.end)
        for part in ((merge.start, merge.middle), (merge.middle, merge.end)):
            below[part] = whole
        height_of[whole] = 1 + max(height_of[merge.start, merge.middle], height_of[merge.middle, merge.end])
        turns[whole] = (turn, merge)
    ends = list(accumulate((len(token) for _, token in piece.tokens), initial=0))
    roots = {span: (first + i) % COLORS for i, span in enumerate(pairwise(ends))}
    for span in roots:
        height_of.setdefault(span, 1)  # a token that no merge made stands right above its bytes
    top = max(height_of.values())
    boxes = []
    for span, height in height_of.items():
        ceiling = height_of[below[span]] - 1 if span in below else height
        x, y = span[0] * COLUMN + 1, (top - ceiling) * ROW + 1
        size = ((span[1] - span[0]) * COLUMN - 2, (ceiling - height + 1) * ROW - 2)
        boxes.append(_box(piece.data[slice(*span)], (x, y, *size), turns.get(span), roots.get(span)))
    width, height = len(piece.data) * COLUMN, (top + 1) * ROW
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(boxes)}</svg>'


def _box(token: bytes, box: tuple[int, int, int, int], step: tuple[int, Merge] | None, color: int | None) -> str:
    """A box, coloured when it is a token in the end; `step` is its turn and the merge that made it."""
    x, y, width, height = box
    if step is None:
        about = f"byte {token.hex()}" if len(token) == 1 else "a token that no merge made"
    else:
        about = f"merge {step[0]}, rank {step[1].rank}: id {step[1].product}"
    name = "box" if color is None else f"box k{color}"
    label = _shown(token) if _is_text(token) else token.hex()
    turn = "" if step is None else f'<text class="turn" x="{x + 4}" y="{y + 9}">{step[0]}</text>'
    middle = (x + width / 2, y + height / 2 + 4.5)
    return (
        f"<g><title>{escape(f'{quoted(token)}, {about}')}</title>"
        f'<rect class="{name}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>{turn}'
        f'<text x="{middle[0]:g}" y="{middle[1]:g}">{label}</text></g>'
    )


_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1d2330; --soft: #667085; --rule: #d9dce3;
  --c0: #cfe2fb; --c1: #fbe0bb; --c2: #cdeccf; --c3: #f4cfec; --c4: #d9d3fa; --c5: #f9d3cb; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --card: #1b1f27; --ink: #e4e7ee; --soft: #98a1b3;
  --rule: #3a4150; --c0: #27466f; --c1: #5d431d; --c2: #25502d; --c3: #5a3155; --c4: #403a75; --c5: #65372d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 0 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 2rem 0 0; } h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
h3 { font: 600 15px/1.4 ui-monospace, monospace; margin: 1.4rem 0 .5rem; overflow-wrap: anywhere; }
.pieces { display: flex; flex-wrap: wrap; gap: 0 2.6rem; align-items: flex-end; } .pieces div { max-width: 100%; }
small { font: 13px system-ui, sans-serif; color: var(--soft); margin-left: .5rem; }
.soft, summary { color: var(--soft); font-size: .88rem; } p { margin: .3rem 0 .8rem; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; margin-top: 1.2rem;
  padding: 1.1rem 1.3rem 1.3rem; }
.text { font: 17px/2.1 ui-monospace, monospace; overflow-wrap: anywhere; margin-bottom: .6rem; }
.piece { margin-right: .4em; } .piece span { padding: .25em .12em; cursor: default; }
.piece span:first-child { border-radius: 5px 0 0 5px; } .piece span:last-child { border-radius: 0 5px 5px 0; }
.piece span:only-child { border-radius: 5px; }
.c0 { background: var(--c0); } .c1 { background: var(--c1); } .c2 { background: var(--c2); }
.c3 { background: var(--c3); } .c4 { background: var(--c4); } .c5 { background: var(--c5); }
.wide { overflow-x: auto; } details { margin-top: .4rem; } summary { cursor: pointer; }
table { border-collapse: collapse; margin-top: .4rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .85rem; }
th, td { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule); } tr:last-child td { border-bottom: 0; }
td span { font: 14px/1.6 ui-monospace, monospace; padding: .1em .3em; border-radius: 4px; white-space: pre; }
span b { font: 500 .72em ui-monospace, monospace; opacity: .8; margin: 0 .12em; }
.number { text-align: right; } .hex { font: 13px ui-monospace, monospace; color: var(--soft); }
.bar { display: inline-block; height: .7rem; border-radius: 3px; }
svg { display: block; } svg text { fill: var(--ink); text-anchor: middle; font: 13px ui-monospace, monospace; }
svg .turn { fill: var(--soft); text-anchor: start; font: 9px system-ui, sans-serif; }
.box { fill: none; stroke: var(--rule); }
.k0 { fill: var(--c0); stroke: none; } .k1 { fill: var(--c1); stroke: none; } .k2 { fill: var(--c2); stroke: none; }
.k3 { fill: var(--c3); stroke: none; } .k4 { fill: var(--c4); stroke: none; } .k5 { fill: var(--c5); stroke: none; }
"""
