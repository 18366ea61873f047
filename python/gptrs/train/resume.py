"""Which settings of a run may change while it is under way, and why the others may not. No torch here.

Nothing changes by itself: `--allow KEY` names each setting that may. What is in neither table is allowed with the
remark that the run is no longer one of a single config.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from gptrs import config as configs

FIXED = {  # pattern of keys → why the state of a run does not fit another value
    "data.*": "its place in the data is one of that text and that order",
    "tokenizer.*": "its ids are of that vocabulary",
    "model.dropout": "",  # has no weights
    "model.*": "its weights are of that model",
    "optim.name": "its moments are of that optimizer",
    "run.seed": "it decides the order of the rows",
    "train.seq_len": "its place in the data counts rows of that length",
}
HARMLESS = {  # pattern of keys → why training is the same, but for rounding
    "run.name": "a label",
    "run.dir": "a run that was moved is still the run",
    "run.beside": "the report alone",
    "run.device": "what computes",
    "run.compile": "what computes",
    "run.threads": "what computes",
    "run.deterministic": "what computes",
    "optim.in_backward": "the same steps, made earlier",
    "train.micro_batch": "the sum over an update is the same",
    "train.log_every": "what is looked at",
    "train.eval_every": "what is looked at",
    "train.eval_rows": "what is looked at",
    "train.checkpoint_every": "what is kept",
    "train.keep_checkpoints": "what is kept",
    "train.keep_best": "what is kept",
    "train.checkpoint_async": "when it is written",
    "sample.*": "what is looked at",
    "guard.*": "updates that cannot be trusted alone",
    "log.*": "where it is told",
    "parallel.*": "what computes",
    "speed.*": "what computes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A setting that differs from the one that a run began with or last went on with."""

    key: str
    old: Any
    new: Any

    @property
    def fixed(self) -> str:
        """Why the setting cannot change; empty when it can."""
        return _find(FIXED, self.key)

    @property
    def is_harmless(self) -> bool:
        """Whether training is the same, but for rounding."""
        return not self.fixed and bool(_find(HARMLESS, self.key))

    def __str__(self) -> str:
        return f"{self.key} = {configs.short(self.old)}, this one has {configs.short(self.new)}"


def changes(stored: Any, config: Any) -> list[Change]:
    """Returns every setting in which two configs differ."""
    return [Change(key=key, old=old, new=new) for key, old, new in configs.differences(stored, config)]


def check(found: Sequence[Change], allow: Iterable[str], *, schema: type[Any], where: str, hint: str) -> None:
    """Refuses changes that are not allowed, all of them in one line.

    Raises: ValueError; also when `allow` names a setting that there is none of, or that cannot change.
    """
    allowed = set(allow)
    known = keys(schema)
    for key in sorted(allowed):
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"--allow {key} names no setting{f'; hint: --allow {nearest[0]}' if nearest else ''}")
        if reason := _find(FIXED, key):
            raise ValueError(f"{key} cannot change while a run is under way: {reason}; {hint}")
    refused = [change for change in found if change.key not in allowed]
    if not refused:
        return
    text = f"{where} holds a run with {'; '.join(map(str, refused))}"
    if fixed := next((change for change in refused if change.fixed), None):
        raise ValueError(f"{text}; {fixed.key} cannot change: {fixed.fixed}; {hint}")
    flags = " ".join(f"--allow {change.key}" for change in refused)
    raise ValueError(f"{text}; {hint}, {flags} goes on with the new value{'s' * (len(refused) > 1)}")


def sentence(found: Sequence[Change]) -> str:
    """Returns what a run says that goes on with other settings."""
    parts = [f"{c.key} = {configs.short(c.new)} (was {configs.short(c.old)})" for c in found]
    text = f"goes on with {', '.join(parts)}"
    if all(change.is_harmless for change in found):
        return text
    return f"{text}: from here on no single config repeats this run"


def keys(schema: type[Any]) -> list[str]:
    """Returns the name of every setting, as section.key."""
    sections = typing.get_type_hints(schema)
    return [f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)]


def _find(table: dict[str, str], key: str) -> str:
    """The reason of the first pattern that a key fits."""
    return next((reason for pattern, reason in table.items() if fnmatchcase(key, pattern)), "")
