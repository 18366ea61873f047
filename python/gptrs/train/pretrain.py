"""Pre-training: from raw text to a trained model in one run directory.

    data.text ─hold out─▶ train, val files ─▶ tokenizer.json ─▶ data/train, data/val ─▶ fit ─▶ val loss, report.html

Each arrow leaves whole files only and takes what is there: after a kill the same command goes on where it stood. Which
directories it may use is said in `rundir`.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gptrs import config as configs
from gptrs.loader import Loader
from gptrs.model import Transformer, count
from gptrs.train import checkpoint, corpus, metrics, rundir, trackers
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus, Rows
from gptrs.train.device import device_of, dtype_of
from gptrs.train.looks import Looks
from gptrs.train.loop import FitOptions, Position, Stops, Update, fit
from gptrs.train.optim import adamw
from gptrs.train.parts import Parts
from gptrs.train.profiler import Profiler
from gptrs.train.reports import Reports
from gptrs.train.schedule import learning_rate, stand
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


def run(config: PretrainConfig, *, is_fresh: bool = False) -> Result:
    """Trains as the config says, fills the run directory and returns the result; prints `val loss X` last.

    Args: is_fresh: removes what an earlier run left in the directory. Otherwise an unfinished run of the same config
        goes on, and a finished or different one is refused.
    Raises: ValueError and OSError for what the user can mend, before work starts where it can be known;
        KeyboardInterrupt on Ctrl-C, after a checkpoint.
    """
    if not (config.data.text or config.data.train):
        raise ValueError("data.text is required, got nothing; hint: data.text=FILE")
    trackers.require(config.log.trackers)
    with rundir.claim(config.run.path, config, is_fresh=is_fresh):
        device = device_of(config.run)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        session = _Session(config, _corpus(config), device)
        try:
            session.train()
            result = session.finish()
        finally:
            session.close()
        rundir.finish(config.run.path, dataclasses.asdict(result))
    session.say_result(result)
    return result


class _Session:
    """One process's part of a run: what fit() needs, and what happens at its stops."""

    def __init__(self, config: PretrainConfig, data: Corpus, device: torch.device) -> None:
        self.config = config
        self.corpus = data
        self.device = device
        self.dir = config.run.path
        self.dtype = dtype_of(config.run, device)
        self.model_config = config.model.resolve(vocab_size=data.tokenizer.vocab_size, seq_len=config.train.seq_len)
        self.model = Transformer(self.model_config, seed=config.run.seed).to(device)
        self.mixtures = [mixture for _, mixture in self.model.experts()]
        self.parts = _parts(config, data)
        beta1, beta2 = config.optim.betas
        self.optimizer = adamw(
            self.model,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            betas=(beta1, beta2),
            eps=config.optim.eps,
        )
        self.loader = Loader(
            data.train,
            seq_len=config.train.seq_len,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            seed=config.run.seed,
            device=str(device),
        )
        self.environment = metrics.environment(device)
        self.peak, self.peak_name = metrics.peak_flops(device, self.dtype)
        self.flops_per_token = count.flops_per_token(self.model_config, config.train.seq_len, has_further=True)
        self.display = metrics.Display(steps=config.train.steps, peak=self.peak_name)
        self.looks = Looks(config, data, self.model, self.parts, device=device, dtype=self.dtype)
        self.looks.display = self.display
        self.reports = Reports(config, data, self.model, self.looks, environment=self.environment)
        self.position, lengths = self._restore()
        self.log_file = metrics.MetricsLog(self.dir, length=lengths["metrics.jsonl"], step=self.position.step)
        self.samples_file = metrics.cut(self.dir / "samples.txt", lengths["samples.txt"])
        self.looks.log_file, self.looks.samples_file = self.log_file, self.samples_file
        self.statistics = self._statistics()
        self.profiler = Profiler(self.dir, updates=config.log.profile, say=self.display.say)
        self.trackers: trackers.Trackers | None = None
        self.is_finished = False
        self.beside: rundir.Outcome | str | None = None

    def train(self) -> None:
        self._say_start()
        self._start_trackers()
        self.display.start()
        try:
            self.position = fit(
                self.model,
                self.loader,
                loss_fn=self.parts.loss,
                optimizer=self.optimizer,
                learning_rate=self._learning_rate,
                options=self._options(),
                stops=Stops(log=self._log, save=self._save, evaluate=self._evaluate, sample=self._sample),
                after_update=lambda: self.parts.after_update(self.mixtures),
                watch=self._watch,
                start=self.position,
            )
        except KeyboardInterrupt as error:
            self.display.stop()
            self.display.say(f"{error or 'stopped'}; hint: the same command goes on from the newest checkpoint")
            raise
        finally:
            self.display.stop()

    def finish(self) -> Result:
        """Writes report.html and returns the result."""
        result = self._result(self.position)
        if self.config.run.beside:
            own = self.reports.outcome(dataclasses.asdict(result))
            self.beside = rundir.beside(own, Path(self.config.run.beside))
        self.reports.finish(dataclasses.asdict(result), self.beside)
        self.is_finished = True
        return result

    def close(self) -> None:
        self.profiler.flush(is_end=True)
        if self.trackers is not None:
            self.trackers.close(is_finished=self.is_finished)
        self.loader.close()
        self.log_file.close()
        self.samples_file.close()

    def say_result(self, result: Result) -> None:
        say = self.display.say
        for prompt, text in self.looks.samples:
            say(f"── sample, prompt {prompt!r}\n{prompt}{text}\n")
        if result.is_capped:
            say(f"ended by train.max_minutes after {result.steps} of {self.config.train.steps} steps")
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

    def _start_trackers(self) -> None:
        log, run = self.config.log, self.config.run
        self.trackers = self.log_file.trackers = trackers.start(
            log.trackers,
            project=log.project,
            name=run.name,
            directory=self.dir,
            config=configs.to_dict(self.config),
            say=self.display.say,
        )

    def _say_start(self) -> None:
        say, data, train = self.display.say, self.corpus, self.config.train
        say(f"run {self.dir}: {', '.join(f'{k} {v}' for k, v in self.environment.items())}")
        for section, values in configs.to_dict(self.config).items():
            say(f"[{section}] {', '.join(f'{key} = {configs.short(value)}' for key, value in values.items())}")
        vocabulary = f"vocabulary {data.tokenizer.vocab_size:,}"
        say(f"train {data.train.n_tokens:,} tokens, val {data.val.n_tokens:,} tokens, {vocabulary}")
        n = sum(parameter.numel() for parameter in self.model.parameters())
        say(f"model {n:,} parameters, {str(self.dtype).removeprefix('torch.')}, seed {self.config.run.seed}")
        per_step = train.global_batch * train.seq_len
        epochs = train.steps * per_step / data.train.n_tokens
        say(f"{train.steps} steps of {per_step:,} tokens ({epochs:.1f} epochs), from step {self.position.step}")

    def _restore(self) -> tuple[Position, dict[str, int]]:
        """Returns where the run stands and how long its logs were then, after loading the newest checkpoint."""
        torch.manual_seed(self.config.run.seed)  # dropout
        found = checkpoint.find(self.dir / "checkpoints")
        for path in found.uncommitted:
            origin = found.newest or "the beginning"
            warnings.warn(f"checkpoint {path} was never finished; going on from {origin}", stacklevel=2)
        if found.newest is None:
            return Position(), {"metrics.jsonl": 0, "samples.txt": 0}
        state = checkpoint.load(found.newest, self.model, self.optimizer)
        self.loader.load_state_dict(state["loader"])
        return Position(step=state["step"], elapsed_s=state["elapsed_s"]), state["lengths"]

    def _options(self) -> FitOptions:
        train = self.config.train
        return FitOptions(
            steps=train.steps,
            accumulation=train.accumulation,
            clip=self.config.optim.clip,
            dtype=self.dtype,
            is_compiled=self.config.run.compile,
            max_seconds=None if train.max_minutes is None else 60 * train.max_minutes,
            log_every=train.log_every,
            eval_every=train.eval_every,
            sample_every=self.config.sample.every or train.eval_every,
            checkpoint_every=train.checkpoint_every,
        )

    def _learning_rate(self, position: Position) -> float:
        schedule, options = self.config.schedule, self._options()
        return learning_rate(
            stand(position.step, steps=options.steps, elapsed_s=position.elapsed_s, max_seconds=options.max_seconds),
            peak=self.config.optim.lr,
            min_lr=schedule.min_lr,
            warmup_steps=schedule.warmup_steps,
            steps=options.steps,
        )

    def _evaluate(self, position: Position, is_last: bool) -> None:
        self.looks.evaluate(position, is_last)
        is_sampled = position.step % self._options().sample_every == 0
        if not (is_last or is_sampled):
            self._report(position)

    def _sample(self, position: Position, is_last: bool) -> None:
        self.looks.sample(position, is_last)
        if not (is_last or math.isnan(self.looks.val_loss)):
            self._report(position)

    def _report(self, position: Position) -> None:
        self.reports.on_the_way(dataclasses.asdict(self._result(position)) | {"is_capped": False})

    @contextmanager
    def _watch(self, step: int) -> Iterator[None]:
        with self.profiler.watch(step), self.statistics.watch(step):
            yield

    def _statistics(self) -> Statistics:
        def all_blocks(model: nn.Module, rows: Rows) -> Tensor:
            assert isinstance(model, Transformer)
            return model.losses(rows.tokens, rows.targets, **self.parts.documents(rows.tokens))["next"]

        return Statistics(
            self.model,
            self.optimizer,
            rows=self.looks.first_rows(),
            loss_fn=all_blocks,
            dtype=self.dtype,
            loads=lambda: self.parts.loads,
            every=self.config.log.stats_every,
            write=lambda step, values: self.log_file.write("stats", step, **values),
        )

    def _log(self, update: Update) -> None:
        mfu, parts = update.tokens_per_s * self.flops_per_token / self.peak if self.peak else None, self.parts.log()
        memory = metrics.memory(self.device)
        self.log_file.write(
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
        lengths = {"metrics.jsonl": self.log_file.length(), "samples.txt": metrics.sync(self.samples_file)}
        state = {
            "elapsed_s": position.elapsed_s,
            "loader": self.loader.state_dict(),
            "lengths": lengths,
            "config": configs.to_dict(self.config),
            "model": dataclasses.asdict(self.model_config),
            "environment": self.environment,
        }
        checkpoint.save(
            self.dir / "checkpoints",
            step=position.step,
            model=self.model,
            optimizer=self.optimizer,
            state=state,
            keep=self.config.train.keep_checkpoints,
        )


def _corpus(config: PretrainConfig) -> Corpus:
    data, tokenizer = config.data, config.tokenizer
    if data.train and data.val and tokenizer.path:
        return corpus.from_datasets(data.train, data.val, tokenizer.path, config.run.path)
    return corpus.from_text(
        data.text,
        config.run.path,
        val_fraction=data.val_fraction,
        text_field=data.text_field,
        tokenizer_path=tokenizer.path,
        vocab_size=tokenizer.vocab_size,
        pattern=tokenizer.pattern,
        special_tokens=tokenizer.special_tokens,
        threads=config.run.threads,
    )


def _parts(config: PretrainConfig, data: Corpus) -> Parts:
    train, eot_id = config.train, data.tokenizer.eot_id
    if train.attention == "documents" and eot_id is None:
        raise ValueError(
            "train.attention=documents needs a token that ends documents, the tokenizer has none; "
            "hint: train.attention=stream, or <|endoftext|> among tokenizer.special_tokens"
        )
    return Parts(
        mtp_weight=train.mtp_weight,
        balance_weight=train.balance_weight,
        bias_speed=train.bias_speed,
        attention=train.attention,
        eot_id=eot_id,
    )
