"""Sections for what only some models have: every number that stands there, from small cases counted by hand."""

import pytest

from gptrs import model_report
from gptrs.model import ModelConfig, memory
from gptrs.trace import Further, Load, Usage
from gptrs.train.rundir import Outcome
from pages import Page

USAGE = Usage(
    n_tokens=1000,
    loads=(
        Load(layer="layer 1", counts=(500, 250, 250, 1000)),
        Load(layer="further token 1", counts=(500, 500, 500, 500)),
    ),
)
RESULT = {"val_loss": 4.5, "bits_per_byte": 1.75, "n_params": 6_860_656, "steps": 560, "seconds": 170.4}


def outcome(name: str, **changed: object) -> Outcome:
    lines = [{"kind": "train", "step": i, "time_s": i / 2, "loss": 9.0, "next_loss": 6.0} for i in range(1, 9)]
    lines.append({"kind": "eval", "step": 8, "time_s": 4.0, "val_loss": 4.5})
    given = {"name": name, "result": RESULT, "lines": lines, "tokenizer": "t", "data": ("a", "b")}
    return Outcome(**given | changed)  # type: ignore[arg-type]


def test_experts_show_each_share_and_how_far_the_busiest_is_above_the_mean() -> None:
    lines = [{"kind": "train", "step": 10 * i, "max_violation": 3.0 / i} for i in range(1, 5)]
    page = Page(model_report.experts(USAGE, lines))
    assert page.open == []
    for text in ("1,000 held-out tokens", "25% each", "12.5%", "50%", "1.00", "0.00", "layer 1", "further token 1"):
        assert text in page.text, text
    heats = [str(attributes["style"]) for tag, attributes in page.tags if attributes.get("class") == "heat"]
    assert len(heats) == 8 and "70%" in heats[3] and heats[4] == heats[5]
    assert "polyline" in dict(page.tags)
    assert "polyline" not in dict(Page(model_report.experts(USAGE, [])).tags)


def test_the_violation_is_the_busiest_expert_over_the_mean() -> None:
    assert model_report.violation((2, 1, 1)) == pytest.approx(0.5)
    assert model_report.violation((1, 1)) == 0.0


def test_the_cache_stands_beside_that_of_other_attention() -> None:
    page = Page(model_report.cache(memory.cache_kinds(ModelConfig.preset("deepseek-tiny"))))
    # six layers, two bytes: a latent of 64 and a rotated key of 16; six heads of keys 48 and values 32 wide
    for text in ("960 bytes", "6 times less", "MLA (this model)", "64 + 16", "5,760", "6·(48 + 32)", "MQA", "16.7%"):
        assert text in page.text, text


def test_further_tokens_show_loss_hits_and_acceptance() -> None:
    found = Further(depth=1, n_targets=1234, loss=5.4321, right=0.125, next_right=0.25, accepted=0.375)
    page = Page(model_report.further([found]))
    for text in ("5.4321", "12.5%", "25%", "37.5%", "1,234"):
        assert text in page.text, text
    assert [word for word in page.words if word == "2"], "depth 1 predicts the second token behind a position"


def test_two_runs_stand_side_by_side_with_their_difference() -> None:
    other = outcome("demo", result=RESULT | {"val_loss": 3.875, "bits_per_byte": 1.5, "n_params": 1_334_016})
    page = Page(model_report.beside(outcome("mine <b>"), other))
    for text in (
        "0.6250 nats above that of demo",
        "4.5000",
        "3.8750",
        "1.750",
        "1.500",
        "6,860,656",
        "1,334,016",
        "170 s",
    ):
        assert text in page.text, text
    assert sum(tag == "polyline" for tag, _ in page.tags) == 4 and "mine <b>, validation" in page.text
    curves = [str(attributes["points"]) for tag, attributes in page.tags if tag == "polyline"]
    assert curves[0] == curves[2], "the next token's loss, not the sum with other parts"


def test_without_another_run_the_reason_stands_there() -> None:
    page = Page(model_report.beside(outcome("mine"), "No run <here>."))
    assert page.text == "No run <here>." and "svg" not in dict(page.tags)
