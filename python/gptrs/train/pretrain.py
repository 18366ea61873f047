"""Pre-training: from raw text to a trained model in one run directory.

    data.text ─hold out─▶ train, val files ─▶ tokenizer.json ─▶ data/train, data/val ─▶ fit ─▶ val loss, report.html

Each arrow leaves whole files only and takes what is there: after a kill the same command goes on where it stood. Which
directories it may use is said in `rundir`.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptrs import config as configs
from gptrs.model import Transformer, count
from gptrs.train import checkpoint, distributed, feed, metrics, resume, rundir, speed, trackers
from gptrs.train.average import Average
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus, Rows
from gptrs.train.determinism import deterministic
from gptrs.train.device import device_of, dtype_of
from gptrs.train.distributed import World
from gptrs.train.guard import Event, Guard
from gptrs.train.in_backward import check_ranks
from gptrs.train.journal import Journal
from gptrs.train.keeper import Keeper
from gptrs.train.looks import Looks
from gptrs.train.loop import FitOptions, Position, Stops, Update, fit
from gptrs.train.optim import optimizer_of
from gptrs.train.parts import parts_of
from gptrs.train.profiler import Profiler
from gptrs.train.reports import Reports
from gptrs.train.schedule import stand
from gptrs.train.signals import leaving_at_once
from gptrs.train.spread import Spread
from gptrs.train.stats import Statistics


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a finished run came to."""

    dir: str  # the run directory
    steps: int  # optimizer updates made
    val_loss: float  # nats for a token, over the whole held-out part
    unigram_entropy: float  # nats: the loss of knowing the frequencies of the held-out tokens and nothing else
    bits_per_byte: float  # the same loss for a byte of text: comparable between vocabularies
    seconds: float  # of training, evaluation included
    is_capped: bool  # ended by train.max_minutes before its last step
    n_params: int  # of the model


def run(config: PretrainConfig, *, is_fresh: bool = False, allow: Iterable[str] = ()) -> Result:
    """Trains as the config says, fills the run directory and returns the result; prints `val loss X` last.

    Args:
        is_fresh: removes what an earlier run left in the directory. Otherwise an unfinished run of the same config
            goes on, and a finished or different one is refused.
        allow: settings (section.key) that may differ from the run's, which then goes on with the new values; a
            finished one does when that gives it more steps or time.
    Raises: ValueError and OSError for what the user can mend, before work starts where it can be known;
        Stopped (a KeyboardInterrupt) on Ctrl-C, SIGTERM and SIGUSR1, after a checkpoint.
    """
    with opened(config, is_fresh=is_fresh, allow=allow) as session:
        session.train()
        result = session.finish()
        if session.world.is_main:
            rundir.finish(config.run.path, dataclasses.asdict(result))
    session.say_result(result)
    return result


@contextmanager
def opened(config: PretrainConfig, *, is_fresh: bool, allow: Iterable[str] = ()) -> Iterator["Session"]:
    """This rank's session in the run directory, which it holds for as long."""
    if not (config.data.text or config.data.is_prepared):
        raise ValueError("data.text is required, got nothing; hint: data.text=FILE")
    trackers.require(config.log.trackers)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    with leaving_at_once(), deterministic(config.run.deterministic), ExitStack() as stack:
        world = stack.enter_context(distributed.join(config.parallel, device_of(config.run)))
        with world.together():
            config.train.rows(world.data_size)
            if config.optim.in_backward:
                check_ranks(world.size)
            if world.is_main:
                feed.check_sources(config, is_fresh=is_fresh)
                stack.enter_context(rundir.claim(config.run.path, config, is_fresh=is_fresh, allow=allow))
        data = world.main_first(lambda: feed.corpus_of(config, world))
        with world.together():
            session = Session(config, data, world)
            if world.is_main:
                rundir.settle(config.run.path, config)
        try:
            yield session
        finally:
            session.close()


