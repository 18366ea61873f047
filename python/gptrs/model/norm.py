"""The norms before each part: LayerNorm, or RMSNorm, which leaves out the mean and the bias."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptrs.model.config import ModelConfig


def norm(config: ModelConfig, width: int) -> nn.LayerNorm | nn.RMSNorm:
    """The model's kind of norm over `width` channels.

    Source: RMSNorm, arXiv 1910.07467, equation 4; LayerNorm, arXiv 1607.06450, equation 4.
    """
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(width, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """torch's, which on the CPU too keeps its input alone for the backward pass, as one kernel does elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return y


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / √(mean(x²) + eps), z = x·r and y = z·w: dx = r·(dy·w − z·mean(dy·w·z)), dw = Σ dy·z."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        z, dz = x.to(wide), dy.to(wide)  # (…, C) each
        r = torch.linalg.vector_norm(z, dim=-1, keepdim=True).square_().div_(z.shape[-1]).add_(ctx.eps).rsqrt_()
        z = z * r
        d_weight = (dz * z).flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        dz = dz * weight.to(wide)
        mean = torch.linalg.vecdot(dz, z).div_(z.shape[-1]).unsqueeze(-1)  # (…, 1)
        return dz.addcmul_(z, mean, value=-1.0).mul_(r).to(x.dtype), d_weight, None
