"""README is true: its blocks run, its tree exists, its measured table is what benches/results holds."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the files that the README's blocks name."""
    text = Path(os.__file__).read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(text * 3, encoding="utf-8")
    return tmp_path


def test_python_blocks_run_in_order(workplace: Path) -> None:
    code = "\n".join(blocks("python"))
    assert "gptrs.Tokenizer.train" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_blocks_run_in_order(workplace: Path, warm_cli: Callable[..., Any]) -> None:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    commands = [line.split(" #")[0].strip() for line in lines if line.startswith("gptrs ")]
    assert len(commands) >= 4
    for command in commands:
        words = re.findall(r"\"[^\"]*\"|\S+", command)
        done = warm_cli(*(word.strip('"') for word in words[1:]), cwd=workplace)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_leads_with_the_two_commands() -> None:
    assert README.index("make demo") < README.index("make test") < README.index("```python")


def test_annotated_tree_names_what_exists() -> None:
    (tree,) = [block for block in blocks("text") if "pyproject.toml" in block]
    paths, stack = [], []
    for line in tree.splitlines():
        found = re.match(r"^(\s*)(\S+)", line)
        if not found or not found[2].rstrip("/"):
            continue
        depth, name = len(found[1]) // 2, found[2]
        stack = [*stack[:depth], name]
        paths.append("/".join(part.rstrip("/") for part in stack))
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_measured_table_is_made_from_the_committed_rows() -> None:
    done = subprocess.run([sys.executable, "benches/table.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_link_leads_to_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []
