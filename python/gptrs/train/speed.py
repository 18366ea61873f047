"""The settings of [speed] put into effect: what torch is told, and what the model does while it is trained.

None of them changes what is computed beyond rounding, and none touches the parameters: a run may go on with others.
"""

from typing import Any

import torch

from gptrs.model import Transformer, fp8
from gptrs.train.settings import RunSettings, SpeedSettings


def prepare(model: Transformer, speed: SpeedSettings, *, device: torch.device) -> None:
    """Makes a model ready to be trained on a device as the settings say.

    Raises: ValueError for what the device cannot do.
    """
    set_tf32(speed.tf32)
    model.checkpoints_blocks = speed.checkpoint_blocks
    model.vocab_multiple = speed.vocab_multiple
    if speed.cuda_graphs and device.type != "cuda":
        raise ValueError(f"speed.cuda_graphs needs a CUDA device, got {device.type}; hint: speed.cuda_graphs=false")
    if speed.fp8:
        if missing := fp8.obstacle(device):
            raise ValueError(f"speed.fp8 needs {missing}; hint: speed.fp8=false")
        fp8.convert(model.layers)


def set_tf32(is_on: bool) -> None:
    """Lets products of float32 on CUDA round their factors to TensorFloat-32's 10 bits, or not.

    By the older of torch's two switches, which sets the newer one too: set alone, that one makes torch raise wherever
    its compiler reads the older.
    """
    torch.backends.cuda.matmul.allow_tf32 = is_on


def compilation(run: RunSettings, speed: SpeedSettings) -> dict[str, Any]:
    """What `Spread` is told about torch.compile; the mode "reduce-overhead" records CUDA graphs."""
    mode = "reduce-overhead" if speed.cuda_graphs else None
    is_whole, budget = speed.compile == "whole", speed.activation_budget
    return {"is_compiled": run.compile, "is_whole": is_whole, "mode": mode, "activation_budget": budget}
