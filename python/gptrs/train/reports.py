"""report.html of a run: kept current while it goes, from its files alone, and whole at its end."""

from collections.abc import Mapping
from typing import Any

from gptrs import config as configs
from gptrs import report, trace
from gptrs.model import Transformer, count
from gptrs.train import corpus, metrics, rundir
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus
from gptrs.train.looks import Looks

SENTENCE = "A true friend accepts you"  # the report follows the model through it


class Reports:
    """The reports of one run; the last one compares the token vectors with those that the run began with."""

    def __init__(self, config: PretrainConfig, data: Corpus, looks: Looks, *, environment: dict[str, str]) -> None:
        self.config = config
        self.corpus = data
        self.looks = looks
        self.environment = environment
        self.path = config.run.path / "report.html"
        self._pace = metrics.Pace()

    def on_the_way(self, result: Mapping[str, Any]) -> None:
        """Writes what there is so far, where that is due: no pass through the model, at most 1 % of the time."""
        usage, n_steps = trace.Usage(n_tokens=0), self.config.train.steps
        self._pace.do(lambda: report.write(self.path, self._facts(result, usage=usage, n_steps=n_steps)))

    def finish(self, result: Mapping[str, Any], model: Transformer, beside: rundir.Outcome | str | None) -> None:
        """Writes the whole report. Args: model: with all of its weights."""
        tokenizer = self.corpus.tokenizer
        before = Transformer.first_vectors(self.looks.model_config, self.config.run.seed)  # (V, C)
        after = model.embed.token.weight.detach().cpu()  # (V, C)
        facts = self._facts(
            result,
            guesses=trace.guesses(model, tokenizer, SENTENCE),
            gradients=trace.gradients(model, tokenizer, SENTENCE),
            neighbours=trace.neighbours(before, after, tokenizer, self.corpus.frequent_words(10)),
            usage=self.looks.usage(model),
            runs=None if beside is None else (self.outcome(result), beside),
        )
        report.write(self.path, facts)

    def outcome(self, result: Mapping[str, Any]) -> rundir.Outcome:
        """The run as another one's report shows it."""
        return rundir.Outcome(
            name=self.config.run.name,
            result=result,
            lines=metrics.read(self.config.run.path / "metrics.jsonl"),
            tokenizer=self.corpus.tokenizer.digest,
            data=(self.corpus.train.fingerprint, self.corpus.val.fingerprint),
        )

    def _facts(self, result: Mapping[str, Any], **others: Any) -> report.Facts:
        data = self.corpus
        return report.Facts(
            name=self.config.run.name,
            result=dict(result),
            sources=data.sources,
            tokenizer=data.tokenizer,
            train=data.train,
            val=data.val,
            n_bytes=(corpus.n_text_bytes(data.train), corpus.n_text_bytes(data.val)),
            model=self.looks.model_config,
            parts=count.parameters(self.looks.model_config),
            lines=metrics.read(self.config.run.path / "metrics.jsonl"),
            samples=self.looks.samples,
            sentence=SENTENCE,
            environment=self.environment,
            config=configs.dumps(self.config),
            **others,
        )
