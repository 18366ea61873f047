"""One measurement in a process of its own: `python tokenizer_tasks.py TASK '{"engine": …}'` prints one JSON line.

Caches start cold and the peak of memory is the engine's own. With one thread the process is bound to one core, so that
an engine that cannot be told its number of threads has one as well.
"""

import hashlib
import json
import os
import random
import string
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpora import SEPARATOR, first
from harness import peak_rss_mb

Result = dict[str, Any]


def encode(engine: str, vocabulary: str, documents: str, threads: int, **_: Any) -> Result:
    """Encodes all documents with a new tokenizer, once."""
    from engines import ENCODERS, SLOW_BYTES

    encoder, path = ENCODERS[engine], Path(documents)
    texts = path.read_bytes().split(SEPARATOR)
    n_texts = len(first(texts, SLOW_BYTES)) if encoder.is_slow else len(texts)
    folder = Path(vocabulary)
    tok = encoder.load(folder, folder.name)
    formed = encoder.form(texts[:n_texts], path)
    start = time.perf_counter()
    result = encoder.encode(tok, formed, threads)
    seconds = time.perf_counter() - start
    ids = encoder.ids(result)
    n_bytes = sum(map(len, texts[:n_texts]))
    row = {"seconds": seconds, "n_bytes": n_bytes, "n_ids": len(ids), "digest": digest(ids)}
    if engine == "gptrs":  # what engines must give that get the first documents only
        row["head"] = digest(encoder.ids(encoder.encode(tok, first(texts, SLOW_BYTES), 1)))
    return row


def digest(ids: Any) -> str:
    """16 hex digits of the ids as little-endian uint32."""
    return hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest()[:16]


def train(engine: str, text: str, vocab_size: int, **_: Any) -> Result:
    """Trains on a file, or on its text where the engine takes no file."""
    from engines import TRAINERS

    __import__(engine)
    before = peak_rss_mb()
    start = time.perf_counter()
    trained = TRAINERS[engine](Path(text), vocab_size)
    seconds = time.perf_counter() - start
    peak, n_bytes = peak_rss_mb(), Path(text).stat().st_size
    tokens = trained.tokens()
    assert len(tokens) == vocab_size - 256, len(tokens)
    joined = b"".join(len(t).to_bytes(4, "little") + t for t in tokens)
    return {"seconds": seconds, "n_bytes": n_bytes, "digest": hashlib.sha256(joined).hexdigest()[:16],
            "over_text_mb": peak - before - n_bytes / 1e6}  # fmt: skip


def shards(engine: str, text: str, documents: str, vocab_size: int, out: str, **_: Any) -> Result:
    """Raw text to ids of a vocabulary trained on it, on disk: training and encoding are timed, loading is not."""
    import numpy as np
    from engines import ENCODERS, TRAINERS

    path = Path(text)
    start = time.perf_counter()
    trained = TRAINERS[engine](path, vocab_size)
    if engine == "gptrs":
        import gptrs

        dataset = gptrs.prepare([path], trained.tokenizer, out, append_eot=False, progress=False)
        return {"seconds": time.perf_counter() - start, "n_bytes": path.stat().st_size, "n_ids": dataset.n_tokens}
    seconds = time.perf_counter() - start
    tok, encoder = peer_encoder(engine, trained, Path(out))
    formed = ENCODERS[encoder].form(Path(documents).read_bytes().split(SEPARATOR), Path(documents))
    start = time.perf_counter()
    result = ENCODERS[encoder].encode(tok, formed, os.cpu_count() or 1)
    ids = ENCODERS[encoder].ids(result).astype(np.uint16)
    ids.tofile(Path(out) / "ids.bin")
    seconds += time.perf_counter() - start
    return {"seconds": seconds, "n_bytes": path.stat().st_size, "n_ids": len(ids)}


