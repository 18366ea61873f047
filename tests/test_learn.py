"""docs/learn is true: its blocks print what it says, its links and names lead somewhere, its tables are the rows."""

import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "learn").glob("*.md"))
LESSONS = [page for page in PAGES if page.name != "README.md"]
BLOCK = re.compile(r"```python\n(.*?)```\n```text\n(.*?)```", re.DOTALL)
SECTIONS = ("The idea", "The equation", "Shapes", "The code", "Run it", "What goes wrong", "Try")
END = "— end of a page —"
NAME = re.compile(r"`(gptrs(?:\.\w+)+)`")


def block(page: Path) -> tuple[str, str]:
    """The page's one block and what it prints."""
    (found,) = BLOCK.findall(page.read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, str]]:
    """Seconds and output of each page's block, each a function of one program, so that torch is loaded once."""
    pytest.importorskip("torch")
    parts = ["import time"]
    for n, page in enumerate(LESSONS):
        parts += [f"def page_{n}():", textwrap.indent(block(page)[0], "    ")]
    for n in range(len(LESSONS)):
        parts += ["start = time.process_time()", f"page_{n}()", f"print({END!r}, time.process_time() - start)"]
    program = tmp_path_factory.mktemp("learn") / "pages.py"
    program.write_text("\n".join(parts), encoding="utf-8")
    done = subprocess.run([sys.executable, "-X", "utf8", program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    ends = re.compile(rf"{END} (\S+)\n")
    outputs, seconds = ends.split(done.stdout)[::2], ends.findall(done.stdout)
    return {page.stem: (float(s), out) for page, s, out in zip(LESSONS, seconds, outputs, strict=False)}


def test_there_is_a_page_for_each_part_and_the_index_names_it():
    parts = {
        "token-embedding",
        "positions",
        "attention",
        "multi-head",
        "kv-cache",
        "mla",
        "moe",
        "mtp",
        "training-objective",
    }
    assert {page.stem for page in LESSONS} == parts
    index = (ROOT / "docs" / "learn" / "README.md").read_text("utf-8")
    assert [name for name in parts if f"({name}.md)" not in index] == []


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_a_block_prints_what_the_page_says(page: Path, printed: dict[str, tuple[float, str]]):
    seconds, output = printed[page.stem]
    assert output == block(page)[1] != ""
    assert seconds < 20


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_a_page_has_every_section_in_order(page: Path):
    titles = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
    found = [next((i for i, title in enumerate(titles) if title.startswith(section)), -1) for section in SECTIONS]
    assert -1 not in found and found == sorted(found), titles
    assert "Source: " in page.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_names_exist(page: Path):
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if not link.startswith("http")]
    assert links and [link for link in links if not (page.parent / link).exists()] == []
    for name in NAME.findall(text):
        module, rest = name, []
        while not (ROOT / "python" / module.replace(".", "/")).with_suffix(".py").exists():
            module, _, last = module.rpartition(".")
            assert module, f"{name}: no such module"
            rest.insert(0, last)
        thing = importlib.import_module(module)
        for part in rest:
            assert hasattr(thing, part), f"{name}: no {part}"
            thing = getattr(thing, part)


@pytest.mark.parametrize("script", ["learn_ablations.py", "learn_costs.py"])
def test_tables_are_made_from_the_committed_rows(script: str):
    pytest.importorskip("torch")
    command = [sys.executable, f"benches/{script}", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
