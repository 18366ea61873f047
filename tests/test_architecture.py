"""The package's rules, read from its source: who imports whom, what is lazy, and what is never used."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptrs

PACKAGE = Path(gptrs.__file__).parent
MODULES = {
    ".".join(("gptrs", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Layer of each module; the longest prefix counts. A module may import lower layers.
LAYERS = {
    "gptrs": 4,
    "gptrs._core": 0, "gptrs.config": 0, "gptrs.corpus": 0, "gptrs.files": 0, "gptrs.progress": 0, "gptrs.chart": 0,
    "gptrs.encoded": 0, "gptrs.tiktoken_view": 0, "gptrs.hugging_face_encoding": 0, "gptrs.pretrained": 0,
    "gptrs.page": 0, "gptrs.hugging_face_view": 1, "gptrs.model_report": 1, "gptrs.stats_report": 1,
    "gptrs.holdout": 1, "gptrs.tokenizer_report": 1, "gptrs.trainer": 1, "gptrs.dataset": 1, "gptrs.tokenizer": 1,
    "gptrs.tasks": 1, "gptrs.mixture": 1, "gptrs.ring": 1, "gptrs.loader": 1, "gptrs.model": 1,
    "gptrs.sampling": 2, "gptrs.speculate": 2, "gptrs.decoding": 2, "gptrs.generate": 2, "gptrs.score": 2,
    "gptrs.attention_map": 2, "gptrs.trace": 2, "gptrs.report": 2, "gptrs.inspect": 2, "gptrs.train_prepare": 2,
    "gptrs.on_ray": 2, "gptrs.plan": 2, "gptrs.plan_view": 2, "gptrs.scaling": 2, "gptrs.doctor": 2,
    "gptrs.train": 3, "gptrs.exchange": 3,
    "gptrs.cli": 4, "gptrs.cli_training": 4, "gptrs.cli_data": 4, "gptrs.cli_tasks": 4, "gptrs.cli_model": 4,
    "gptrs.cli_plan": 4, "gptrs.cli_runs": 4, "gptrs.cli_doctor": 4, "gptrs.demo": 4, "gptrs.__main__": 5,
}  # fmt: skip
# In layer 1 outside of gptrs.model, what stands before the importer.
IN_ORDER = (
    "gptrs.hugging_face_view",
    "gptrs.holdout",
    "gptrs.tokenizer_report",
    "gptrs.trainer",
    "gptrs.dataset",
    "gptrs.tasks",
    "gptrs.tokenizer",
    "gptrs.mixture",
    "gptrs.ring",
    "gptrs.loader",
)
# In layer 2 likewise.
GENERATION = ("gptrs.sampling", "gptrs.speculate", "gptrs.decoding", "gptrs.generate")
# Inside gptrs.model, only what stands before the importer.
MODEL = (
    "config", "count", "memory", "matmul", "ranks", "embedding", "rope", "norm", "cache", "attend_by_tiles", "attend",
    "attention", "mla", "feed_forward", "moving", "expert_by_expert", "moe", "block", "loss", "fp8", "transformer",
)  # fmt: skip
# Inside gptrs.exchange likewise.
EXCHANGE = ("hf_config", "hf_tensors", "hf", "gguf", "gguf_file", "gguf_read", "llama2c", "torch_file")
# Inside gptrs.train likewise: settings, what a run is made of, the loop, and the stages, which know nothing of each
# other.
TRAIN = (
    "schedule", "settings", "config", "signals", "determinism", "device", "speed", "distributed", "resume", "rundir",
    "runs", "runs_view", "corpus", "feed", "parts", "average", "muon", "optim", "guard", "in_backward", "cuts", "fsdp",
    "spread", "tensorfile", "snapshot", "manifest", "rng", "shards", "checkpoint", "saver", "keeper", "metrics",
    "clock", "loop", "stats", "profiler", "trackers", "journal", "looks", "reports", "pretrain", "find_lr",
)  # fmt: skip
PICKLES = "gptrs.exchange.torch_file"  # reads tensors out of them by an explicit command, with weights_only
WITHOUT_TORCH = (
    "gptrs",
    "gptrs.tokenizer",
    "gptrs.config",
    "gptrs.model.config",
    "gptrs.model.count",
    "gptrs.model.memory",
    "gptrs.plan",
    "gptrs.plan_view",
    "gptrs.scaling",
    "gptrs.doctor",
    "gptrs.train.runs",
    "gptrs.train.runs_view",
    "gptrs.cli",
)


def layer(module: str) -> float:
    while module not in LAYERS:
        module = module.rpartition(".")[0]
    return LAYERS[module]


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(module, True when at module level, line) of each import; those for type checkers alone do not count."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {id(n) for node in ast.walk(tree) if _is_type_checking(node) for n in ast.walk(node)}
    inner = {id(n) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _is_module(name) else str(node.module) for name in full]
        else:
            continue
        yield from ((name, id(node) not in inner, node.lineno) for name in names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_module(name: str) -> bool:
    return name in MODULES or name == "gptrs._core"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_lower_layers(module: str):
    for name, _, line in imports(MODULES[module]):
        if name.startswith("gptrs"):
            assert may_import(module, name), f"{module} imports {name} in line {line}"


def may_import(module: str, name: str) -> bool:
    """DESIGN's table: lower layers; inside model what stands before; stages the loop; the command line anything."""
    if layer(module) >= 4:
        return name not in ("gptrs.__main__", module)
    parts, names = module.split("."), name.split(".")
    if parts[1] == names[1] == "model":
        return len(parts) == 2 or MODEL.index(names[2]) < MODEL.index(parts[2])
    if len(parts) == len(names) == 3 and parts[1] == names[1] == "exchange":
        return EXCHANGE.index(names[2]) < EXCHANGE.index(parts[2])
    for order in (IN_ORDER, GENERATION):
        if module in order and name in order:
            return order.index(name) < order.index(module)
    if len(parts) == len(names) == 3 and parts[1] == names[1] == "train":
        return TRAIN.index(names[2]) < TRAIN.index(parts[2])
    return layer(name) < layer(module)


