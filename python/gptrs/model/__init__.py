"""The transformer and what can be known of it without building it.

`ModelConfig` and `gptrs.model.count` need no torch; the rest loads it at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gptrs.model.config import PRESETS, ModelConfig

if TYPE_CHECKING:
    from gptrs.model.cache import KVCache, LatentCache, new_cache
    from gptrs.model.loss import next_token_loss
    from gptrs.model.transformer import Transformer

__all__ = ["PRESETS", "KVCache", "LatentCache", "ModelConfig", "Transformer", "new_cache", "next_token_loss"]

_LAZY = {
    "KVCache": "cache", "LatentCache": "cache", "new_cache": "cache",
    "Transformer": "transformer", "next_token_loss": "loss",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"gptrs.model.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
