"""The norms before each part: LayerNorm, or RMSNorm, which leaves out the mean and the bias."""

from torch import nn

from gptrs.model.config import ModelConfig


def norm(config: ModelConfig, width: int) -> nn.LayerNorm | nn.RMSNorm:
    """The model's kind of norm over `width` channels.

    Source: RMSNorm, arXiv 1910.07467, equation 4; LayerNorm, arXiv 1607.06450, equation 4.
    """
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(width, eps=config.norm_eps)
