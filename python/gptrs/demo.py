"""The main job: from text that every machine has, Python's own standard library, to a model that writes Python."""

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptrs import config as configs
from gptrs.train import pretrain, rundir
from gptrs.train.config import PretrainConfig

# Tests, other people's packages, and what is made on each machine.
LEFT_OUT = frozenset(("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"))


def run(text: Sequence[str] | None = None, *, overrides: Sequence[str] = (), is_fresh: bool = False) -> pretrain.Result:
    """Trains the demo model on the user's text, by default on the standard library, and prints what it writes.

    A demo that was cut off goes on; a finished one is made anew, since its directory is its own.

    Args: text: files, folders or globs; overrides: `section.key=value`.
    """
    config = configured(text, overrides)
    if not is_fresh and rundir.is_finished(config.run.path):
        print(f"{config.run.path} holds a finished demo; starting it anew")
        is_fresh = True
    return pretrain.run(config, is_fresh=is_fresh)


def configured(text: Sequence[str] | None, overrides: Sequence[str]) -> PretrainConfig:
    """Returns the demo's config, for CUDA when there is a device, with the text in it."""
    import torch

    name = "demo_gpu" if torch.cuda.is_available() else "demo"
    given = configs.override(PretrainConfig, configs.read(name), overrides)
    data = given.setdefault("data", {})
    if text or not data.get("text"):
        data["text"] = list(text or map(str, standard_library()))
    return configs.build(PretrainConfig, given, where=name)


def standard_library() -> list[Path]:
    """Returns the standard library's source files, sorted, without tests and without files that are not UTF-8.

    About 650 files of 11 MB in Python 3.11.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(_sources(root)) if _is_utf8(path)]
    if not files:
        raise FileNotFoundError(
            f"expected the standard library's source in {root}, found none; hint: gptrs demo --text FILE"
        )
    return files


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in LEFT_OUT and not path.name.startswith("config-"):
                yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
