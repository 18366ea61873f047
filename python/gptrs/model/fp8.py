"""Linear layers whose three products run in 8 bits: states and weights as e4m3, gradients as e5m2.

    x ─scale─▶ e4m3 ─┐
    w ─scale─▶ e4m3 ─┴▶ y          dy ─scale─▶ e5m2 ─▶ · w ─▶ dx,   · x ─▶ dw

One scale a tensor, its largest magnitude over the format's largest number, found anew each time. Weights stay what they
are and are rounded on the way, so nothing but the products knows of it. Gradients have the wider range and fewer bits.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gptrs.model.matmul import Linear

_FORWARD, _BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
_MULTIPLE = 16  # of all sizes, as the kernels want
_LEAST = (8, 9)  # compute capability: Ada; Hopper is (9, 0)


def obstacle(device: torch.device) -> str | None:
    """What keeps a device from 8-bit products, or None."""
    if device.type != "cuda":
        return f"a CUDA device, got {device.type}"
    if not hasattr(torch, "_scaled_mm"):
        return f"a torch with scaled products, got {torch.__version__}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST:
        return f"compute capability 8.9 (Ada, Hopper) or higher, got {capability[0]}.{capability[1]}"
    return None


def convert(blocks: nn.Module) -> int:
    """Turns the linear layers below a module into `Float8Linear` where their sizes allow; returns how many.

    Parameters and their names stay: a checkpoint does not know of it.
    """
    n = 0
    for module in blocks.modules():
        if not isinstance(module, nn.Linear) or type(module) not in (nn.Linear, Linear):
            continue
        if module.in_features % _MULTIPLE == module.out_features % _MULTIPLE == 0:
            module.__class__ = Float8Linear  # a new layer would need a new parameter, or a tie to the old one
            n += 1
    return n


class Float8Linear(nn.Linear):
    """nn.Linear with products in 8 bits in training; evaluation is that of nn.Linear, so models compare."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (N, C)
        if not (self.training and torch.is_grad_enabled()) or len(rows) % _MULTIPLE:
            return super().forward(x)
        y: Tensor = _Product.apply(rows, self.weight)  # (N, O)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        small_x, scale_x = quantised(x, _FORWARD)
        small_w, scale_w = quantised(weight, _FORWARD)
        ctx.save_for_backward(small_x, scale_x, small_w, scale_w)
        return scaled_product(small_x, small_w.T, scale_x, scale_w, x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        small_x, scale_x, small_w, scale_w = ctx.saved_tensors
        small_dy, scale_dy = quantised(dy, _BACKWARD)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = scaled_product(small_dy, small_w, scale_dy, scale_w, dy.dtype)
        if ctx.needs_input_grad[1]:
            dw = scaled_product(small_dy.T, small_x, scale_dy, scale_x, dy.dtype)
        return dx, dw


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x rounded to 8 bits after division by a scale, and the scale: `rounded · scale` is x again, nearly.

    Example: with e4m3, whose largest number is 448, (896, 2) is (448, 1) and the scale 2.
    """
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp(min=1e-12)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def scaled_product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """(a · scale_a) @ (b · scale_b), summed in 32 bits; on CUDA by its 8-bit kernel, elsewhere by widening."""
    if not a.is_cuda:
        return ((a.float() @ b.float()) * (scale_a * scale_b)).to(dtype)
    rows, columns = a.contiguous(), b.T.contiguous().T  # what the kernel reads: a row by row, b column by column
    product: Tensor = torch._scaled_mm(rows, columns, scale_a, scale_b, out_dtype=dtype)
    return product
