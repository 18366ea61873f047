"""Models that several test files use."""

import torch

from gptrs.model import ModelConfig, Transformer


def sharp(config: ModelConfig, seed: int = 1) -> Transformer:
    """An untrained model whose likeliest token is no toss-up between equals."""
    model = Transformer(config, seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model
