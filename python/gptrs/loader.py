"""Shards to batches in an order that only the seed decides.

    Dataset, Mixture ── order ─▶ rows ── pack ─▶ Loader ──▶ Batch (tokens, targets, documents)

The order is a pure function of (seed, epoch, index): the loader's whole state is one integer, the next sample. It is
the same on every rank, and after a stop any number of ranks and any microbatch continue exactly where it stood. A Rust
thread fills memory ahead of the consumer; memory of a batch that is kept is never filled again.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from gptrs import _core
from gptrs.dataset import Dataset, require
from gptrs.mixture import Mixture
from gptrs.progress import bar
from gptrs.ring import Ring, memory

if TYPE_CHECKING:
    import torch

_STATE_VERSION = 2
_NO_END = (1 << 64) - 1  # the core's last sample of a mixture that nothing ends
_PACKINGS = {"stream": "stream", "bestfit": "bestfit-v1"}
_ARGUMENTS = ("seq_len", "global_batch", "seed", "rank", "world_size", "micro_batch", "pack", "shuffle", "documents",
              "max_documents", "device", "prefetch")  # fmt: skip
_ORDERS = {True: "feistel-v1", False: "sequential", "blocks": "block-v1"}


_n_forks = 0  # between the first process and this one: cheaper to look at than the system's number of a process


def _count_fork() -> None:
    global _n_forks
    _n_forks += 1


os.register_at_fork(after_in_child=_count_fork)


@dataclass(slots=True, eq=False)  # not frozen: that takes 0.5 µs more of each next()
class Batch:
    """One rank's microbatch: B rows of T tokens, and for each the token that follows."""

    tokens: Any  # (B, T) int64, torch.Tensor or with device="numpy" an array
    targets: Any  # (B, T) int64: targets[b, t] follows tokens[b, t], or is -100: padding, ends, tokens with loss bit 0
    loader: "Loader"  # what made it, and where its shards are
    sample: int  # the loader's next_sample before it
    _marks: Sequence[Any] = ()

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(B,) where each row begins in its dataset."""
        return self.loader.core.row_starts(self.sample)[0]

    @property
    def sources(self) -> list[str]:
        """The name of each row's dataset in the mixture, "" without one."""
        return [self.loader.source_names[i] for i in self.loader.core.row_starts(self.sample)[1]]

    @property
    def doc_ids(self) -> Any:
        """(B, T) int32: the number of each token's document, counted from 0 over its dataset; -1 for padding.

        Raises: ValueError for a document number above 2^31 - 1.
        """
        doc_ids = self.loader.core.doc_ids(self.sample)
        if doc_ids.max(initial=0) > np.iinfo(np.int32).max:
            raise ValueError(f"document numbers are int32, the batch has document {doc_ids.max()}")
        return self._like_tokens(doc_ids.astype(np.int32).reshape(self.tokens.shape))

    @property
    def positions(self) -> Any:
        """(B, T) int32: each token's distance from the start of its document, or of its part in this row."""
        return self.marks()[0]

    @property
    def cu_seqlens(self) -> Any:
        """(B·n + 1,) int32: where the documents of all rows begin and end in the flattened batch (B·T,), for attention
        inside documents. Each row has n of them (`n_cu_seqlens` is B·n + 1); those that it does not need are empty and
        stand at its end. Padding is a document."""
        return self.marks()[1]

    def marks(self) -> tuple[Any, Any]:
        """`positions` and `cu_seqlens`; read from the shards now unless the loader was made with `documents=True`."""
        if self._marks:
            positions, cu_seqlens = self._marks
            return positions, cu_seqlens
        B, T = self.tokens.shape
        host = _core.HostMemory(B, T, self.loader.n_cu_seqlens)
        *_, positions, cu_seqlens = host.read(self.loader.core, self.sample)
        return self._like_tokens(positions), self._like_tokens(cu_seqlens)

    def _like_tokens(self, array: npt.NDArray[Any]) -> Any:
        if isinstance(self.tokens, np.ndarray):
            return array
        import torch

        return torch.from_numpy(array).to(self.tokens.device)


