"""The report of training: every figure is what one counts by hand, and the page needs nothing else."""

import json
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

from conftest import Cli
from gptrs import Tokenizer, tokenizer_report
from pages import Page

EVIL = "<script>alert('x')</script> & \"quotes\" "


@pytest.fixture(scope="module")
def texts(stdlib_files: list[Path]) -> list[str]:
    return [EVIL * 30, *(path.read_text("utf-8") for path in stdlib_files[:6])]


def test_the_figures_are_those_of_encoding_the_text(texts: list[str], stdlib_files: list[Path], tmp_path: Path):
    path = tmp_path / "report.json"
    held_out = stdlib_files[7]
    held_copy = tmp_path / "held.txt"
    held_copy.write_bytes(held_out.read_bytes())
    tok = Tokenizer.train_from_iterator(texts, 900, report=path, held_out=[held_copy], min_count=2, max_token_bytes=12)
    report = json.loads(path.read_text("utf-8"))
    uses = Counter(i for text in texts for i in tok.encode_ordinary(text))
    n_bytes = sum(len(text.encode()) for text in texts)
    assert report["trained_text"] == {
        "n_bytes": n_bytes,
        "n_tokens": uses.total(),
        "bytes_per_token": round(n_bytes / uses.total(), 4),
    }
    assert report["corpus"]["n_bytes"] == n_bytes and report["corpus"]["n_documents"] == len(texts)
    held_bytes, held_tokens = held_copy.stat().st_size, tok.count(held_copy.read_bytes())
    assert report["held_out"]["n_bytes"] == held_bytes and report["held_out"]["n_tokens"] == held_tokens
    assert report["held_out"]["bytes_per_token"] == round(held_bytes / held_tokens, 4)
    ids = range(tok.vocab_size - 1)
    assert report["tokens"]["n_unused"] == sum(i not in uses for i in ids)
    for row in report["tokens"]["longest"] + report["tokens"]["most_used"] + report["tokens"]["least_used"]:
        token = tok.id_to_token(row["id"])
        assert token is not None and row["n_bytes"] == len(token) and row["n_uses"] == uses[row["id"]]
        assert row["token"] == tokenizer_report.show(token)
    lengths = Counter(len(tok.id_to_token(i) or b"") for i in ids)
    assert report["tokens"]["lengths"] == {str(n): lengths[n] for n in sorted(lengths)} and max(lengths) == 12
    assert report["tokens"]["longest"][0]["n_bytes"] == 12
    assert [row["id"] for row in report["tokens"]["most_used"][:1]] == [uses.most_common(1)[0][0]]
    assert report["tokens"]["coverage"][-1][1] == pytest.approx(1.0)
    assert report["tokenizer"]["digest"] == tok.digest and report["tokenizer"]["special_tokens"] == tok.special_tokens
    assert report["options"] == {"min_count": 2, "max_token_bytes": 12, "held_out": str(held_copy)}
    assert set(report["seconds"]) == {"count", "merge", "measure"} and all(t > 0 for t in report["seconds"].values())


def test_the_page_says_the_same_and_needs_nothing_else(texts: list[str], tmp_path: Path):
    for name in ("report.html", "report.json"):
        Tokenizer.train_from_iterator(texts, 700, report=tmp_path / name, special_tokens=[EVIL])
    html = (tmp_path / "report.html").read_text("utf-8")
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img"), tag
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes), attributes
    assert not re.search(r"url\(|@import|https?:", html)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert EVIL.strip() in page.text
    for figure in (f"{report['trained_text']['bytes_per_token']:.3f}", f"{report['corpus']['n_words']:,}", "700"):
        assert figure in page.text
    for row in report["tokens"]["longest"]:
        assert row["token"] in page.text and f"{row['n_uses']:,}" in page.text


