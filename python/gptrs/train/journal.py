"""What a run writes and says while it goes, which rank 0 alone does: metrics, samples, trackers, the display.

On the other ranks every method does nothing, so that nobody who calls one has to ask which rank it is.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from gptrs import config as configs
from gptrs.model import count
from gptrs.model.config import ModelConfig
from gptrs.train import metrics, trackers
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus
from gptrs.train.distributed import World
from gptrs.train.guard import Event

LOGS = ("metrics.jsonl", "samples.txt")  # whose lengths a checkpoint knows


class Journal:
    """The logs of one run and its voice. Attributes: display; is_main: whether this rank has them."""

    _log: metrics.MetricsLog
    _samples: IO[bytes]

    def __init__(self, directory: Path, display: metrics.Display, *, is_main: bool) -> None:
        self.directory = directory
        self.display = display
        self.is_main = is_main
        self._trackers: trackers.Trackers | None = None

    def open(self, lengths: Mapping[str, int], step: int) -> None:
        """Opens the logs at the lengths that they had at a step; what was written after it is forgotten."""
        if self.is_main:
            self._log = metrics.MetricsLog(self.directory, length=lengths.get(LOGS[0], 0), step=step)
            self._samples = metrics.cut(self.directory / LOGS[1], lengths.get(LOGS[1], 0))
            self._log.trackers = self._trackers

    def start_trackers(self, config: PretrainConfig) -> None:
        """Hands the lines on from now on, to whom the config names."""
        if self.is_main:
            self._trackers = self._log.trackers = trackers.start(
                config.log.trackers,
                project=config.log.project,
                name=config.run.name,
                directory=self.directory,
                config=configs.to_dict(config),
                say=self.display.say,
            )

    def close(self) -> None:
        """Closes the logs."""
        if self.is_main:
            self._log.close()
            self._samples.close()

    def end(self, *, is_finished: bool) -> None:
        """Closes everything. Args: is_finished: whether the run came to its end."""
        if self._trackers is not None:
            self._trackers.close(is_finished=is_finished)
        self.close()

    def lengths(self) -> dict[str, int]:
        """Returns the bytes of each log so far."""
        if not self.is_main:
            return {}
        return {LOGS[0]: self._log.length(), LOGS[1]: metrics.flushed(self._samples)}

    def paths(self) -> list[Path]:
        """Returns the logs that this rank writes."""
        return [self.directory / name for name in LOGS] if self.is_main else []

    def write(self, kind: str, step: int, **values: float | list[float] | None) -> None:
        """Adds a line to metrics.jsonl."""
        if self.is_main:
            self._log.write(kind, step, **values)

    def write_samples(self, text: str) -> None:
        """Adds to samples.txt."""
        if self.is_main:
            self._samples.write(text.encode())
            self._samples.flush()

    def tell(self, event: Event) -> None:
        """Writes and says what is out of the ordinary."""
        if self.is_main:
            self._log.event(event.step, event.name, event.text, event.values)
            self.display.say(event.text)

    def say(self, text: str) -> None:
        """Says a line for people."""
        if self.is_main:
            self.display.say(text)

    def say_start(self, config: PretrainConfig, data: Corpus, model: ModelConfig, world: World, **facts: Any) -> None:
        """Says what is trained, on what, by whom. Args: facts: environment, dtype, step."""
        train, say = config.train, self.say
        say(f"run {self.directory}: {', '.join(f'{k} {v}' for k, v in facts['environment'].items())}")
        for section, values in configs.to_dict(config).items():
            say(f"[{section}] {', '.join(f'{key} = {configs.short(value)}' for key, value in values.items())}")
        vocabulary = f"vocabulary {data.tokenizer.vocab_size:,}"
        say(f"train {data.train.n_tokens:,} tokens, val {data.val.n_tokens:,} tokens, {vocabulary}")
        dtype = str(facts["dtype"]).removeprefix("torch.")
        say(f"model {count.n_params(model):,} parameters, {dtype}, seed {config.run.seed}")
        if world.size > 1:
            mesh = dataclasses.asdict(world.sizes)
            say(f"{world.size} ranks: {', '.join(f'{name} {n}' for name, n in mesh.items() if n > 1)}")
        epochs = train.rows_before(train.steps) * train.seq_len / data.train.n_tokens
        sizes = sorted({train.rows_at(0) * train.seq_len, train.global_batch * train.seq_len})
        size = " to ".join(f"{n:,}" for n in sizes)
        say(f"{train.steps:,} steps of {size} tokens ({epochs:.1f} epochs), from step {facts['step']:,}")
        peak, warmup = config.optim.lr, config.schedule.warmup_steps
        if warmup >= train.steps:
            end = config.schedule.rate(train.steps - 1, peak=peak, steps=train.steps)
            text = f"the run ends inside the warm-up of {warmup:,} steps, at a learning rate of {end:.2g}, not {peak:g}"
            say(f"{text}; hint: schedule.warmup_steps")
