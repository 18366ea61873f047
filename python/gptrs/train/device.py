"""What a run computes on, and in which type."""

from typing import Protocol

import torch


class HasDevice(Protocol):
    """The part of a run's settings that decides here."""

    @property
    def device(self) -> str: ...  # "auto", "cpu" or "cuda"

    @property
    def dtype(self) -> str: ...  # "auto", "fp32" or "bf16"


def device_of(run: HasDevice) -> torch.device:
    """Returns the device of the config; by default CUDA where there is one.

    Raises: ValueError when CUDA is wanted and there is none.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device is cuda, but torch finds no CUDA device; hint: run.device=cpu")
    return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")


def dtype_of(run: HasDevice, device: torch.device) -> torch.dtype:
    """Returns the type of the computation: bf16 where the GPU computes in it, else fp32, unless the config says."""
    if run.dtype == "auto":
        is_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_bf16 else torch.float32
    return torch.bfloat16 if run.dtype == "bf16" else torch.float32