def peer_encoder(engine: str, trained: Any, out: Path) -> tuple[Any, str]:
    """The encoder for what a peer has trained: its own, for rustbpe tiktoken (as nanochat does it)."""
    from corpora import SPLITS, TIKTOKEN_PATTERNS, tokenizer_json

    if engine == "tokenizers":
        return trained.tokenizer._tokenizer, "tokenizers"
    ranks = {bytes([b]): b for b in range(256)} | {t: 256 + i for i, t in enumerate(trained.tokens())}
    if engine == "rustbpe":
        import tiktoken

        pattern = TIKTOKEN_PATTERNS["gpt2"]
        return tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}), "tiktoken"
    import gigatoken

    return gigatoken.Tokenizer.from_json(json.dumps(tokenizer_json(ranks, SPLITS["gpt2"]))), "gigatoken"


def scale(
    vocabulary: str, documents: str, threads: int, passes: int, start_at: float | None = None, **_: Any
) -> Result:
    """Several passes over all documents, each with a new tokenizer, to see what a second thread or process gains."""
    from engines import ENCODERS

    texts = Path(documents).read_bytes().split(SEPARATOR)
    folder = Path(vocabulary)
    tokenizers = [ENCODERS["gptrs"].load(folder, folder.name) for _ in range(passes)]
    if start_at is not None:  # two processes start together
        assert start_at > time.time(), "the other process has started; allow more time for loading"
        time.sleep(start_at - time.time())
    start = time.perf_counter()
    n_ids = sum(len(tok.encode_batch(texts, threads=threads).ids) for tok in tokenizers)
    return {"seconds": time.perf_counter() - start, "n_ids": n_ids}


def small(engine: str, vocabulary: str, calls: int, **_: Any) -> Result:
    """The best of ten loops of short `encode` calls to a list of ints, which some engines give by one more step."""
    from engines import ENCODERS

    text = "Hello world, how are you?"
    folder = Path(vocabulary)
    tok = ENCODERS[engine].load(folder, folder.name)
    call: Callable[[str], Any] = tok.encode
    kind = next(name for name in ("append", "ids", "tolist") if hasattr(call(text), name))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        if kind == "append":  # a list; a function around the three would cost a fifth of the call
            for _ in range(calls):
                ids = call(text)
        elif kind == "ids":
            for _ in range(calls):
                ids = call(text).ids
        else:
            for _ in range(calls):
                ids = call(text).tolist()
        best = min(best, time.perf_counter() - start)
    return {"seconds": best / calls, "digest": str(list(ids))}


def decode(engine: str, vocabulary: str, documents: str, **_: Any) -> Result:
    """Decodes the ids of some megabytes to bytes: from a list of ints, and from the array that our encoder gives."""
    from engines import ENCODERS, SLOW_BYTES

    folder, path = Path(vocabulary), Path(documents)
    text = b"".join(first(path.read_bytes().split(SEPARATOR), 4 * SLOW_BYTES))
    tok = ENCODERS[engine].load(folder, folder.name)
    array = ENCODERS["gptrs"].load(folder, folder.name).encode_batch([text], threads=1).ids
    ids = array if engine in ("gptrs", "gigatoken") else array.tolist()
    call = {"gptrs": "decode_bytes", "tiktoken": "decode_bytes", "gigatoken": "decode"}.get(engine, "decode")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        got = getattr(tok, call)(ids)
        seconds.append(time.perf_counter() - start)
    got = got if isinstance(got, bytes) else got.encode()
    return {"seconds": min(seconds), "n_bytes": len(text), "n_ids": len(array),
            "digest": hashlib.sha256(got).hexdigest()[:16], "is_text": got == text}  # fmt: skip


