from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Dataset",
    "HostMemory",
    "HostRing",
    "Loader",
    "Plan",
    "Ring",
    "StreamDecoder",
    "Tokenizer",
    "Trainer",
    "__version__",
    "attend",
    "attend_backward",
    "can_multiply",
    "count",
    "count_pattern",
    "experts_backward",
    "experts_forward",
    "forked",
    "import_tokens",
    "max_documents",
    "measure",
    "merge_counts",
    "merge_tasks",
    "multiply",
    "prepare",
    "prepare_task",
]

__version__: str

_Text = str | bytes
_Ids = Sequence[int] | npt.NDArray[Any]
_Names = Literal["all"] | Collection[str]
_Arrays = tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]
_Merge = tuple[int, tuple[int, int, int], tuple[int, int, int]]
_Part = tuple[bool | None, list[int], list[str], int]
_Inputs = tuple[
    npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32] | None
]
_Gradients = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]
_Report = Callable[[str, int, int], object]

@final
class Tokenizer:
    @staticmethod
    def read(path: str, pattern: str | None = None, simd: str | None = None) -> Tokenizer: ...
    @staticmethod
    def from_json(text: str) -> Tokenizer: ...
    @staticmethod
    def from_ranks(
        ranks: list[tuple[bytes, int]], pattern: str, special_tokens: list[tuple[str, int]], name: str
    ) -> Tokenizer: ...
    def to_json(self) -> str: ...
    def to_tiktoken(self) -> str: ...
    def __reduce__(self) -> tuple[Callable[[str], Tokenizer], tuple[str]]: ...
    def write(self, path: str) -> list[str]: ...
    @property
    def lengths(self) -> tuple[str | None, str | None]: ...
    def to_json_with(self, truncation: str | None, padding: str | None) -> str: ...
    def encode(self, text: _Text, allowed_special: _Names, disallowed_special: _Names) -> list[int]: ...
    def encode_ordinary(self, text: _Text) -> list[int]: ...
    def encode_piece(self, piece: _Text) -> list[int]: ...
    def encode_dropout(
        self, text: _Text, allowed_special: _Names, disallowed_special: _Names, dropout: float, seed: int
    ) -> list[int]: ...
    def encode_spans(self, spans: Iterable[tuple[_Text, bool]], allowed_special: _Names) -> list[int]: ...
    def encode_batch(
        self,
        texts: Iterable[_Text],
        allowed_special: _Names,
        disallowed_special: _Names,
        dropout: float = 0.0,
        seed: int = 0,
        threads: int = 0,
    ) -> _Arrays: ...
    def encode_files(
        self, paths: list[str], text_field: str, append_eot: bool, threads: int = 0, progress: _Report | None = None
    ) -> _Arrays: ...
    def encode_with_offsets(self, text: _Text, unit: str) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode_batch_with_offsets(
        self, texts: Iterable[_Text], unit: str, threads: int = 0
    ) -> tuple[_Arrays, npt.NDArray[np.int64]]: ...
    def count(self, text: _Text) -> int: ...
    def count_batch(self, texts: Iterable[_Text], threads: int = 0) -> npt.NDArray[np.int64]: ...
    def decode(self, ids: _Ids, errors: str) -> str: ...
    def decode_batch(self, batch: Iterable[_Ids], threads: int = 0) -> list[bytes]: ...
    def trace(
        self, text: _Text, allowed_special: _Names
    ) -> list[tuple[tuple[int, int], Literal["merges", "whole", "special"], list[_Merge], list[int]]]: ...
    def decode_bytes(self, ids: _Ids) -> bytes: ...
    def decoder(self) -> StreamDecoder: ...
    def token_bytes(self, id: int) -> bytes | None: ...
    def is_ordinary(self, id: int) -> bool: ...
    def token_id(self, token: _Text) -> int | None: ...
    def normalize(self, text: _Text) -> bytes: ...
    def encode_with_places(
        self, text: str, allowed_special: list[str]
    ) -> tuple[list[int], list[tuple[int, int]], list[int], list[tuple[int, str]]]: ...
    @property
    def normalizer(self) -> str | None: ...
    @property
    def added_tokens(self) -> list[tuple[int, str, bool, bool, bool, bool, bool]]: ...
    @property
    def template(self) -> tuple[list[_Part], list[_Part], list[bool], int | None] | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def special_tokens(self) -> dict[str, int]: ...
    @property
    def eot_id(self) -> int | None: ...
    @property
    def pattern(self) -> str: ...
    @property
    def regex(self) -> str: ...
    @property
    def digest(self) -> str: ...

