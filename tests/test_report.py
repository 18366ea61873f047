"""report.html: one page that needs nothing else, shows what text holds and never runs it."""

import re
from pathlib import Path

import pytest

from gptrs import chart, report
from gptrs.dataset import prepare
from gptrs.holdout import Source
from gptrs.model import ModelConfig, Transformer, count
from gptrs.tokenizer import Tokenizer
from gptrs.trace import Guess, Neighbours, Reach, Usage
from pages import Page

EVIL = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> report.Facts:
    folder = tmp_path_factory.mktemp("report")
    for name, n in (("train", 30), ("val", 4)):
        (folder / f"{name}.txt").write_text(f"{EVIL}\n\tdef f(x): return x\n" * n)
    tokenizer = Tokenizer.train([folder / "train.txt"], 280, progress=False)
    train, val = (
        prepare([folder / f"{name}.txt"], tokenizer, folder / name, progress=False) for name in ("train", "val")
    )
    sizes = ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=16, dim=8, n_layers=1, n_heads=2, inter_dim=32)
    lines = [{"kind": "train", "step": i + 1, "loss": 6 - i / 100, "tokens_per_s": 1000.0 + i} for i in range(400)]
    return report.Facts(
        name=EVIL,
        result={
            "val_loss": 2.34567,
            "unigram_entropy": 5.4321,
            "bits_per_byte": 1.9876,
            "seconds": 61.0,
            "steps": 400,
            "is_capped": False,
        },
        sources=[Source(path=f"/x/{EVIL}", n_bytes=1234567, part="both")],
        tokenizer=tokenizer,
        train=train,
        val=val,
        n_bytes=(7654321, 500),
        model=sizes,
        parts=count.of_model(Transformer(sizes)),
        lines=[*lines, {"kind": "eval", "step": 400, "val_loss": 2.34567}],
        samples=[(EVIL, f"{EVIL}\nwritten")],
        sentence="A true friend accepts you",
        guesses=[
            Guess(
                prefix=(b"A", b" true"),
                target=b" friend",
                probability=0.125,
                likeliest=b"<b>",
                likeliest_probability=0.5,
            )
        ],
        gradients=[
            Reach(name="embed.token.weight", shape=(280, 8), norm=0.5),
            Reach(name="norm.bias", shape=(8,), norm=0.25),
        ],
        neighbours=[Neighbours(token=b"self", before=((b"\xff", 0.25),), after=((b"cls", 0.75),))],
        environment={"device": f"cpu {EVIL}", "torch": "2"},
        config=f'[run]\nname = "{EVIL}"\n',
        usage=Usage(n_tokens=0),
    )


@pytest.fixture(scope="module")
def page(facts: report.Facts) -> Page:
    return Page(report.html(facts))


def test_the_page_is_well_formed_and_needs_nothing_else(facts: report.Facts, page: Page) -> None:
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img"), tag
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes), attributes
    assert not re.search(r"url\(|@import|https?:", report.html(facts))


def test_text_is_shown_never_run(page: Page) -> None:
    assert page.text.count(EVIL) >= 5  # title, heading, sample, file, environment, config


def test_every_figure_of_the_run_stands_there(page: Page) -> None:
    expected = (
        *("2.3457", "5.4321", "3.09", "1.988", "61 s", "400", "1,200"),  # results, median tokens/s
        *("7,654,321", "1,234,567", "280 ids", "gpt2"),  # data, tokenizer
        *("A true", " friend", "12.5%", "50%", "every trainable tensor", "2 of 2"),  # sentence, gradient
        *("self", "cls", "0.75", "\\xff"),  # neighbours; a byte that is no character
    )
    for text in expected:
        assert text in page.text, text


def test_the_parameter_table_is_that_of_the_built_model(facts: report.Facts, page: Page) -> None:
    for part in facts.parts:
        assert part.name in page.text and f"{part.n_params:,}" in page.text
    assert f"{count.n_params(facts.model):,}" in page.text and "trained" in page.text


def test_a_tensor_without_gradient_is_told(facts: report.Facts) -> None:
    import dataclasses

    changed = dataclasses.replace(facts, gradients=[*facts.gradients, Reach(name="lost", shape=(1,), norm=0.0)])
    text = Page(report.html(changed)).text
    assert "every trainable tensor" not in text and "2 of 3 trainable tensors" in text


def test_a_run_without_files_and_losses_still_has_a_page(facts: report.Facts) -> None:
    import dataclasses

    Page(report.html(dataclasses.replace(facts, sources=(), lines=facts.lines[-1:], samples=(), neighbours=())))


def test_the_file_is_replaced_whole(facts: report.Facts, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write(path, facts)
    assert path.read_text(encoding="utf-8") == report.html(facts) and [p.name for p in tmp_path.iterdir()] == [
        "report.html"
    ]


def test_the_axis_has_round_numbers_that_cover_the_values() -> None:
    assert chart._axis([0, 290]) == [0, 50, 100, 150, 200, 250, 300]
    assert chart._axis([2.2, 8.4]) == [2, 4, 6, 8, 10]
    for values in ([5.0], [0.0, 1e-9], [-3.0, 7.5], [1, 1000000]):
        ticks = chart._axis(values)
        assert ticks[0] <= min(values) and ticks[-1] >= max(values) and 2 <= len(ticks) <= 9


def test_a_chart_places_points_inside_its_frame() -> None:
    line = chart.Line(label="a < b", points=[(0, 1.0), (10, 3.0), (20, 2.0)], color="red", has_dots=True)
    text = chart.svg([line], x_label="x", y_label="y")
    page = Page(text)
    ((_, curve),) = [tag for tag in page.tags if tag[0] == "polyline"]
    for pair in str(curve["points"]).split():
        x, y = map(float, pair.split(","))
        assert chart.LEFT <= x <= chart.WIDTH - chart.RIGHT and chart.TOP <= y <= chart.HEIGHT - chart.BOTTOM
    assert "a < b" in page.text and sum(tag == "circle" for tag, _ in page.tags) == 3


def test_control_characters_are_shown_by_their_pictures() -> None:
    text = report.page("a\x00", [("b", "<pre>c\x1b[31m\x7f\t\n</pre>" + report.token_span(0, b"\x00\xff"))])
    assert Page(text).text.count("␀") == 3 and "c␛[31m␡\t\n" in Page(text).text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_charts_scroll_where_they_would_be_too_small_to_read() -> None:
    line = chart.Line(label="", points=[(0, 1.0), (1, 2.0)], color="red")
    for drawn in (chart.svg([line], x_label="x", y_label="y"), chart.heat([("a", [1.0])], columns=[1], x_label="x")):
        assert drawn.startswith('<div class="wide"><svg ') and drawn.endswith("</svg></div>")
    assert re.search(r"svg \{[^}]*min-width", report.page("", []))


def test_a_gpt_s_page_has_no_section_that_only_others_have(page: Page) -> None:
    for words in ("MaxVio", "Further tokens", "in this model's cache", "Beside another run"):
        assert words not in page.text