def test_a_fraction_is_held_out_and_not_trained_on(corpus: Path, tmp_path: Path, cli: Cli):
    one = tmp_path / "one.txt"
    one.write_text("abab " * 900 + "xyxy " * 100)
    arguments = ("tokenizer", "train", one, "-n", 259, "--special", "<e>", "--held-out", 0.1)
    end = cli(*arguments, "-o", tmp_path / "t.json", "--report", tmp_path / "r.json")
    assert end.returncode == 0, end.stderr
    tok = Tokenizer.from_file(tmp_path / "t.json")
    assert tok.encode_ordinary("ab") == [256] and len(tok.encode_ordinary("xy")) == 2
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert (report["corpus"]["n_bytes"], report["held_out"]["n_bytes"]) == (4500, 500)
    assert report["held_out"]["bytes_per_token"] == 1.0 < report["trained_text"]["bytes_per_token"]
    end = cli(
        "tokenizer",
        "train",
        corpus,
        "-n",
        600,
        "--held-out",
        0.2,
        "-o",
        tmp_path / "t.json",
        "--report",
        tmp_path / "r.json",
    )
    assert end.returncode == 0, end.stderr
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    n_documents = report["corpus"]["n_documents"] + report["held_out"]["n_documents"]
    assert n_documents == 40 and report["held_out"]["n_documents"] > 0
    assert not list(tmp_path.glob("gptrs-*"))


def test_what_is_held_out_is_not_trained_on_under_any_name(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    seen, other = tmp_path / "deep" / "a.txt", tmp_path / "b.txt"
    seen.write_text("abab")
    other.write_text("xyxy")
    (tmp_path / "link.txt").symlink_to(seen)
    report = tmp_path / "r.json"
    for held_out in (seen, tmp_path / "deep" / ".." / "deep" / "a.txt", tmp_path / "link.txt", [other, tmp_path]):
        with pytest.raises(ValueError, match=rf"held_out must be files that are not trained on, got {seen} in both"):
            Tokenizer.train(tmp_path / "deep", 257, report=report, held_out=held_out)
    Tokenizer.train(seen, 257, report=report, held_out=other)
    # Of a fraction each file counts once, however often it is named.
    again = tmp_path / "deep" / ".." / "deep" / "a.txt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer.train([seen, again], 256, special_tokens=[], report=report, held_out=0.5)
    assert json.loads(report.read_text())["corpus"]["n_bytes"] == 2


def test_counts_and_runs_of_words_have_a_report_as_well(corpus: Path, tmp_path: Path, cli: Cli):
    assert cli("tokenizer", "count", corpus, "-o", tmp_path / "a.gtc").returncode == 0
    path = tmp_path / "r.json"
    tok = Tokenizer.train_from_counts(tmp_path / "a.gtc", 500, report=path)
    report = json.loads(path.read_text("utf-8"))
    files = [path.read_text("utf-8") for path in corpus.glob("*.txt")]
    lines = [json.loads(line)["text"] for line in (corpus / "more.jsonl").read_text("utf-8").splitlines()]
    assert report["trained_text"]["n_tokens"] == sum(map(tok.count, files + lines))
    assert set(report["seconds"]) == {"read counts", "merge", "measure"} and report["held_out"] is None
    tok = Tokenizer.train(corpus, 500, superbpe_from=400, report=path)
    report = json.loads(path.read_text("utf-8"))
    assert report["trained_text"]["n_tokens"] == sum(map(tok.count, files + lines))


def test_a_mistake_in_the_reports_arguments_is_found_before_the_work(corpus: Path, tmp_path: Path, cli: Cli):
    for arguments, says in (
        (("--report", tmp_path / "missing" / "r.html"), "folder that exists"),
        (("--report", tmp_path / "r.html", "--held-out", 1.5), "between 0 and 1"),
        (("--report", tmp_path / "r.html", "--held-out", tmp_path / "missing.txt"), "missing.txt"),
        (("--held-out", 0.1), "report=FILE"),
    ):
        end = cli("tokenizer", "train", corpus, "-n", 500, "-o", tmp_path / "t.json", *arguments)
        assert end.returncode == 1 and says in end.stderr and "Traceback" not in end.stderr, end.stderr
    assert list(tmp_path.iterdir()) == []
