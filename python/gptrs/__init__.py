"""gptrs takes raw text to a trained language model: exact BPE, token shards and batches in Rust, the model in PyTorch.

Names are loaded when they are first used: `import gptrs` itself imports neither numpy nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptrs._core import StreamDecoder, __version__
    from gptrs.dataset import Dataset, import_tokens, prepare, prepare_documents
    from gptrs.encoded import Encoded, Padded
    from gptrs.loader import Batch, Loader
    from gptrs.mixture import Mixture, Stage
    from gptrs.on_ray import prepare_on_ray
    from gptrs.tasks import TaskEnd, merge_tasks, prepare_task
    from gptrs.tokenizer import Tokenizer
    from gptrs.train_prepare import train_and_prepare

__all__ = [
    "Batch",
    "Dataset",
    "Encoded",
    "Loader",
    "Mixture",
    "Padded",
    "Stage",
    "StreamDecoder",
    "TaskEnd",
    "Tokenizer",
    "__version__",
    "import_tokens",
    "merge_tasks",
    "prepare",
    "prepare_documents",
    "prepare_on_ray",
    "prepare_task",
    "train_and_prepare",
]

_MODULES = {
    "gptrs._core": ("StreamDecoder", "__version__"),
    "gptrs.dataset": ("Dataset", "import_tokens", "prepare", "prepare_documents"),
    "gptrs.encoded": ("Encoded", "Padded"),
    "gptrs.loader": ("Batch", "Loader"),
    "gptrs.mixture": ("Mixture", "Stage"),
    "gptrs.on_ray": ("prepare_on_ray",),
    "gptrs.tasks": ("TaskEnd", "merge_tasks", "prepare_task"),
    "gptrs.tokenizer": ("Tokenizer",),
    "gptrs.train_prepare": ("train_and_prepare",),
}


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(module), name)
            globals()[name] = value  # the next use does not come here
            return value
    raise AttributeError(f"module 'gptrs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
