"""The transformer and what can be known of it without building it.

`ModelConfig` and `gptrs.model.count` need no torch; `Transformer` and `KVCache` load it at first use.
"""

from typing import TYPE_CHECKING, Any

from gptrs.model.config import PRESETS, ModelConfig

if TYPE_CHECKING:
    from gptrs.model.cache import KVCache
    from gptrs.model.transformer import Transformer, next_token_loss

__all__ = ["PRESETS", "KVCache", "ModelConfig", "Transformer", "next_token_loss"]


def __getattr__(name: str) -> Any:
    if name == "KVCache":
        from gptrs.model.cache import KVCache

        return KVCache
    if name in ("Transformer", "next_token_loss"):
        from gptrs.model import transformer

        return getattr(transformer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
