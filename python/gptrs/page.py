"""Self-contained pages: sections of text, tables and coloured tokens; nothing is fetched and nothing runs."""

from collections.abc import Iterable, Sequence
from html import escape

# Control characters have no sign and NUL may not stand in a page: each is shown by its picture, ␀ or ␛.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code not in b"\t\n\r"} | {0x7F: "␡"}


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """Returns a page of (heading, HTML) sections; `title` and headings are plain text."""
    body = "\n".join(f"<section><h2>{escape(heading)}</h2>\n{content}\n</section>" for heading, content in sections)
    title = escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = f"<header><h1>{title}</h1></header>\n<main>\n{body}\n</main>"
    head += f"\n<style>{_STYLE}</style>"
    whole = f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{page}\n</body>\n</html>\n'
    return whole.translate(_PICTURES)


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Returns large figures with a line below each."""
    out = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in figures)
    return f'<div class="tiles">{out}</div>'


class Markup(str):
    """HTML that a table takes as it is; any other text is escaped."""

    __slots__ = ()


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Returns a table; the columns in `numbers` are set flush right."""

    def cell(tag: str, column: int, value: str) -> str:
        name = ' class="number"' if column in numbers else ""
        return f"<{tag}{name}>{value if isinstance(value, Markup) else escape(str(value))}</{tag}>"

    top = "".join(cell("th", i, value) for i, value in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, value) for i, value in enumerate(row))}</tr>\n" for row in rows)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f"<div class='wide'><table>{top}<tbody>{body}</tbody></table></div>"


def bar(share: float) -> str:
    """Returns a share as a bar with its percentage behind it."""
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span> {percent(share)}'


def percent(share: float) -> str:
    """Returns three digits that count, also of small shares."""
    return f"{100 * share:.3g}%"


def details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def token_span(i: int, token: bytes, *, line_end: str = "⏎") -> str:
    """A token on a coloured ground; neighbours differ. Bytes that are no character are shown as \\x.."""
    text = token.decode("utf-8", "backslashreplace").replace("\t", "⇥").replace("\r", "␍").replace("\n", line_end)
    return f'<span class="t{i % 4}">{escape(text)}</span>'


_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1d2330; --soft: #6d7585; --rule: #e3e5ea;
  --train: #6f9bd1; --val: #c8553d; --other: #3f8a5b; --t0: #dbe8fb; --t1: #fbe7cf; --t2: #dcf1dc; --t3: #f3dcef; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --card: #1b1f27; --ink: #e4e7ee; --soft: #939cad;
  --rule: #2d333f; --train: #6f9bd1; --val: #ee8068; --other: #6fc08c; --t0: #263a57; --t1: #4d3a20; --t2: #244029;
  --t3: #472a43; } }
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
.heat { display: block; border-radius: 3px; padding: 0 .35rem; }
svg { width: 100%; min-width: 36rem; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); }
"""
