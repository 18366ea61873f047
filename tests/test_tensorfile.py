"""Files of tensors: what the safetensors library reads, from the tensors' own memory."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gptrs.files import digest
from gptrs.train import tensorfile
from gptrs.train.tensorfile import Piece, Place

TENSORS = {
    "matrix": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "part": torch.arange(40.0)[8:16:2],
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 4),
    "half": torch.arange(5).bfloat16(),
    "bytes": torch.arange(3, dtype=torch.uint8),
    **{name: torch.ones(3).to(dtype) for dtype, name in tensorfile.NAMES.items()},
}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    written = tensorfile.write(tmp_path / "a.safetensors", TENSORS)
    assert written == ((tmp_path / "a.safetensors").stat().st_size, digest(tmp_path / "a.safetensors"))
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(one, other), name


def test_every_tensor_is_aligned_and_the_header_names_no_order_of_the_caller(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    one, other = (tensorfile.write(tmp_path / name, of) for name, of in (("a", TENSORS), ("b", backwards)))
    assert one == other
    data = (tmp_path / "a").read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    assert (8 + n_header) % 8 == 0
    for name, entry in json.loads(data[8 : 8 + n_header]).items():
        assert entry["data_offsets"][0] % TENSORS[name].itemsize == 0, name


def test_pieces_say_where_they_lie(tmp_path: Path) -> None:
    places = {"rows": Place((2, 0), (4, 3)), "whole": Place((0,), (2,))}
    tensorfile.write(tmp_path / "a.safetensors", {"rows": torch.ones(2, 3), "whole": torch.zeros(2)}, places)
    assert tensorfile.pieces(tmp_path / "a.safetensors") == {
        "rows": Piece((2, 0), (2, 3), torch.float32),
        "whole": Piece((0,), (2,), torch.float32),
    }
    tensorfile.write(tmp_path / "b.safetensors", {"whole": torch.zeros(2, dtype=torch.int64)})
    assert tensorfile.pieces(tmp_path / "b.safetensors") == {"whole": Piece((0,), (2,), torch.int64)}


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a type that safetensors has for x, got torch\.complex64"):
        tensorfile.write(tmp_path / "a", {"x": torch.zeros(1, dtype=torch.complex64)})


def grown_mb(work: str, folder: Path) -> float:
    """How far the memory of a process that has a model of 69 MB grows while it works."""
    script = f"""
        import re, torch
        from pathlib import Path
        from gptrs.model import ModelConfig, Transformer
        from gptrs.train import checkpoint

        def memory(key):
            return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

        folder = Path({str(folder)!r})
        config = ModelConfig(vocab_size=8192, max_seq_len=8, dim=512, n_layers=4, n_heads=2, inter_dim=2048)
        model = Transformer(config)
        options = dict(step=1, optimizer=None, state={{}}, keep=1)
        checkpoint.save(folder / "small", model=torch.nn.Linear(2, 2), **options)  # what is made once
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        {work}
        print(memory("VmHWM") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_saving_holds_no_second_copy_of_a_model(tmp_path: Path) -> None:
    assert grown_mb('checkpoint.save(folder / "it", model=model, **options)', tmp_path) < 15
    assert (tmp_path / "it" / "step-00000001" / "model.safetensors").stat().st_size > 60e6
