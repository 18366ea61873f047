"""`gptrs tokenizer inspect`: what happens to a text on its way to ids, as lines and as a page."""

import re
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from conftest import Cli
from gptrs import Tokenizer
from gptrs.inspect import COLORS, Piece, lines, page, quoted, summary, trace


@pytest.fixture(scope="module")
def low() -> Tokenizer:
    """Four merges that can be followed by hand: lo, low, " low", er."""
    return Tokenizer.train_from_iterator(["low low low lower lower we"], 261)


def by_hand(tokenizer: Tokenizer, piece: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """The merges in their order and the tokens that stay: always the pair whose product has the lowest id."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    merges = []
    while True:
        ids = [(tokenizer.token_to_id(a + b), i) for i, (a, b) in enumerate(pairwise(parts))]
        best = min(((token_id, i) for token_id, i in ids if token_id is not None), default=None)
        if best is None:
            return merges, parts
        i = best[1]
        merges.append((parts[i], parts[i + 1]))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_the_lines_name_pieces_merges_and_tokens(low: Tokenizer):
    pieces = trace(low, "slower é")
    assert list(lines(low, pieces)) == [
        "9 bytes, 2 pieces, 6 tokens; pattern gpt2",
        "",
        'piece "slower" at byte 0: 3 merges, 3 tokens',
        '    1. rank      0   "l" + "o" → "lo"',
        '    2. rank      1  "lo" + "w" → "low"',
        '    3. rank      3   "e" + "r" → "er"',
        '  token     115  "s"',
        '  token     257  "low"',
        '  token     259  "er"',
        "",
        'piece " é" at byte 6: 0 merges, 3 tokens',
        '  token      32  " "',
        '  token     195  "\\xc3"',
        '  token     169  "\\xa9"',
    ]


def test_merges_happen_in_the_order_of_a_hand_made_encoder(gpt2_like: Tokenizer, unicode_strings: list[str]):
    for text in ["the difference between these functions", "    return self.__class__(self)", *unicode_strings[:500]]:
        pieces = trace(gpt2_like, text)
        assert b"".join(piece.data for piece in pieces) == text.encode()
        for piece in pieces:
            merges = [(piece.data[m.start : m.middle], piece.data[m.middle : m.end]) for m in piece.merges]
            assert (merges, [token for _, token in piece.tokens]) == by_hand(gpt2_like, piece.data)
            for m in piece.merges:
                assert gpt2_like.id_to_token(m.product) == piece.data[m.start : m.end]
                assert gpt2_like.id_to_token(m.left) == piece.data[m.start : m.middle]
                assert m.rank == m.product - 256
        ids = [token_id for piece in pieces for token_id, _ in piece.tokens]
        assert ids == gpt2_like.encode_ordinary(text)


def test_special_tokens_are_text_unless_allowed(low: Tokenizer):
    special = trace(low, "we<|endoftext|>", allowed_special="all")
    assert [(piece.origin, piece.start) for piece in special] == [("merges", 0), ("special", 2)]
    assert special[1].tokens == ((low.eot_id, b"<|endoftext|>"),)
    assert all(piece.origin == "merges" for piece in trace(low, "we<|endoftext|>"))


def test_gpt2_knows_friend_and_ship(gpt2: Tokenizer):
    (piece,) = trace(gpt2, "friendship")
    assert [token for _, token in piece.tokens] == [b"friend", b"ship"]
    assert len(piece.merges) == 8 and [m.rank for m in piece.merges] == sorted(m.rank for m in piece.merges)
    assert by_hand(gpt2, b"friendship")[1] == [b"friend", b"ship"]


class Page(HTMLParser):
    """Tags, titles, visible text and anything that would be loaded from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown.append(data)


def test_the_page_is_whole_and_loads_nothing(low: Tokenizer):
    pieces = trace(low, 'lower <b>&"slow"</b> 中\n<script>')
    text = page(low, pieces)
    read = Page(text)
    assert read.links == [] and "script" not in read.tags and "<b>&amp;" not in text
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert "low" in read.shown and "&lt;" not in read.shown, "escaped once"
    assert read.tags.count("svg") == len(pieces)
    assert read.tags.count("tr") == 1 + sum(len(piece.tokens) for piece in pieces)


def test_what_has_no_sign_is_shown_by_its_escape(low: Tokenizer):
    shown = Page(page(low, trace(low, "\x1b\u202elow"))).shown
    assert "\\x1b" in shown and "\\u202e" in "".join(shown) and "\u202e" not in "".join(shown)


def test_a_drawing_has_a_box_for_each_byte_and_merge_and_none_overlap(gpt2_like: Tokenizer):
    (piece,) = trace(gpt2_like, "functionality")
    rects = re.findall(r'x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)" rx', page(gpt2_like, [piece]))
    boxes = [tuple(map(int, rect)) for rect in rects]
    assert len(boxes) == len(piece.data) + len(piece.merges) and len(piece.merges) > 3
    for (x, y, width, height), (x2, y2, width2, height2) in combinations(boxes, 2):
        assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y


def test_a_special_token_is_drawn_as_one_box(low: Tokenizer):
    (piece,) = trace(low, "<|endoftext|>", allowed_special="all")
    text = page(low, [piece])
    assert Page(text).tags.count("rect") == len(piece.data) + 1 and "a token that no merge made" in text


def test_neighbouring_tokens_differ_in_colour(gpt2_like: Tokenizer):
    text = page(gpt2_like, trace(gpt2_like, "one two three four five six seven"))
    shown = text.split('<div class="text">')[1].split("</div>")[0]
    colors = [int(part[0]) for part in shown.split('<span class="c')[1:]]
    assert len(colors) > COLORS and all(a != b for a, b in pairwise(colors))


def test_texts_at_the_edge_make_a_page(low: Tokenizer):
    for text in ("", " ", "\n", b"\xff\x00", "\ud800", "low" * 400):
        pieces = trace(low, text)
        Page(page(low, pieces))
        assert len(list(lines(low, pieces))) >= 1
    assert "too many to draw" in page(low, trace(low, "low" * 400))
    assert summary(low, []) == "0 bytes, 0 pieces, 0 tokens; pattern gpt2"
    assert quoted(b"a\n\xff") == '"a\\n\\xff"'


def test_the_command_prints_and_writes(low: Tokenizer, tmp_path: Path, cli: Cli):
    file = tmp_path / "tokenizer.json"
    low.save(file)
    pieces: list[Piece] = trace(low, "slower")
    assert cli("tokenizer", "inspect", file, "slower").stdout.splitlines() == list(lines(low, pieces))
    assert cli("tokenizer", "inspect", file, input="slower").stdout.splitlines() == list(lines(low, pieces))
    end = cli("tokenizer", "inspect", file, "slower", "--html", tmp_path / "page.html")
    assert end.stdout == f"{tmp_path / 'page.html'}: {summary(low, pieces)}\n" and end.stderr == ""
    assert (tmp_path / "page.html").read_text("utf-8") == page(low, pieces)
    wrong = cli("tokenizer", "inspect", file, "slower", "--html", tmp_path / "none" / "page.html")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and "none" in wrong.stderr
    (tmp_path / "folder").mkdir()
    for place, reason in (("none/page.html", "No such file or directory"), ("folder", "Is a directory")):
        wrong = cli("tokenizer", "inspect", file, "slower", "--html", tmp_path / place)
        assert wrong.stderr.endswith(f"{reason}: '{tmp_path / place}'\n"), "the file that was asked for"
