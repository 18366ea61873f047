"""Several datasets as one stream: shares, stages, and how often each may be repeated."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptrs.dataset import Dataset, require


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of a curriculum; its length is counted in rows, of all ranks together."""

    weights: Mapping[str, float]  # share of each source, of any sum; sources that are left out have none
    samples: int | None = None  # rows; None: without end, for the last stage alone


class Mixture:
    """Datasets of one tokenizer, mixed row by row.

    Which source a sample comes from is a function of its number (`mixture-v1`, docs/formats.md): after every block
    (1024 rows, or more where a share is small) each source has had its share, rounded to a whole row. The rows of a
    source come in its own order, each once an epoch. No source is repeated more than `max_epochs` times: the loader
    says before which sample that would be.

    Example:
        >>> import gptrs, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name, text in {"web": "to be or not to be " * 90, "code": "if not (to or be): " * 20}.items():
        ...     _ = (folder / f"{name}.txt").write_text(text)
        >>> tok = gptrs.Tokenizer.train(folder, 257)
        >>> sources = {name: gptrs.prepare(folder / f"{name}.txt", tok, folder / name) for name in ("web", "code")}
        >>> mixture = gptrs.Mixture(sources, weights={"web": 3, "code": 1}, max_epochs={"code": 2})
        >>> with gptrs.Loader(mixture, seq_len=8, global_batch=4, device="numpy") as loader:
        ...     [str(name) for name in next(loader).sources], loader.n_samples
        (['web', 'code', 'web', 'web'], 376)
    """

    __slots__ = ("max_epochs", "sources", "stages")

    def __init__(
        self,
        sources: Mapping[str, Dataset],
        weights: Mapping[str, float] | None = None,
        *,
        stages: Sequence[Stage] | None = None,
        max_epochs: int | Mapping[str, int] | None = None,
    ) -> None:
        """Args:
            sources: The datasets by name, in an order that is part of the mixture.
            weights: The share of each source, of any sum, for a single stage without end. By default the weight that
                the dataset was prepared with, or where none of them has one its number of tokens.
            stages: Stages one after the other, instead of `weights`.
            max_epochs: How often each row of a source may come, for all or by name; None is any number.

        Raises:
            ValueError: A name or number does not fit.
        """
        if weights is not None and stages is not None:
            raise ValueError("expected weights or stages, got both; hint: stages have weights of their own")
        if not isinstance(sources, Mapping):
            raise TypeError(f"expected a mapping of names to datasets, got {type(sources).__name__}")
        self.sources = dict(sources)
        if not self.sources:
            raise ValueError("expected at least one source, got none")
        for name, dataset in self.sources.items():
            if not isinstance(name, str):
                raise TypeError(f"expected a name as source, got {name!r}")
            if not isinstance(dataset, Dataset):
                hint = "hint: gptrs.Dataset(path) opens one"
                raise TypeError(f"expected a Dataset as source {name!r}, got {dataset!r:.80}; {hint}")
        if stages is None:
            stages = [Stage(_default_weights(self.sources) if weights is None else weights)]
        if not isinstance(stages, Sequence) or not all(isinstance(stage, Stage) for stage in stages):
            raise TypeError(
                f"expected a list of stages, got {stages!r:.80}; hint: [Stage({{NAME: WEIGHT}}, SAMPLES), …]"
            )
        self.stages = tuple(stages)
        for i, stage in enumerate(self.stages):
            if not isinstance(stage.weights, Mapping):
                raise TypeError(f"expected a mapping of names to weights in stage {i}, got {stage.weights!r:.80}")
        named = max_epochs if isinstance(max_epochs, Mapping) else {}
        for where, names in [("max_epochs", named), *((f"stage {i}", s.weights) for i, s in enumerate(self.stages))]:
            for name in names:
                if name not in self.sources:
                    raise ValueError(f"{where} names {name!r}; expected one of {', '.join(self.sources)}")
        for i, stage in enumerate(self.stages):
            for name, weight in stage.weights.items():
                _require_number(f"weight of {name!r} in stage {i}", weight)
            if stage.samples is not None:
                require(f"samples of stage {i}", stage.samples, 1, (1 << 64) - 1)
        limit = None if isinstance(max_epochs, Mapping) else max_epochs
        self.max_epochs = {name: named.get(name, limit) for name in self.sources}
        for name, most in self.max_epochs.items():
            if most is not None:
                require(f"max_epochs of source {name!r}", most, 1, (1 << 64) - 1)

    def refuse_short(self, seq_len: int) -> None:
        """Raises ValueError for a source whose tokens are fewer than those of a row of the stream."""
        for name, dataset in self.sources.items():
            if dataset.n_tokens <= seq_len:
                expected = f"source {name!r} needs {seq_len + 1} tokens for a row of seq_len {seq_len}"
                hint = 'hint: use a smaller seq_len, pack="bestfit", or leave it out'
                raise ValueError(f"{expected}, it has {dataset.n_tokens}; {hint}")

    @property
    def fingerprint(self) -> str:
        """64 hex digits over the names and fingerprints of the sources, in order."""
        lines = "".join(f"{name}\n{dataset.fingerprint}\n" for name, dataset in self.sources.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def n_tokens(self) -> int:
        """Tokens of all sources."""
        return sum(dataset.n_tokens for dataset in self.sources.values())

    @property
    def n_documents(self) -> int:
        """Documents of all sources."""
        return sum(dataset.n_documents for dataset in self.sources.values())

    def __repr__(self) -> str:
        return f"Mixture({self.sources!r}, stages={self.stages!r}, max_epochs={self.max_epochs!r})"


def _require_number(what: str, value: object) -> None:
    """Raises TypeError for what is no number, ValueError for a whole number that no float holds."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number, got {value!r}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{what} must be a number, got one that no float holds") from None


def _default_weights(sources: Mapping[str, Dataset]) -> dict[str, float]:
    weights = {name: dataset.manifest.get("weight") for name, dataset in sources.items()}
    if all(weight is None for weight in weights.values()):
        return {name: float(dataset.n_tokens) for name, dataset in sources.items()}
    return {name: 1.0 if weight is None else float(weight) for name, weight in weights.items()}