class Loader:
    """An endless iterator of microbatches; rows are shuffled anew in every epoch by (seed, epoch).

    Microbatch `k` of `rank` holds the samples `(k * world_size + rank) * micro_batch` and on: the samples of one step
    are the same for any number of ranks and any microbatch.

    A Rust thread starts at the first `next()` and fills up to `prefetch` batches ahead; `close()` (or leaving a `with`
    block) ends it. A batch that it has not begun is filled by `next()` itself. In a forked child, or unpickled in
    another process, the loader continues by itself with a thread of its own. Workers of a torch DataLoader are not
    needed; several of them would each deliver every batch. Threads of one process may share it: each batch goes to one.

    Example:
        >>> import gptrs, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "text.txt").write_text("to be or not to be " * 40)
        >>> tok = gptrs.Tokenizer.train(folder, 260)
        >>> dataset = gptrs.prepare(folder, tok, folder / "tokens")
        >>> with Loader(dataset, seq_len=8, global_batch=4, seed=1, device="numpy") as loader:
        ...     batch = next(loader)
        ...     batch.tokens.shape, bool((batch.tokens[:, 1:] == batch.targets[:, :-1]).all()), loader.next_sample
        ((4, 8), True, 4)
    """

    def __init__(
        self,
        dataset: Dataset | Mixture,
        *,
        seq_len: int,
        global_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        pack: Literal["stream", "bestfit"] = "stream",
        shuffle: bool | Literal["blocks"] = True,
        documents: bool = False,
        max_documents: int | None = None,
        device: "str | torch.device" = "cpu",
        prefetch: int = 8,
        progress: bool = False,
    ) -> None:
        """Args:
            dataset: The tokens, or a mixture of several datasets.
            seq_len: T, tokens in a row.
            global_batch: Rows of one optimizer step over all ranks.
            seed: Decides the order, together with the dataset, `seq_len`, `pack` and `shuffle`, and with nothing else.
            rank: This process, of `world_size`.
            world_size: Processes in all.
            micro_batch: Rows of one item; by default global_batch / world_size.
            pack: How rows are cut from documents: "stream" (one after the other, across their ends), or "bestfit"
                (whole where they fit, longer ones split; the plan takes 4 bytes a document, planning about a second for
                10 million).
            shuffle: False gives the rows in the dataset's order; "blocks" shuffles blocks of 256 rows, and the rows of
                512 blocks at a time, for disks that are slow at random reads.
            documents: Deliver `batch.positions` and `batch.cu_seqlens` with the tokens, for attention inside documents.
                Without it they are read when they are asked for.
            max_documents: Documents of a row in `cu_seqlens`; a row with more raises. By default the most that any row
                has, which for "stream" reads the ends of all documents once.
            device: "cpu" or "cuda…" for torch tensors there, "numpy" for arrays without torch.
            prefetch: Batches that are filled ahead at most; on one core none while the process only takes batches.
            progress: Show a progress bar for what takes time here, when stderr is a terminal.

        Raises:
            ValueError: An argument is out of range, or the batch sizes do not divide; names the nearest that do.
        """
        if not isinstance(dataset, Dataset | Mixture):
            raise TypeError(
                f"expected a Dataset or a Mixture, got {dataset!r:.80}; hint: gptrs.Dataset(path) opens one"
            )
        if pack not in _PACKINGS:
            raise ValueError(f'pack must be "stream" or "bestfit", got {pack!r}; hint: "stream" needs no plan')
        if shuffle not in _ORDERS:
            raise ValueError(f'shuffle must be True, False or "blocks", got {shuffle!r}')
        require("world_size", world_size, 1, (1 << 31) - 1)
        require("global_batch", global_batch, 1, (1 << 31) - 1)
        if micro_batch is None:
            micro_batch = _split(global_batch, world_size)
        sizes = {"seq_len": seq_len, "global_batch": global_batch, "micro_batch": micro_batch, "world_size": world_size}
        if max_documents is not None:
            sizes["max_documents"] = max_documents
        for name, value in {**sizes, "prefetch": prefetch}.items():
            require(name, value, 1, (1 << 31) - 1)
        require("seed", seed, 0, (1 << 64) - 1)
        require("rank", rank, 0, world_size - 1)
        self.dataset = dataset
        # int: the state is JSON, which has no numbers of numpy.
        self.seq_len = seq_len = int(seq_len)
        self.global_batch = global_batch = int(global_batch)
        self.micro_batch = micro_batch = int(micro_batch)
        self.seed = seed = int(seed)
        self.rank = rank = int(rank)
        self.world_size = world_size = int(world_size)
        self.pack = pack
        self.shuffle = shuffle
        self.documents = documents
        self.max_documents = max_documents
        self.device = device = str(device)  # torch.device too
        self.prefetch = prefetch = int(prefetch)
        self._sources = {"": dataset} if isinstance(dataset, Dataset) else dataset.sources
        self._plans: dict[str, _core.Plan] = {}
        if pack == "stream" and isinstance(dataset, Mixture):
            dataset.refuse_short(seq_len)
        if pack == "bestfit":
            with bar(progress) as report:
                self._plans = {name: _core.Plan(d.core, seq_len, 0, report) for name, d in self._sources.items()}
        self.core = _core.Loader(
            [(d.core, self._plans.get(name)) for name, d in self._sources.items()],
            None if isinstance(dataset, Dataset) else _specification(dataset),
            seq_len,
            global_batch,
            micro_batch,
            rank,
            world_size,
            seed,
            _ORDERS[shuffle],
        )
        self._memory = memory(
            device,
            micro_batch,
            seq_len,
            dtype=next(iter(self._sources.values())).dtype,
            n_marks=self.n_cu_seqlens if documents else 0,
            has_own_targets=self.has_ignored,
            n_kept=2 * prefetch,
        )
        # Behind a mixture's stages the iteration ends; where a source has given all it may, it fails.
        self._n_staged = self.core.n_samples if self.core.n_samples == self.core.end else None
        self._next_sample = 0
        self._stride = micro_batch * world_size
        self._ring: Ring | None = None
        # One thread at a time goes on: the batch, its sample and the ring belong together.
        self._lock = threading.RLock()
        self._n_forks = _n_forks
        self._is_closed = False

    @property
    def n_rows(self) -> int:
        """Rows in one epoch, of all sources of a mixture together."""
        return self.core.n_rows

    @property
    def n_samples(self) -> int | None:
        """Samples there are in all, or None for an endless stream: those of a mixture's stages, or fewer where a source
        would come more often than its `max_epochs`."""
        return None if self.core.end == _NO_END else self.core.end

    @property
    def source_names(self) -> list[str]:
        """The names of a mixture's datasets in order; of a dataset alone, one empty name."""
        return list(self._sources)

    @cached_property
    def n_cu_seqlens(self) -> int:
        """The elements of a batch's `cu_seqlens`."""
        most = self.max_documents
        if most is None and self._plans:
            most = max(plan.max_pieces + 1 for plan in self._plans.values())  # and the padding
        elif most is None:
            most = max(_core.max_documents(d.core, self.seq_len) for d in self._sources.values())
        return self.micro_batch * most + 1

    @property
    def has_ignored(self) -> bool:
        """Whether some targets may be -100: those of packed rows and of datasets with loss bits."""
        return bool(self._plans) or any(dataset.has_loss_bits for dataset in self._sources.values())

    @property
    def padding(self) -> float:
        """The share of an epoch's positions that hold no token."""
        return sum(plan.padding for plan in self._plans.values()) / (self.n_rows * self.seq_len)

    @property
    def next_sample(self) -> int:
        """Samples handed out on all ranks: the whole state."""
        return self._next_sample

    @property
    def epoch(self) -> int:
        """The epoch of the next sample, counted from 0; in a mixture each source has its own (`epochs`)."""
        return self._next_sample // self.n_rows

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source's rows have come so far, by name."""
        return dict(zip(self._sources, self.core.epochs(self._next_sample), strict=True))

    @property
    def micro_batches_per_step(self) -> int:
        """Items of this rank in one optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next microbatch, read ahead or else now.

        Raises:
            StopIteration: The stages of a mixture are over.
            ValueError: A shard is damaged, or a source of a mixture has given all rows that its `max_epochs` allows.
            OSError: A shard cannot be read.
        """
        if self._n_forks != _n_forks:
            self._leave_fork()
        with self._lock:
            ring = self._ring or self._start()
            sample = self._next_sample
            following = sample + self._stride
            if self._n_staged is not None and following > self._n_staged:
                raise StopIteration
            try:
                tokens, targets, *marks = ring.next()
                batch = Batch(tokens, targets, self, sample, marks)
                self._next_sample = following
            except BaseException:  # Ctrl-C too, which may come when the ring has already gone on
                self._ring = None  # joins the thread; the next call begins again at the same sample
                raise
            return batch

    def batch_at(self, index: int) -> Batch:
        """Microbatch `index` of this rank, counted from 0 at the beginning; leaves the loader where it is.

        Raises: ValueError behind the end of a mixture; else as `next()`.
        """
        require("index", index, 0, (1 << 63) // self._stride - 1)
        sample = index * self._stride
        tokens, targets, *marks = self._memory.read(self.core, sample)
        return Batch(tokens, targets, self, sample, marks)

    def state_dict(self) -> dict[str, Any]:
        """What continues this loader exactly: JSON of less than 1 KB, the same on every rank."""
        first = next(iter(self._sources.values()))
        return {
            "version": _STATE_VERSION,
            "order": self.core.order,
            "seed": self.seed,
            "next_sample": self._next_sample,
            "fingerprint": self.dataset.fingerprint,
            "tokenizer": first.tokenizer_digest,
            "seq_len": self.seq_len,
            "pack": _PACKINGS[self.pack],
            "mixture": self.core.mixture_digest,
            "global_batch": self.global_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the state of another loader, whatever its rank, world size, microbatch and global batch were.

        Raises:
            TypeError: The state is no mapping.
            ValueError: A field is missing or differs (named with both values), or the state does not stand at the
                border of a microbatch of this loader, or with another global batch of a step.
        """
        here = self.state_dict()
        if not isinstance(state, dict):
            hint = "hint: pass what state_dict() returned"
            raise TypeError(f"expected the state of a loader, a dict, got {type(state).__name__}; {hint}")
        for name in here | state:
            if name not in state or name not in here:
                where = "missing from" if name not in state else "unknown in"
                raise ValueError(f"field {name!r} is {where} the loader state; hint: pass what state_dict() returned")
            if name not in ("next_sample", "global_batch") and state[name] != here[name]:
                raise ValueError(
                    f"the loader state has {name} {state[name]!r}, this loader {here[name]!r}; hint: make the loader "
                    f"with the same {name}"
                )
        if type(state["global_batch"]) is not int or state["global_batch"] < 1:
            hint = "hint: pass what state_dict() returned"
            raise ValueError(
                f"global_batch must be a whole number of at least 1, got {state['global_batch']!r}; {hint}"
            )
        # Within a step only the sizes of microbatches may change.
        is_same = state["global_batch"] == self.global_batch
        stride = self._stride if is_same else self.global_batch
        next_sample = state["next_sample"]
        if type(next_sample) is not int or not 0 <= next_sample < 1 << 63:
            hint = "hint: pass what state_dict() returned"
            raise ValueError(f"next_sample must be a whole number of at most 63 bits, got {next_sample!r}; {hint}")
        if next_sample % stride:
            what, hint = ("micro_batch * world_size", "micro_batch") if is_same else ("global_batch",) * 2
            raise ValueError(
                f"next_sample must be a multiple of {what} ({stride}), got {next_sample!r}; hint: choose a {hint} that "
                "divides it"
            )
        if self._n_forks != _n_forks:
            self._leave_fork()
        with self._lock:
            self._stop()
            self._next_sample = next_sample

    def close(self) -> None:
        """Ends the thread; the loader cannot be used after that."""
        if self._n_forks != _n_forks:
            self._leave_fork()
        with self._lock:
            self._stop()
            self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Loader({self.dataset!r}, seq_len={self.seq_len}, global_batch={self.global_batch}, seed={self.seed}, "
            f"next_sample={self._next_sample})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {name: getattr(self, name) for name in _ARGUMENTS}
        return _restore, (self.dataset, arguments, self._next_sample)

    def _leave_fork(self) -> None:
        """Drops what a fork left behind: a ring without its thread, a lock of a thread that may not be here."""
        self._stop()
        self._lock = threading.RLock()
        self._n_forks = _n_forks

    def _start(self) -> Ring:
        if self._is_closed:
            raise ValueError("the loader is closed; hint: make a new one and load the state of this one")
        self._ring = self._memory.start(self.core, self._next_sample, self.prefetch)
        return self._ring

    def _stop(self) -> None:
        self._ring = None  # joins the thread


def _specification(mixture: Mixture) -> tuple[list[tuple[str, int | None]], list[tuple[int | None, list[float]]]]:
    names = list(mixture.sources)
    stages = [(stage.samples, [float(stage.weights.get(n, 0)) for n in names]) for stage in mixture.stages]
    return [(name, mixture.max_epochs[name]) for name in names], stages


def _restore(dataset: Dataset | Mixture, arguments: dict[str, Any], next_sample: int) -> Loader:
    loader = Loader(dataset, **arguments)
    loader._next_sample = next_sample
    return loader


def _split(global_batch: int, world_size: int) -> int:
    """The default microbatch: an equal share of the step for each rank."""
    if global_batch % world_size:
        below = max(global_batch // world_size, 1) * world_size
        raise ValueError(
            f"global_batch ({global_batch}) must be a positive multiple of world_size ({world_size}); hint: use "
            f"global_batch={below} or global_batch={below + world_size}"
        )
    return global_batch // world_size