def load(engine: str, vocabulary: str, **_: Any) -> Result:
    """The time to a usable tokenizer from a file in the page cache; imports are done before."""
    from engines import ENCODERS

    folder = Path(vocabulary)
    package = __import__(ENCODERS[engine].package)
    getattr(package, "Tokenizer", None)  # ours is imported when it is first named
    for path in folder.iterdir():
        path.read_bytes()
    start = time.perf_counter()
    if engine == "gptrs":  # what other engines read, not the ranks
        import gptrs

        tok = gptrs.Tokenizer.from_file(folder / "tokenizer.json")
    else:
        tok = ENCODERS[engine].load(folder, folder.name)
    seconds = time.perf_counter() - start
    ids = tok.encode("Hello")
    return {"seconds": seconds, "digest": str([int(i) for i in getattr(ids, "ids", ids)])}


RANDOM_BYTES = 1 << 16  # then they repeat, longer than any window and any cached word
WORST = {
    "one letter": "a",
    "two letters": "ab",
    "spaces": " ",
    "digits": "7",
    "CJK": "中",
    "newlines": "\n",
    "emoji joiners": "\U0001f469\u200d",
    "combining marks": "e\u0301",
    "quotes": "'",
    "zero bytes": "\0",
    "random digits": "".join(random.Random(1).choices(string.digits, k=RANDOM_BYTES)),
    "random letters": "".join(random.Random(2).choices(string.ascii_lowercase, k=RANDOM_BYTES)),
}


def worst(vocabulary: str, pattern: str, n_bytes: int, **_: Any) -> Result:
    """Texts that are one piece, or look like one, and texts of twice the length, in turn: the best times of either.

    At least five rounds, and more where they are short: a machine with others on it is slow for a second at a time.
    """
    import gptrs

    folder = Path(vocabulary)
    tok = gptrs.Tokenizer.from_file(folder / f"{folder.name}.tiktoken", pattern=pattern)
    found = {}
    for name, unit in WORST.items():
        texts = [(unit * (n // len(unit.encode()) + 1)).encode()[:n] for n in (n_bytes, 2 * n_bytes)]
        times: list[list[float]] = [[], []]
        while len(times[0]) < 5 or (len(times[0]) < 25 and sum(map(sum, times)) < 1.5):
            for text, of in zip(texts, times, strict=True):
                start = time.perf_counter()
                ids = tok.encode_batch([text], threads=1).ids
                of.append(time.perf_counter() - start)
        assert tok.decode_bytes(ids) == texts[1], (pattern, name)
        assert tok.decode_bytes(tok.encode_batch([texts[0]], threads=1).ids) == texts[0], (pattern, name)
        found[name] = {"seconds": min(times[0]), "twice": min(times[1])}
    return {"cases": found}


def memory(vocabulary: str, text: str, out: str, **_: Any) -> Result:
    """The peak of memory while files become shards: resident, and of that what is not pages of files."""
    import gptrs

    folder = Path(vocabulary)
    tok = gptrs.Tokenizer.from_file(folder / "tokenizer.json")
    before = peak_rss_mb()
    largest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            largest[0] = max(largest[0], anonymous_mb())

    watcher = threading.Thread(target=watch)
    own = anonymous_mb()
    watcher.start()
    start = time.perf_counter()
    dataset = gptrs.prepare([text], tok, out, progress=False)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "n_bytes": Path(text).stat().st_size, "n_ids": dataset.n_tokens,
            "over_tokenizer_mb": peak_rss_mb() - before, "anonymous_mb": largest[0] - own}  # fmt: skip


def anonymous_mb() -> float:
    """Resident memory of this process that belongs to no file, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1000
    return float("nan")


TASKS: dict[str, Callable[..., Result]] = {
    "encode": encode, "train": train, "shards": shards, "scale": scale, "small": small, "decode": decode,
    "load": load, "worst": worst, "memory": memory,
}  # fmt: skip

if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    if options.get("threads") == 1:
        core = options.get("core", -1)
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    print(json.dumps({**TASKS[sys.argv[1]](**options), "peak_rss_mb": round(peak_rss_mb(), 1)}))