class Session:
    """One process's part of a run: what fit() needs, and what happens at its stops."""

    def __init__(self, config: PretrainConfig, data: Corpus, world: World) -> None:
        self.config, device = config, world.device
        self.corpus = data
        self.world = world
        self.dir = config.run.path
        self.dtype = dtype_of(config.run, device)
        self.model_config = config.model.resolve(vocab_size=data.tokenizer.vocab_size, seq_len=config.train.seq_len)
        with torch.device("meta"):  # Spread makes this rank's part real
            self.model = Transformer(self.model_config)
        self.mixtures = [mixture for _, mixture in self.model.experts()]
        self.parts = parts_of(config, data, world)
        speed.prepare(self.model, config.speed, device=device)
        is_new = checkpoint.find(self.dir / "checkpoints").newest is None  # else no weight is drawn
        options = {"seed": config.run.seed if is_new else None, **speed.compilation(config.run, config.speed)}
        self.spread = Spread(self.model, world, dtype=self.dtype, before_memory=self._must_fit, **options)
        self.optimizer = optimizer_of(self.model, config.optim)
        self.spread.split_groups(self.optimizer)
        train, self.average = config.train, None
        if train.ema is not None:
            self.average = Average(self.model, decay=train.ema, is_corrected=train.is_ema_corrected)
        self.loader = feed.loader(config, data.train, world)
        self.environment = metrics.environment(device)
        self.peak, self.peak_name = metrics.peak_flops(device, self.dtype)
        self.flops_per_token = count.flops_per_token(self.model_config, config.train.seq_len, has_further=True)
        self.display = metrics.Display(steps=config.train.steps, peak=self.peak_name)
        self.journal = Journal(self.dir, self.display, is_main=world.is_main)
        self.looks = Looks(config, data, self.spread, self.parts, self.journal, dtype=self.dtype)
        self.looks.average = self.average
        self.keeper = Keeper(
            self.dir / "checkpoints",
            self.spread,
            self.optimizer,
            self.average,
            train=train,
            seed=config.run.seed,
            on_failure=self._say_not_saved,
        )
        self.guard = Guard(config.guard, device=device)
        self.left_out: list[list[int]] = []  # [first, end) of the samples that a rollback went past
        self.changes: list[resume.Change] = []  # of the config, since the newest checkpoint
        self.look_step, self.look_lengths = -1, dict[str, int]()  # of the logs before the looks of a step
        self.reports = Reports(config, data, self.looks, environment=self.environment)
        self.position, lengths = self._restore()
        self._open_logs(lengths, self.position.step)
        self.statistics = self._statistics()
        self.profiler = Profiler(self.dir, updates=config.log.profile if world.is_main else (), say=self.display.say)
        self.is_finished = False
        self.beside: rundir.Outcome | str | None = None

    def _must_fit(self, n_params: int, n_bytes: int) -> None:
        """Where memory is promised that is not there, the system ends the process later and without a word."""
        is_averaged = self.config.train.ema is not None
        n_moments = 1 if self.config.optim.name == "muon" else 2  # Muon: at the least
        has_gradients = not self.config.optim.in_backward  # all at once
        needed, there = (1 + has_gradients + n_moments + is_averaged) * n_bytes, metrics.memory(self.world.device)[1]
        held = "weights, gradients and optimizer" if has_gradients else "weights and optimizer"
        if needed > there:
            raise MemoryError(
                f"expected a model that fits in the {there / 1e9:.1f} GB of memory here, got {n_params:,} parameters"
                f"{' on a rank' if self.world.size > 1 else ''}, whose {held} take "
                f"{needed / 1e9:,.1f} GB; hint: make it smaller or divide it among more devices; gptrs plan says what "
                "each of them holds"
            )

    def train(self) -> None:
        facts = {"environment": self.environment, "dtype": self.dtype, "step": self.position.step}
        self.journal.say_start(self.config, self.corpus, self.model_config, self.world, **facts)
        self.journal.start_trackers(self.config)
        if self.world.is_main:
            self.display.start()
        try:
            self.position = self.fit(
                loss_fn=self.parts.loss,
                learning_rate=self._learning_rate,
                stops=Stops(
                    log=self._log,
                    save=self._save,
                    evaluate=self._evaluate,
                    sample=self._sample,
                    tell=self.journal.tell,
                    roll_back=self._roll_back,
                ),
                watch=self._watch,
                start=self.position,
                guard=self.guard,
            )
            self.keeper.saver.finish()
        except KeyboardInterrupt as error:
            if error.args:  # a second signal waits for nothing
                self.keeper.saver.finish()
            self.display.stop()
            self.journal.say(f"{error or 'stopped'}; hint: the same command goes on from the newest checkpoint")
            raise
        except Exception:
            self.keeper.saver.wait()
            raise
        finally:
            self.display.stop()

    def fit(self, *, changes: Mapping[str, Any] | None = None, **given: Any) -> Position:
        """`fit` with what all trainings of a session share. Args: changes: of its options."""
        return fit(
            self.model,
            self.loader,
            optimizer=self.optimizer,
            options=dataclasses.replace(self._options(), **(changes or {})),
            after_update=self._after_update,
            counts=self.parts.counts,
            spread=self.spread,
            **given,
        )

    def finish(self) -> Result:
        """Writes report.html and returns the result."""
        result = self._result(self.position)
        if (model := self.spread.whole()) is not None:
            values = dataclasses.asdict(result)
            if self.config.run.beside:
                self.beside = rundir.beside(self.reports.outcome(values), Path(self.config.run.beside))
            self.reports.finish(values, model, self.beside)
        self.is_finished = True
        return result

    def close(self) -> None:
        self.profiler.flush(is_end=True)
        self.loader.close()
        self.journal.end(is_finished=self.is_finished)

    def say_result(self, result: Result) -> None:
        say = self.journal.say
        for prompt, text in self.looks.samples:
            say(f"── sample, prompt {prompt!r}\n{prompt}{text}\n")
        if result.is_capped:
            told = f"ended by train.max_minutes after {result.steps} of {self.config.train.steps} steps"
            say(f"{told}; hint: a larger one with --allow train.max_minutes trains on")
        say(f"run directory {self.dir}, report {self.dir / 'report.html'}")
        if isinstance(self.beside, rundir.Outcome):
            say(f"beside it, run {self.beside.name}: val loss {self.beside.result['val_loss']:.4f}")
        elif self.beside:
            say(self.beside)
        say(f"training time {metrics.duration(result.seconds)}")
        say(f"unigram entropy {result.unigram_entropy:.4f}")
        say(f"bits per byte {result.bits_per_byte:.4f}")
        say(f"val loss {result.val_loss:.4f}")

    def _result(self, position: Position) -> Result:
        """What the run has come to at a position behind an evaluation."""
        return Result(
            dir=str(self.dir),
            steps=position.step,
            val_loss=self.looks.val_loss,
            unigram_entropy=self.corpus.unigram_entropy,
            bits_per_byte=self.corpus.bits_per_byte(self.looks.val_loss),
            seconds=position.elapsed_s,
            is_capped=position.step < self.config.train.steps,
            n_params=count.n_params(self.model_config),
        )

    def _restore(self) -> tuple[Position, dict[str, int]]:
        """Returns where the run stands and how long its logs were then, after loading the newest checkpoint."""
        state = self.keeper.restore()
        if state is None:
            return Position(), {}
        self.loader.load_state_dict(state["loader"])
        self.guard.load_state_dict(state["guard"])
        self.left_out = state["left_out"]
        self.changes = resume.changes(configs.build(PretrainConfig, state["config"]), self.config)
        return Position(step=state["step"], elapsed_s=state["elapsed_s"]), state["lengths"]

    def _open_logs(self, lengths: Mapping[str, int], step: int) -> None:
        self.journal.open(lengths, step)
        if self.changes:
            values = {"changes": {change.key: [change.old, change.new] for change in self.changes}}
            text = resume.sentence(self.changes)
            self.journal.tell(Event(step=step, name="config changed", text=text, values=values))

    def _roll_back(self, guard: Guard) -> int | None:
        """Goes back to the newest checkpoint and on behind the samples that were drawn since."""
        self.keeper.saver.wait()
        self.world.main_first(lambda: None)  # whose marker it is
        state = self.keeper.restore()
        if state is None:
            return None
        step, samples = int(state["step"]), [state["loader"]["next_sample"], self.loader.next_sample]
        guard.rolled_back(state["guard"], step)
        self.left_out = [*state["left_out"], samples]
        self.journal.close()
        self._open_logs(state["lengths"], step)
        self.look_step = -1
        text = f"back to step {step}, past samples {samples[0]} to {samples[1] - 1}"
        self.journal.tell(Event(step=step, name="rollback", text=text, values={"samples": samples}))
        return step

    def _note_lengths(self, position: Position) -> None:
        """A checkpoint after a look that was cut off has the logs as they were before it."""
        if position.step != self.look_step:
            self.look_step, self.look_lengths = position.step, self.journal.lengths()

    def _options(self) -> FitOptions:
        train = self.config.train
        return FitOptions(
            steps=train.steps,
            accumulation=train.accumulation(self.world.data_size),
            microbatches_before=lambda step: train.microbatches_before(step, self.world.data_size),
            clip=self.config.optim.clip,
            in_backward=self.config.optim.in_backward,
            dtype=self.dtype,
            max_seconds=None if train.max_minutes is None else 60 * train.max_minutes,
            log_every=train.log_every,
            eval_every=train.eval_every,
            sample_every=self.config.sample.every or train.eval_every,
            checkpoint_every=train.checkpoint_every,
        )

    def _after_update(self, is_left_out: Tensor) -> None:
        self.parts.after_update(self.mixtures, is_left_out)
        if self.average is not None:
            self.average.update(is_left_out)

    def _learning_rate(self, position: Position) -> float:
        options, elapsed_s = self._options(), position.elapsed_s
        step = stand(position.step, steps=options.steps, elapsed_s=elapsed_s, max_seconds=options.max_seconds)
        return self.config.schedule.rate(step, peak=self.config.optim.lr, steps=options.steps)

    def _evaluate(self, position: Position, is_last: bool) -> None:
        self._note_lengths(position)
        if is_last:
            self.keeper.saver.finish()  # before what may go wrong now
        self.looks.evaluate(position, is_last)
        self.keeper.saver.mark(position.step, self.looks.val_loss)
        is_sampled = position.step % self._options().sample_every == 0
        if not (is_last or is_sampled):
            self._report(position)

    def _sample(self, position: Position, is_last: bool) -> None:
        self._note_lengths(position)
        self.looks.sample(position, is_last)
        if not (is_last or math.isnan(self.looks.val_loss)):
            self._report(position)

    def _report(self, position: Position) -> None:
        if self.world.is_main:
            self.reports.on_the_way(dataclasses.asdict(self._result(position)) | {"is_capped": False})

    @contextmanager
    def _watch(self, step: int) -> Iterator[None]:
        with self.profiler.watch(step), self.statistics.watch(step):
            yield

    def _statistics(self) -> Statistics:
        def all_blocks(model: nn.Module, rows: Rows) -> Tensor:
            assert isinstance(model, Transformer)
            documents: dict[str, Any] = {**self.parts.documents(rows.tokens)}
            return model.losses(rows.tokens, rows.targets, **documents)["next"]

        return Statistics(
            self.spread,
            self.optimizer,
            rows=self.looks.first_rows(),
            loss_fn=all_blocks,
            loads=lambda: self.parts.loads,
            every=self.config.log.stats_every,
            write=lambda step, values: self.journal.write("stats", step, **values),
        )

    def _mfu(self, tokens_per_s: float) -> float | None:
        """The share of the peak that is used; a peak that others slowed when it was measured is measured again."""
        if self.peak is None:
            return None
        used = tokens_per_s * self.flops_per_token / self.world.size
        if used > self.peak and self.world.device.type == "cpu":
            self.peak = max(used, metrics.measured_peak(self.dtype))
        return used / self.peak

    def _log(self, update: Update) -> None:
        parts = self.parts.log()
        if not self.world.is_main:
            return
        mfu = self._mfu(update.tokens_per_s)
        memory = metrics.memory(self.world.device)
        self.journal.write(
            "train",
            update.step,
            loss=update.loss,
            lr=update.lr,
            grad_norm=update.grad_norm,
            tokens_per_s=round(update.tokens_per_s, 1),
            mfu=mfu,
            time_s=round(update.time_s, 3),
            memory_bytes=memory[0],
            **parts,
        )
        self.display.update(
            update.step,
            loss=update.loss,
            tokens_per_s=update.tokens_per_s,
            mfu=mfu,
            seconds_left=update.seconds_left,
            parts=parts,
            memory=memory,
        )
        self.profiler.flush()

    def _save(self, position: Position) -> None:
        state = {
            "elapsed_s": position.elapsed_s,
            "loader": self.loader.state_dict(),
            "guard": self.guard.state_dict(),
            "left_out": self.left_out,
            "n_averaged": 0 if self.average is None else self.average.n_updates,
            "lengths": self.look_lengths if position.step == self.look_step else self.journal.lengths(),
            "config": configs.to_dict(self.config),
            "model": dataclasses.asdict(self.model_config),
            "environment": self.environment,
        }
        self.keeper.save(position.step, state, logs=self.journal.paths())
        self.changes = []

    def _say_not_saved(self, step: int, error: OSError) -> None:
        text = f"step {step} is not saved, training goes on: {error.strerror or error}"
        self.journal.tell(Event(step=step, name="not saved", text=text, values={"errno": error.errno}))
