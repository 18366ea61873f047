"""Tokenizers by name from local caches, and folders that transformers loads."""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.file_download import repo_folder_name

import oracles
from gptrs import Tokenizer

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = "<|endoftext|>"
ROLES = [END, "<|user|>", "<|assistant|>"]
MESSAGES = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4. déjà 友情"}]


@pytest.fixture(scope="module")
def chat_like(stdlib_files: list[Path]) -> Tokenizer:
    """A tokenizer with the special tokens of a conversation."""
    files = (path.read_bytes() for path in stdlib_files[:20])
    return Tokenizer.train_from_iterator(files, 1000, pattern="llama3", special_tokens=ROLES)


def hub_cache(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A cache as huggingface_hub lays it out."""
    repository = folder / repo_folder_name(repo_id=name, repo_type="model")
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file, text in files.items():
        (snapshot / file).write_text(text, "utf-8")
    return folder


# ── by name ──


def test_a_name_is_found_in_the_hubs_cache(chat_like: Tokenizer, tmp_path: Path):
    cache = hub_cache(tmp_path, "owner/name", {"tokenizer.json": chat_like.to_json()})
    assert Tokenizer.from_pretrained("owner/name", cache_dir=cache, local_files_only=True) == chat_like


def test_a_repository_with_vocab_and_merges_is_read(gpt2_folder: Path, gpt2: Tokenizer, tmp_path: Path):
    files = {name: (gpt2_folder / name).read_text("utf-8") for name in ("vocab.json", "merges.txt")}
    cache = hub_cache(tmp_path, "owner/old", files)
    assert Tokenizer.from_pretrained("owner/old", cache_dir=cache, local_files_only=True) == gpt2


def test_a_path_needs_no_hub(chat_like: Tokenizer, tmp_path: Path):
    chat_like.save_pretrained(tmp_path / "own")
    assert Tokenizer.from_pretrained(tmp_path / "own") == chat_like
    assert Tokenizer.from_pretrained(str(tmp_path / "own" / "tokenizer.json")) == chat_like


def test_a_name_that_is_nowhere_is_an_error_with_a_hint(tmp_path: Path):
    with pytest.raises(OSError, match=r"'owner/none'.*not in the local cache; hint: check the name and the network"):
        Tokenizer.from_pretrained("owner/none", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(ValueError, match="expected a repository like owner/name"):
        Tokenizer.from_pretrained("no/such/folder", cache_dir=tmp_path, local_files_only=True)


def test_tiktokens_names_come_from_its_cache(gpt2_like: Tokenizer, test_data: Path, tmp_path: Path, monkeypatch):
    import gzip

    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    ranks = gzip.decompress((test_data / "cl100k_base.tiktoken.gz").read_bytes())
    (tmp_path / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()).write_bytes(ranks)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tok = Tokenizer.from_tiktoken("gpt-4")
    assert (tok.pattern, tok.vocab_size, tok.eot_id) == ("cl100k_base", 100_277, 100_257)
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(ranks)
    assert Tokenizer.from_file(path) == tok
    with pytest.raises(ValueError, match=r"expected one of .*o200k_base.* or a model's name, got 'gpt-none'"):
        Tokenizer.from_tiktoken("gpt-none")


def test_without_the_libraries_the_error_says_what_to_install():
    code = """
        import sys
        sys.modules["huggingface_hub"] = sys.modules["tiktoken"] = None  # as if they were not installed
        import gptrs
        for call, name in ((gptrs.Tokenizer.from_pretrained, "a/b"), (gptrs.Tokenizer.from_tiktoken, "gpt2")):
            try:
                call(name)
            except ImportError as error:
                print(error)
    """
    code = "\n".join(line.strip() if not line.startswith(" " * 12) else line[8:] for line in code.splitlines())
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "hint: pip install huggingface_hub" in out and "hint: pip install tiktoken" in out


def test_neither_library_is_loaded_before_it_is_needed():
    code = "import gptrs, sys; gptrs.Tokenizer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"huggingface_hub", "tiktoken", "transformers", "tokenizers"}.isdisjoint(loaded)


# ── folders for transformers ──


def test_transformers_loads_the_folder_with_its_chat_template(chat_like: Tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    chat_like.save_pretrained(folder, chat_template=CHAT, model_max_length=512, pad_token=END)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.is_fast and len(loaded) == chat_like.vocab_size and loaded.model_max_length == 512
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|endoftext|>", "<|endoftext|>", None)
    for text in ("hello world  ", "déjà 友情 1234\n", "<|user|>x<|endoftext|>"):
        ids = loaded(text)["input_ids"]
        assert ids == chat_like.encode(text, allowed_special="all")
        assert loaded.decode(ids, clean_up_tokenization_spaces=False) == text
    for prompt in (True, False):
        expected = "".join(f"<|{m['role']}|>{m['content']}<|endoftext|>" for m in MESSAGES) + "<|assistant|>" * prompt
        text = loaded.apply_chat_template(MESSAGES, add_generation_prompt=prompt, tokenize=False)
        assert text == expected
        ids = loaded.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=False)
        assert ids == chat_like.encode(expected, allowed_special="all")
    assert Tokenizer.from_pretrained(folder) == chat_like


def test_the_folder_names_the_tokens_of_its_template(chat_like: Tokenizer, tmp_path: Path):
    file = json.loads(chat_like.to_json())
    begin = {"SpecialToken": {"id": "<|user|>", "type_id": 0}}
    own = {"id": "<|user|>", "ids": [chat_like.special_tokens["<|user|>"]], "tokens": ["<|user|>"]}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text],
        "special_tokens": {"<|user|>": own},
    }
    Tokenizer.from_json(json.dumps(file)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (config["bos_token"], config["eos_token"]) == ("<|user|>", "<|endoftext|>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_folder_keeps_no_template_of_an_earlier_tokenizer(chat_like: Tokenizer, tmp_path: Path):
    chat_like.save_pretrained(tmp_path, chat_template=CHAT)
    (tmp_path / "notes.md").write_text("mine")
    chat_like.save_pretrained(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"notes.md", "tokenizer.json", "tokenizer_config.json"} <= left and "chat_template.jinja" not in left
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template is None


def test_a_token_that_is_not_there_is_refused_before_a_file_is_written(chat_like: Tokenizer, tmp_path: Path):
    absent = "<pad>"
    with pytest.raises(ValueError, match="pad_token must be a special token of this tokenizer, got '<pad>'"):
        chat_like.save_pretrained(tmp_path / "x", pad_token=absent)
    assert list(tmp_path.iterdir()) == []


def test_merges_are_written_with_their_vocabulary(gpt2_like: Tokenizer, tmp_path: Path):
    gpt2_like.save(tmp_path / "merges.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    assert Tokenizer.from_file(tmp_path) == gpt2_like


def test_a_rank_file_of_any_vocabulary_reads_back(gpt2_like: Tokenizer, tmp_path: Path):
    path = tmp_path / "llama3.tiktoken"
    ranks = oracles.tiktoken_of(gpt2_like)._mergeable_ranks
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    tok = Tokenizer.from_file(path)
    assert tok.pattern == "llama3" and tok.special_tokens["<|begin_of_text|>"] == len(ranks)
    tok.save(tmp_path / "again.tiktoken")
    assert (tmp_path / "again.tiktoken").read_bytes() == path.read_bytes()