@pytest.mark.parametrize("module", [m for m in WITHOUT_TORCH if m in MODULES])
def test_the_light_modules_import_no_torch(module: str):
    heavy = [name for name, is_top, _ in imports(MODULES[module]) if is_top and name.split(".")[0] == "torch"]
    assert heavy == []


def test_importing_gptrs_loads_neither_torch_nor_numpy():
    loaded = _in_fresh_python("import gptrs, sys; print(*sys.modules)").split()
    assert {"torch", "numpy", "typer", "rich"}.isdisjoint(loaded)


def test_the_public_names_load_without_torch():
    code = "import gptrs, sys; [getattr(gptrs, n) for n in gptrs.__all__]; print(*sys.modules)"
    assert "torch" not in _in_fresh_python(code).split()
    assert "torch" not in _in_fresh_python("import gptrs.cli, sys; print(*sys.modules)").split()


def test_building_a_model_leaves_the_compiler_alone():
    code = (
        "import sys; from gptrs import attention_map, generate, score;"
        "from gptrs.model import ModelConfig, Transformer;"
        "Transformer(ModelConfig.preset('deepseek-tiny')); Transformer(ModelConfig.preset('gpt2-small', n_layers=1));"
        "print(*sys.modules)"
    )
    assert {"torch._dynamo", "torch._inductor", "sympy"}.isdisjoint(_in_fresh_python(code).split())


def test_importing_gptrs_is_fast():
    code = "import time; t = time.perf_counter(); import gptrs; gptrs.__version__; print(time.perf_counter() - t)"
    assert min(float(_in_fresh_python(code)) for _ in range(3)) <= 0.150


def _in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_text_of_others(module: str):
    """No pickle, no eval, no shell: a file or an argument is data, never code."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for node in ast.walk(tree):
        where = f"{module} line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if module == PICKLES and called == "torch.load":
                assert "weights_only=True" in ast.unparse(node), where
                continue
            assert called not in ("eval", "exec", "torch.load", "torch.save", "os.system", "np.load", "__import__"), (
                where
            )
            for keyword in node.keywords:
                is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                assert not (keyword.arg in ("shell", "allow_pickle") and is_true), where
    for name, _, line in imports(MODULES[module]):
        assert name.split(".")[0] not in ("pickle", "marshal", "shelve", "dill", "cloudpickle"), f"{module} line {line}"


def test_the_rules_refuse_what_they_should():
    assert not may_import("gptrs.dataset", "gptrs.tokenizer")
    assert not may_import("gptrs.trainer", "gptrs.tokenizer")
    assert not may_import("gptrs.model.embedding", "gptrs.model.attention")
    assert not may_import("gptrs.train.loop", "gptrs.train.pretrain")
    assert not may_import("gptrs.train.loop", "gptrs.cli")
    assert not may_import("gptrs.dataset", "gptrs.not_listed_here")
    assert may_import("gptrs.train.pretrain", "gptrs.train.loop")


def test_every_form_of_import_is_seen(tmp_path: Path):
    source = """
        import torch.nn as nn
        from gptrs.loader import Loader
        from gptrs import tokenizer
        def f():
            import numpy
        if TYPE_CHECKING:
            import pickle
    """
    path = tmp_path / "module.py"
    path.write_text(textwrap.dedent(source))
    seen = {(name, is_top) for name, is_top, _ in imports(path)}
    assert seen == {("torch.nn", True), ("gptrs.loader", True), ("gptrs.tokenizer", True), ("numpy", False)}