@final
class StreamDecoder:
    def push(self, id: int) -> str: ...
    def finish(self) -> str: ...

@final
class Trainer:
    def __new__(
        cls,
        pattern: str,
        vocab_size: int,
        special_tokens: list[str],
        min_count: int,
        *,
        max_token_bytes: int | None = None,
        tie: str = "id",
        base: Tokenizer | None = None,
        superbpe_from: int | None = None,
    ) -> Trainer: ...
    def add_files(
        self, paths: list[str], text_field: str, threads: int = 0, progress: _Report | None = None
    ) -> None: ...
    def add_texts(self, texts: Iterable[_Text], threads: int = 0, progress: _Report | None = None) -> None: ...
    def add_counts(self, paths: list[str], threads: int = 0, progress: _Report | None = None) -> None: ...
    def finish(self, threads: int = 0, progress: _Report | None = None) -> Tokenizer: ...
    def usage(
        self, tokenizer: Tokenizer, threads: int = 0, progress: _Report | None = None
    ) -> npt.NDArray[np.uint64]: ...
    @property
    def n_words(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def seconds(self) -> dict[str, float]: ...

def count(
    paths: list[str],
    out: str,
    *,
    pattern: str,
    text_field: str,
    superwords: bool = False,
    task: tuple[int, int] | None = None,
    threads: int = 0,
    progress: _Report | None = None,
) -> dict[str, Any]: ...
def merge_counts(paths: list[str], out: str, progress: _Report | None = None) -> dict[str, Any]: ...
def count_pattern(paths: list[str]) -> str: ...
def measure(
    tokenizer: Tokenizer, paths: list[str], text_field: str, threads: int = 0, progress: _Report | None = None
) -> tuple[int, int, int]: ...
def prepare(
    paths: list[str], tokenizer: Tokenizer, out: str, options: Mapping[str, Any], progress: _Report | None = None
) -> Dataset: ...
def prepare_task(
    paths: list[str],
    tokenizer: Tokenizer,
    out: str,
    task: tuple[int, int],
    options: Mapping[str, Any],
    progress: _Report | None = None,
) -> tuple[int, int, str, bool]: ...
def merge_tasks(
    paths: list[str],
    tokenizer: Tokenizer,
    out: str,
    of: int,
    keep_tasks: bool,
    options: Mapping[str, Any],
    progress: _Report | None = None,
) -> Dataset: ...
def import_tokens(
    paths: list[str],
    tokenizer: Tokenizer,
    *,
    format: str | None = None,
    dtype: str | None = None,
    eot_first: bool = False,
    threads: int = 0,
    progress: _Report | None = None,
) -> Dataset: ...

@final
class Dataset:
    def __new__(cls, path: str) -> Dataset: ...
    def n_rows(self, seq_len: int) -> int: ...
    def read(self, start: int, n_tokens: int) -> npt.NDArray[np.uint32]: ...
    def doc_ids(self, start: int, n_tokens: int) -> npt.NDArray[np.int64]: ...
    def loss_bits(self, start: int, n_tokens: int) -> npt.NDArray[np.bool_]: ...
    def verify(self, threads: int = 0, progress: _Report | None = None) -> int: ...
    def export(
        self,
        out: str,
        format: str,
        *,
        tokens_per_file: int,
        drop_loss_bits: bool = False,
        progress: _Report | None = None,
    ) -> list[str]: ...
    @property
    def path(self) -> str: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def eot_id(self) -> int | None: ...
    @property
    def has_loss_bits(self) -> bool: ...
    @property
    def tokenizer_digest(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...

@final
class Plan:
    def __new__(cls, dataset: Dataset, seq_len: int, threads: int = 0, progress: _Report | None = None) -> Plan: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def max_pieces(self) -> int: ...
    @property
    def digest(self) -> str: ...

def can_multiply() -> bool: ...
def multiply(
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    is_added: bool,
    threads: int,
    region: int,
) -> None: ...
def experts_forward(
    x: npt.NDArray[np.float32],
    up: npt.NDArray[np.float32],
    down: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    order: npt.NDArray[np.int64],
    loads: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    threads: int,
    region: int,
) -> None: ...
def experts_backward(
    dy: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    up: npt.NDArray[np.float32],
    down: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    order: npt.NDArray[np.int64],
    loads: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float32],
    d_x: npt.NDArray[np.float32],
    d_weights: npt.NDArray[np.float32],
    d_up: npt.NDArray[np.float32] | None,
    d_down: npt.NDArray[np.float32] | None,
    move_up: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], list[float]] | None,
    move_down: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], list[float]] | None,
    threads: int,
    region: int,
) -> tuple[float, float]: ...
def attend(
    given: _Inputs,
    scale: float,
    out: npt.NDArray[np.float32],
    lse: npt.NDArray[np.float32],
    threads: int,
    region: int,
) -> None: ...
def attend_backward(
    given: _Inputs,
    scale: float,
    out: npt.NDArray[np.float32],
    lse: npt.NDArray[np.float32],
    d_out: npt.NDArray[np.float32],
    made: _Gradients,
    threads: int,
    region: int,
) -> None: ...
def forked() -> None: ...
def max_documents(dataset: Dataset, seq_len: int, threads: int = 0, progress: _Report | None = None) -> int: ...

