"""Tokenizers that others publish, and folders that transformers loads.

Nothing here imports huggingface_hub or tiktoken before a name has to be looked up.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptrs import _core

# What a repository may hold, the best first; a list is one tokenizer.
_FILES = (["tokenizer.json"], ["vocab.json", "merges.txt"])
_TEMPLATE = "chat_template.jinja"


def download(name: str, **options: Any) -> str:
    """The path of a tokenizer on the Hugging Face hub, in the local cache; `options` go to `hf_hub_download`.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: The hub cannot be reached and the cache has no such tokenizer.
        ValueError: The repository has no tokenizer that can be read.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            "from_pretrained needs huggingface_hub to look a name up; hint: pip install huggingface_hub, or pass the "
            "path of a folder"
        ) from error
    for files in _FILES:
        try:
            return str([huggingface_hub.hf_hub_download(name, file, **options) for file in files][-1])
        except errors.LocalEntryNotFoundError as error:
            last: Exception = error
        except errors.EntryNotFoundError as error:
            last = error
        except errors.HFValidationError as error:
            raise ValueError(f"expected a repository like owner/name or an existing path, got {name!r}") from error
        except (errors.HfHubHTTPError, OSError) as error:
            raise OSError(_unreachable(name, str(error).splitlines()[0])) from error
    if isinstance(last, errors.LocalEntryNotFoundError):
        raise OSError(_unreachable(name, "it is not in the local cache")) from last
    raise ValueError(
        f"{name!r} on the Hugging Face hub has no tokenizer.json, and no vocab.json with merges.txt; hint: a "
        "SentencePiece or WordPiece tokenizer cannot be read"
    ) from last


def _unreachable(name: str, reason: str) -> str:
    return (
        f"cannot get the tokenizer {name!r} from the Hugging Face hub: {reason}; hint: check the name and the network, "
        "or pass the path of a folder that has tokenizer.json"
    )


def encoding_of(name: str) -> Any:
    """tiktoken's encoding of that name, or of the model of that name.

    Raises:
        ImportError: tiktoken is not installed.
        OSError: Its vocabulary cannot be downloaded.
        ValueError: tiktoken knows no such name.
    """
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError("from_tiktoken needs tiktoken to look a name up; hint: pip install tiktoken") from error
    try:
        known = tiktoken.list_encoding_names()
        if name not in known:
            try:
                name = tiktoken.encoding_name_for_model(name)
            except KeyError as error:
                raise ValueError(f"expected one of {', '.join(known)} or a model's name, got {name!r}") from error
        return tiktoken.get_encoding(name)
    except OSError as error:
        raise OSError(
            f"cannot get the vocabulary of {name!r} for tiktoken: {error}; hint: check the network, set "
            "TIKTOKEN_CACHE_DIR to a folder that has it, or read a .tiktoken file with from_file"
        ) from error


def ranks_of(encoding: Any) -> tuple[list[tuple[bytes, int]], str, list[tuple[str, int]], str]:
    """Tokens with ranks, pattern, special tokens and name of a `tiktoken.Encoding`."""
    ranks, special = encoding._mergeable_ranks, encoding._special_tokens
    # Of two names of one id the one that is no reserve stays: `<|endofprompt|>`, not `<|reserved_200018|>`.
    by_id = {i: text for text, i in sorted(special.items(), key=lambda item: "reserved" not in item[0])}
    return list(ranks.items()), encoding._pat_str, [(text, i) for i, text in by_id.items()], encoding.name


def save(
    core: "_core.Tokenizer",
    folder: str | os.PathLike[str],
    *,
    chat_template: str | None,
    bos_token: str | None,
    eos_token: str | None,
    pad_token: str | None,
    model_max_length: int | None,
) -> None:
    """Writes the folder that `transformers.AutoTokenizer.from_pretrained` loads, over that of an earlier tokenizer."""
    named = {"bos_token": bos_token or _first_added(core), "eos_token": eos_token or _end(core), "pad_token": pad_token}
    for name, token in named.items():
        if token is not None and token not in core.special_tokens:
            raise ValueError(f"{name} must be a special token of this tokenizer, got {token!r}")
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(added[0]): _flags(*added[1:]) for added in core.added_tokens},
        **{name: token for name, token in named.items() if token is not None},
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length if model_max_length is not None else int(1e30),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    core.write(str(path / "tokenizer.json"))  # first, as not every tokenizer can be written so
    if chat_template is not None:
        config["chat_template"] = chat_template  # read by transformers 4, whatever its version
        (path / _TEMPLATE).write_text(chat_template, "utf-8", newline="\n")
    else:
        (path / _TEMPLATE).unlink(missing_ok=True)  # an earlier tokenizer's would be taken for this one's
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (path / "tokenizer_config.json").write_text(text, "utf-8", newline="\n")


def _flags(
    content: str, single_word: bool, lstrip: bool, rstrip: bool, normalized: bool, special: bool
) -> dict[str, str | bool]:
    return {
        "content": content,
        "lstrip": lstrip,
        "normalized": normalized,
        "rstrip": rstrip,
        "single_word": single_word,
        "special": special,
    }


def _end(core: "_core.Tokenizer") -> str | None:
    """The special token that ends a document."""
    eot = core.eot_id
    return None if eot is None else next((text for text, i in core.special_tokens.items() if i == eot), None)


def _first_added(core: "_core.Tokenizer") -> str | None:
    """The special token that the template puts before a text."""
    slots = [] if core.template is None else core.template[0]
    first = slots[0][1][:1] if slots else []
    return next((text for text, i in core.special_tokens.items() if [i] == first), None)
