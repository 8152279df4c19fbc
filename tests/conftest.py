"""What all tests share: an isolated environment, no network, tokenizers and checkpoints built here.

Nothing is downloaded. The environment is set before anything of Hugging Face is imported, since it
is read at import; that is why some imports below stand after code.
"""

import copy
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

HOME = Path(tempfile.mkdtemp(prefix="selectit-tests-"))
FOREIGN = ("SELECTIT_", "HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

for variable in [name for name in os.environ if name.upper().startswith(FOREIGN)]:
    del os.environ[variable]
os.environ |= {
    "HF_HOME": str(HOME),
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "XDG_STATE_HOME": str(HOME / "state"),
}

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from tokenizers import (  # noqa: E402
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from selectit_hf.rating.engine.engine import Engine  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["command"]

torch.set_num_threads(1)
settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


# No network

ATTEMPTS: list[str] = []


def is_local(host: object) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse(what: str) -> None:
    ATTEMPTS.append(what)
    pytest.fail(f"A test reached for the network: {what}")


def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            refuse(f"{original.__name__} to {address}")
        return original(self, address)

    return connect


@pytest.fixture(scope="session", autouse=True)
def socket_guard() -> Iterator[None]:
    """Only loopback and unix sockets connect, and only local names are looked up."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not is_local(name):
            refuse(f"getaddrinfo of {name!r}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        for method in ("connect", "connect_ex"):
            patch.setattr(socket.socket, method, guarded(getattr(socket.socket, method)))
        yield


@pytest.fixture(autouse=True)
def no_network(socket_guard: None) -> Iterator[None]:
    """Fail a test that reached for the network, even where its code swallowed the refusal."""
    ATTEMPTS.clear()
    yield
    assert not ATTEMPTS, f"A test reached for the network: {ATTEMPTS}"


@pytest.fixture(autouse=True)
def empty_memory() -> None:
    """``memory://`` holds nothing of an earlier test: it is one store for the whole process."""
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def empty_state() -> None:
    """No test knows where an earlier one had its files."""
    shutil.rmtree(HOME / "state", ignore_errors=True)


# Tokenizers

TEXTS = [
    "Rate how well the response carries out the instruction, from 1 to 5.",
    "Read the instruction and the response, and judge the quality with a whole number.",
    "Instruction:Name three colours of the rainbow, and say which one is the warmest.",
    "Response:Red, orange and violet; the warmest of them is red.",
    "The answer is: 1 2 3 4 5 6 7 8 9 10 11 12 12 12 99 99 100 100 1999 2024 2024",
    "A quick brown fox jumps over the lazy dog; what number does the answer deserve?",
    "(a) [b] {c} <d> e/f g_h i=j k*l m-n \"o\" 'p' q! r% s& t+ u# v@ w$ x~ y^ z| `A` B\\C",
    "DEFGHIJKLMNOPQSUVWXYZ 0 1 2 3 4 5 6 7 8 9",
]


def wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def around(tokenizer: Tokenizer, single: str, *tokens: str) -> None:
    """Let the tokenizer put special tokens around a text, as in ``"<s> $A"``."""
    ids = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def byte_level(
    splits: pre_tokenizers.PreTokenizer, special: list[str], texts: list[str], size: int
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splits
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_bpe_split() -> PreTrainedTokenizerBase:
    """Byte-level BPE, one token a digit, a BOS before each text (as Llama-3)."""
    splits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer = byte_level(splits, ["<|begin|>", "<|end|>"], TEXTS * 2, 400)
    around(tokenizer, "<|begin|> $A", "<|begin|>")
    return wrapped(tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


def build_bpe_merge() -> PreTrainedTokenizerBase:
    """Byte-level BPE with tokens for numbers, nothing added to a text (as GPT-2)."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(False), ["<|endoftext|>"], TEXTS * 2, 420)
    return wrapped(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def build_sentencepiece() -> PreTrainedTokenizerBase:
    """BPE on metaspaced text with byte fallback and a BOS (as Llama-2); newlines are bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=250, show_progress=False)
    trained.train_from_iterator(TEXTS * 2, trainer)
    learned = models_json(trained)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(merge) for merge in learned["merges"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    around(tokenizer, "<s> $A", "<s>")
    return wrapped(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def models_json(tokenizer: Tokenizer) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def build_unigram() -> PreTrainedTokenizerBase:
    """Unigram on metaspaced text, an EOS behind each text (as T5)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[*"0123456789\n"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.Metaspace()
    around(tokenizer, "$A </s>", "</s>")
    return wrapped(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_wordpiece() -> PreTrainedTokenizerBase:
    """WordPiece with ``[CLS]`` before and ``[SEP]`` behind each text (as BERT)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    tokenizer.decoder = decoders.WordPiece()
    around(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")
    return wrapped(
        tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


BUILDERS = {
    "bpe_split": build_bpe_split,
    "bpe_merge": build_bpe_merge,
    "sentencepiece": build_sentencepiece,
    "unigram": build_unigram,
    "wordpiece": build_wordpiece,
}


@pytest.fixture(scope="session")
def built_tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {kind: build() for kind, build in BUILDERS.items()}


@pytest.fixture
def bpe_split(built_tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return copy.deepcopy(built_tokenizers["bpe_split"])


@pytest.fixture
def bpe_merge(built_tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return copy.deepcopy(built_tokenizers["bpe_merge"])


@pytest.fixture
def sentencepiece(built_tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return copy.deepcopy(built_tokenizers["sentencepiece"])


@pytest.fixture
def unigram(built_tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return copy.deepcopy(built_tokenizers["unigram"])


@pytest.fixture
def wordpiece(built_tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return copy.deepcopy(built_tokenizers["wordpiece"])


@pytest.fixture(params=BUILDERS)
def tokenizer(
    request: pytest.FixtureRequest, built_tokenizers: dict[str, PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """Each of the five kinds in turn."""
    return copy.deepcopy(built_tokenizers[request.param])


# Checkpoints


@pytest.fixture(scope="session")
def make_checkpoint(
    built_tokenizers: dict[str, PreTrainedTokenizerBase],
) -> Callable[..., Path]:
    """``make_checkpoint(folder, seed=0, hidden_size=32, layers=2, **config)`` saves a random Llama.

    ``kind`` chooses its tokenizer; further arguments go to `LlamaConfig`.
    """

    def make(
        folder: Path,
        *,
        seed: int = 0,
        hidden_size: int = 32,
        layers: int = 2,
        kind: str = "bpe_split",
        **config: Any,
    ) -> Path:
        tokenizer = built_tokenizers[kind]
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        } | config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**settings))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny random Llama with a digit-splitting tokenizer; not to be written to."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "random-llama")


# Data for development


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real rows, rating prompts and a real vocabulary, which are no part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder.relative_to(ROOT.parent)} is not beside the repository")
    return folder


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each call of `Engine.span_logprobs` reads."""
    counted: list[int] = []
    span_logprobs = Engine.span_logprobs

    def watched(self: Engine, ids: Any, starts: Any, progress: Any = None) -> Any:
        counted.append(len(ids))
        return span_logprobs(self, ids, starts, progress)

    monkeypatch.setattr(Engine, "span_logprobs", watched)
    return counted