@final
class Loader:
    def __new__(
        cls,
        sources: list[tuple[Dataset, Plan | None]],
        mixture: tuple[list[tuple[str, int | None]], list[tuple[int | None, list[float]]]] | None,
        seq_len: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        order: str,
    ) -> Loader: ...
    def row_starts(self, next_sample: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
    def doc_ids(self, next_sample: int) -> npt.NDArray[np.int64]: ...
    def fill(
        self,
        next_sample: int,
        array: npt.NDArray[Any],
        positions: npt.NDArray[np.int32] | None = None,
        cu_seqlens: npt.NDArray[np.int32] | None = None,
    ) -> None: ...
    def ring(self, next_sample: int) -> Ring: ...
    def epochs(self, next_sample: int) -> list[float]: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_samples(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...
    @property
    def mixture_digest(self) -> str | None: ...
    @property
    def order(self) -> str: ...

@final
class HostMemory:
    def __new__(
        cls,
        micro_batch: int,
        seq_len: int,
        n_marks: int = 0,
        n_kept: int = 0,
        from_numpy: Callable[[npt.NDArray[Any]], Any] | None = None,
    ) -> HostMemory: ...
    @property
    def n_free(self) -> int: ...
    def start(self, loader: Loader, next_sample: int, prefetch: int) -> HostRing: ...
    def read(self, loader: Loader, next_sample: int) -> tuple[Any, ...]: ...

@final
class HostRing:
    def next(self) -> tuple[Any, ...]: ...

@final
class Ring:
    def submit(
        self,
        array: npt.NDArray[Any],
        positions: npt.NDArray[np.int32] | None = None,
        cu_seqlens: npt.NDArray[np.int32] | None = None,
    ) -> None: ...
    def next(self) -> None: ...
