"""The random states of a process: dropout goes on where it stood, or anew but fixed on other processes than before."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rng_state() -> dict[str, Any]:
    """Returns the states of torch's generators, CPU and every CUDA device, in hexadecimal."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": _hex(torch.get_rng_state()), "cuda": [_hex(state) for state in cuda]}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Sets torch's generators; CUDA states are left out where there are not as many devices."""
    torch.set_rng_state(_unhex(state["cpu"]))
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_unhex(text) for text in state["cuda"]])


def reseed(seed: int, step: int, rank: int) -> None:
    """Sets torch's generators to what follows from these three, for a run that goes on with other processes."""
    text = f"gptrs dropout {seed} {step} {rank}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1)


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
