"""The main job: from text that every machine has, Python's own standard library, to a model that writes Python."""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptrs import config as configs
from gptrs.model import count
from gptrs.model.config import ModelConfig
from gptrs.train import pretrain, rundir
from gptrs.train.config import PretrainConfig

PLACE = Path("runs") / "demo"  # of the GPT, which other models' reports show beside them
TRAINED_BYTES = 16  # of a float32 parameter: itself, its gradient, two moments

# Tests, other people's packages, and what is made on each machine.
LEFT_OUT = frozenset(("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"))


def run(
    text: Sequence[str] | None = None,
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    is_fresh: bool = False,
    allow: Sequence[str] = (),
) -> pretrain.Result:
    """Trains the demo model on the user's text, by default on the standard library, and prints what it writes.

    A demo that was cut off goes on; a finished one is made anew, since its directory is its own.

    Args: text: files, folders or globs; model: a preset in the place of the small GPT, with a directory of its own and
        a report that shows both runs; overrides: `section.key=value`; allow: settings that may differ from those of a
        demo that was cut off.
    Raises: ValueError for an unknown preset, naming the nearest, or one that this machine cannot train.
    """
    config = configured(text, overrides, model)
    if not is_fresh and rundir.is_finished(config.run.path):
        print(f"{config.run.path} holds a finished demo; starting it anew")
        is_fresh = True
    return pretrain.run(config, is_fresh=is_fresh, allow=allow)


def configured(text: Sequence[str] | None, overrides: Sequence[str], model: str | None = None) -> PretrainConfig:
    """Returns the demo's config, for CUDA when there is a device, with the text and the model in it."""
    import torch

    has_cuda = torch.cuda.is_available()
    name = "demo_gpu" if has_cuda else "demo"
    given = configs.read(name)
    if model is not None:
        preset = model.replace("_", "-")
        ModelConfig.preset(preset)  # an unknown name, before anything else
        if preset == "deepseek-tiny" and not has_cuda:
            given = configs.read(name := "demo_deepseek_tiny")
        else:
            given = _with_preset(given, preset)
        given["run"] = {**given["run"], "beside": str(PLACE)}
    given = configs.override(PretrainConfig, given, overrides)
    data = given.setdefault("data", {})
    if text or not data.get("text"):
        data["text"] = list(text or map(str, standard_library()))
    config = configs.build(PretrainConfig, given, where=name)
    if model is not None:
        _check_memory(config, model, torch.cuda.mem_get_info()[1] if has_cuda else _memory())
    return config


def _with_preset(given: dict[str, Any], preset: str) -> dict[str, Any]:
    """The demo with another model: its rates fall as the width grows, all else stays."""
    ratio = given["model"]["dim"] / ModelConfig.preset(preset).dim
    return {
        **given,
        "run": {**given["run"], "name": f"demo-{preset}"},
        "model": {"preset": preset, "dropout": given["model"].get("dropout", 0.0)},
        "optim": {**given["optim"], "lr": float(f"{ratio * given['optim']['lr']:.2g}")},
        "schedule": {**given["schedule"], "min_lr": float(f"{ratio * given['schedule']['min_lr']:.1g}")},
    }


def _check_memory(config: PretrainConfig, model: str, n_bytes: int) -> None:
    """Refuses what cannot be trained here: half of the memory is for activations and all else."""
    sizes = config.model.resolve(vocab_size=config.tokenizer.vocab_size, seq_len=config.train.seq_len)
    needed = TRAINED_BYTES * count.n_params(sizes)
    if needed > n_bytes / 2:
        raise ValueError(
            f"expected a model whose weights, gradients and moments fit half of the {n_bytes / 1e9:.0f} GB here, "
            f"got {model}, which needs {needed / 1e9:,.0f} GB; hint: --model deepseek-tiny"
        )


def _memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
