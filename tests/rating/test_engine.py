"""The engine against one plain forward pass for each sequence, and its failures."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import COMMON, READ, SIZES, VOCABULARY
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from selectit_hf.errors import ModelError, SettingError
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.rating.engine.forward import Forward
from selectit_hf.rating.engine.tally import Tally
from selectit_hf.rating.engine.verification import (
    STRATEGIES,
    Batch,
    agree,
    batches_of,
    witnesses,
)
from selectit_hf.rating.models import loading
from selectit_hf.rating.models.loading import (
    budget_in,
    choose_device,
    choose_dtype,
    fitting_budget,
    load_model,
)


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**COMMON, **SIZES))


def gpt2() -> PreTrainedModel:
    """Learned positions: a padding that shifts them shows."""
    config = GPT2Config(**COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=256)
    return GPT2LMHeadModel(config)


def gemma2() -> PreTrainedModel:
    """Softcapped logits and sliding windows: a head read by hand is wrong."""
    config = Gemma2Config(
        **COMMON, **SIZES, head_dim=8, sliding_window=32, final_logit_softcapping=0.05
    )
    return Gemma2ForCausalLM(config)


@pytest.fixture(params=[llama, gpt2, gemma2], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(5)
    made: PreTrainedModel = request.param().eval()
    return made


def sequences(count: int = 23, seed: int = 1) -> list[list[int]]:
    numbers = random.Random(seed)
    return [
        [numbers.randrange(3, VOCABULARY) for _ in range(numbers.randint(1, 90))]
        for _ in range(count)
    ]


@torch.no_grad()
def one_by_one(model: PreTrainedModel, ids: list[list[int]], read: Sequence[int]) -> np.ndarray:
    """A whole forward pass for each sequence alone, and a float32 log-softmax at its end."""
    found = []
    for row in ids:
        logits = model(input_ids=torch.tensor([row])).logits[0, -1].float()
        found.append([float(torch.log_softmax(logits, dim=-1)[i]) for i in read])
    return np.array(found)


@pytest.mark.parametrize("budget", [1, 90, 333, 10_000])
def test_batches_change_nothing(model: PreTrainedModel, budget: int) -> None:
    ids = sequences()
    values, oom, splits, _ = Engine(model, budget).next_token_logprobs(ids, READ)
    assert values.dtype == np.float32
    assert not oom.any()
    assert splits == 0
    np.testing.assert_allclose(values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)


def test_row_order_changes_nothing(model: PreTrainedModel) -> None:
    ids = sequences()
    order = random.Random(2).sample(range(len(ids)), len(ids))
    engine = Engine(model, 300)
    straight = engine.next_token_logprobs(ids, READ).values
    shuffled = engine.next_token_logprobs([ids[i] for i in order], READ).values
    np.testing.assert_allclose(shuffled, straight[order], rtol=0, atol=1e-4)


def test_same_batches_same_bits(model: PreTrainedModel) -> None:
    ids = sequences()
    first = Engine(model, 300).next_token_logprobs(ids, READ).values
    again = Engine(model, 300).next_token_logprobs(ids, READ).values
    assert first.tobytes() == again.tobytes()


def test_the_probabilities_are_over_the_whole_vocabulary(model: PreTrainedModel) -> None:
    values = Engine(model).next_token_logprobs(sequences(3), range(VOCABULARY)).values
    np.testing.assert_allclose(np.exp(values).sum(axis=1), 1, atol=1e-4)


def test_the_head_of_a_16_bit_model_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    model = llama().to(torch.bfloat16).eval()
    hidden: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: hidden.append(args[0])
    )
    ids = sequences(4)
    values = (
        Engine(model, 10_000, shortcuts=False).next_token_logprobs(ids, range(VOCABULARY)).values
    )
    hook.remove()
    weight = model.get_output_embeddings().weight.double()
    states = hidden[0].double()
    order = sorted(range(4), key=lambda i: -len(ids[i]))
    expected = np.empty_like(values, dtype=np.float64)
    for place, row in enumerate(order):
        state = states[place, len(ids[row]) - 1] if states.shape[1] > 1 else states[place, 0]
        expected[row] = torch.log_softmax(weight @ state, dim=-1).detach().numpy()
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)


def test_the_hooks_are_gone_afterwards(model: PreTrainedModel) -> None:
    Engine(model).next_token_logprobs(sequences(2), READ)
    assert model(input_ids=torch.tensor([[4, 5, 6]])).logits.shape[1] == 3


def test_progress_counts_every_sequence(model: PreTrainedModel) -> None:
    told: list[int] = []
    Engine(model, 100).next_token_logprobs(sequences(), READ, told.append)
    assert sum(told) == len(sequences())
    assert len(told) > 1


def test_progress_counts_long_sequences_for_more() -> None:
    long, short = Batch({0: [1] * 8}, 8), Batch({1: [1], 2: [1]}, 1)
    tally = Tally(3, [long, short])
    done = [tally.done]
    for batch in (long, short):
        tally.add(batch, None)
        done.append(tally.done)
    assert done == [0, 2, 3]  # of 10 tokens: 0, 8 and 10


def test_rounding_in_sixteen_bits_grows_with_the_layers() -> None:
    """On an H100, batches of random 7B and 13B models were so far from plain passes in bfloat16."""
    for gap, width, layers in ((0.16, 4096, 32), (0.13, 5120, 40)):
        spread = 0.02 * width**0.5  # of logits from random weights
        found = np.array([gap, 0.0], np.float32)
        nothing = np.zeros(2, np.float32)
        assert agree(found, nothing, spread, "bfloat16", layers)
        assert not agree(found, nothing, spread, "bfloat16", 2)
        assert not agree(found, nothing, spread, "float16", layers)
        assert not agree(found, nothing, spread, "float32", layers)
        assert not agree(found / 100, nothing, spread, "float32", 10**6)


# Out of memory


class Scarce(Forward):
    """Memory for ``room`` rows, and never for a row with the id 7 in front."""

    room = 2
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def logits(self, batch: Batch, *others: Any) -> Any:
        if len(batch.ids) > self.room or any(row[0] == 7 for row in batch.ids.values()):
            raise self.error
        self.lengths = {*getattr(self, "lengths", set()), batch.length}
        return super().logits(batch, *others)


def engine_of(forward: Forward, shortcuts: bool = False) -> Engine:
    """An engine whose forward passes are those."""
    engine = Engine(forward.model, 10_000, shortcuts)
    engine._forward = forward
    return engine


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:40],
)
def test_a_batch_out_of_memory_is_halved(model: PreTrainedModel, error: Exception) -> None:
    ids = [[5, *row] for row in sequences()]
    scarce = Scarce(model)
    scarce.error = error
    values, oom, splits, _ = engine_of(scarce).next_token_logprobs(ids, READ)
    np.testing.assert_allclose(values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)
    assert not oom.any()
    assert splits > 0
    assert scarce.lengths == {max(map(len, ids))}  # halves keep the batch's padded length


def test_a_row_that_never_fits_leaves_its_neighbours_alone(model: PreTrainedModel) -> None:
    ids = [[7 if i == 4 else 5, *row] for i, row in enumerate(sequences())]
    values, oom, _, _ = engine_of(Scarce(model)).next_token_logprobs(ids, READ)
    assert oom.tolist() == [i == 4 for i in range(len(ids))]
    assert np.isnan(values[4]).all()
    others = ~oom
    expected = one_by_one(model, ids, READ)[others]
    np.testing.assert_allclose(values[others], expected, rtol=0, atol=1e-4)


class Narrow(Forward):
    """Memory for so many tokens, padding included."""

    room = 70

    def logits(self, batch: Batch, *others: Any) -> Any:
        if len(batch.ids) * batch.length > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().logits(batch, *others)


def test_a_row_alone_is_tried_without_padding_before_it_is_given_up(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [list(range(3, 3 + n)) for n in (80, 70, 31)]
    told: list[int] = []
    engine = engine_of(Narrow(model))
    values, oom, splits, _ = engine.next_token_logprobs(ids, READ, told.append)
    assert oom.tolist() == [True, False, False]
    np.testing.assert_allclose(values[1:], one_by_one(model, ids[1:], READ), rtol=0, atol=1e-4)
    assert splits == 4  # twice halved, two rows without padding
    assert sum(told) == 3
    assert "Out of memory with 1 x 80 tokens; 31 without padding." in caplog.text
    assert "A sequence of 80 tokens does not fit in memory." in caplog.text
    spans = engine.span_logprobs(ids, [1, 1, 1])
    assert spans.oom.tolist() == [True, False, False]
    assert spans.values[2, 0] == pytest.approx(span_by_hand(model, ids[2], 1), abs=1e-3)


class Forgets(Forward):
    """No memory to keep the keys and values of one prefix."""

    def record(self, ids: Sequence[int]) -> Any:
        if list(ids) == list(PREFIXES[1]):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().record(ids)


def test_a_prefix_that_cannot_be_kept_is_computed_with_each_row(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(5)
    model = llama().eval()
    ids = begun()
    engine = engine_of(Forgets(model), shortcuts=True)
    values, oom, splits, _ = engine.next_token_logprobs(ids, READ, prefixes=PREFIXES)
    assert not oom.any()
    assert splits == 1
    assert "Out of memory with a shared prefix of 7 tokens; not shared." in caplog.text
    np.testing.assert_allclose(values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)


class Cramped(Forward):
    """No memory for plain passes."""

    def plain_logprobs(self, ids: Sequence[int], last: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_comparison_that_memory_forbids_is_left_out_and_said(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    ids = sequences()
    read = engine_of(Cramped(model)).next_token_logprobs(ids, READ)
    assert read.reading.way == "one sequence at a time"
    assert read.reading.compared == 0
    assert 0 < read.splits < caplog.text.count("not compared")
    assert "no plain forward pass to compare with fits in memory" in caplog.text
    np.testing.assert_allclose(read.values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_an_error_of_every_way_is_not_swallowed(model: PreTrainedModel, shortcuts: bool) -> None:
    scarce = Scarce(model)
    scarce.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    ids = [[7, 5, 3], [7, 5, 4]]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine_of(scarce, shortcuts).next_token_logprobs(ids, READ)


# Ways


class Wrong(Forward):
    """Computes well only by some ways: another may be off, or fail."""

    def __init__(self, model: PreTrainedModel, wrong: Callable[[Batch, Any], bool]) -> None:
        super().__init__(model)
        self.wrong = wrong
        self.error: Exception | None = None

    def last_logits(self, batch: Batch, mlp: Any = None) -> Any:
        logits = super().last_logits(batch, mlp)
        if not self.wrong(batch, mlp):
            return logits
        if self.error is not None:
            raise self.error
        logits[:, READ[1]] += 0.05
        return logits


BREAKS: dict[str, Callable[[Batch, Any], bool]] = {
    "shared prefix, last MLP at one position": lambda batch, mlp: False,
    "shared prefix": lambda batch, mlp: mlp is not None,
    "padded batches": lambda batch, mlp: batch.prefix is not None or mlp is not None,
    "batches of one length": lambda batch, mlp: any(
        len(row) < batch.length or batch.prefix or mlp for row in batch.ids.values()
    ),
    "one sequence at a time": lambda batch, mlp: bool(len(batch.ids) > 1 or batch.prefix or mlp),
}


@pytest.mark.parametrize("error", [None, IndexError("out of range"), ValueError("no mask")])
@pytest.mark.parametrize("way", BREAKS)
def test_the_first_way_that_agrees_with_plain_passes_is_taken(
    way: str, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    model = llama().eval()
    wrong = Wrong(model, BREAKS[way])
    wrong.error = error
    ids = begun(30) + begun(30)
    told: list[int] = []
    read = engine_of(wrong, shortcuts=True).next_token_logprobs(ids, READ, told.append, PREFIXES)
    assert read.reading.way == way
    assert 2 <= read.reading.compared <= 8
    assert read.reading.gap < 1e-4
    assert sum(told) == len(ids)
    np.testing.assert_allclose(read.values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)
    said = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert len(said) == (way != next(iter(BREAKS)))


def test_what_no_way_computes_alike_is_refused(model: PreTrainedModel) -> None:
    wrong = Wrong(model, lambda batch, mlp: True)
    with pytest.raises(
        ModelError, match=r"differ from those of a plain forward pass by 0\.0.*use another"
    ):
        engine_of(wrong).next_token_logprobs(sequences(), READ)


def test_the_most_padded_sequence_is_among_the_compared(model: PreTrainedModel) -> None:
    ids = [[5] * n for n in (60, 60, 58, 57, 30, 21, 20, 20, 20, 20, 20, 19, 19, 19, 7)]
    batches = batches_of(ids, {}, STRATEGIES[2], 240, None)
    chosen = witnesses(ids, batches)
    padding = {i: b.length - len(row) for b in batches for i, row in b.ids.items()}
    assert len(padding) == len(ids)
    assert {len(ids[i]) for i in chosen} >= {60, 20, 7}
    assert max(padding.values()) == max(padding[i] for i in chosen) > 0


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that a wrong position shows."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[-1] ** 0.5)
    return model


def dynamic() -> PreTrainedModel:
    """Rotary embeddings that grow with the longest sequence they have met."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    sizes = {**SIZES, "max_position_embeddings": 24}
    return LlamaForCausalLM(LlamaConfig(**COMMON, **sizes, rope_parameters=rope))


def longrope() -> PreTrainedModel:
    """Rotary embeddings of two kinds, by the longest sequence of the batch."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 24,
    }  # fmt: skip
    config = Phi3Config(
        **COMMON, **SIZES, pad_token_id=0, original_max_position_embeddings=24,
        sliding_window=None, rope_parameters=rope,
    )  # fmt: skip
    return Phi3ForCausalLM(config)


@pytest.mark.parametrize("budget", [1, 100, 10_000])
@pytest.mark.parametrize("make", [dynamic, longrope])
def test_rope_that_depends_on_the_length(make: Callable[[], PreTrainedModel], budget: int) -> None:
    torch.manual_seed(5)
    model = spread(make()).eval()
    ids = begun()
    assert min(map(len, ids)) < 24 < max(map(len, ids))
    expected = []
    for row in ids:  # a model that has met nothing else
        model(input_ids=torch.tensor([[1]]))
        expected.append(one_by_one(model, [row], READ)[0])
    read = Engine(model, budget).next_token_logprobs(ids, READ, prefixes=PREFIXES)
    np.testing.assert_allclose(read.values, expected, rtol=0, atol=1e-4)
    assert read.reading.way == "shared prefix, last MLP at one position"


# Loading


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    LlamaModel(LlamaConfig(**COMMON, **SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 weights, 'lm_head.weight'"):
        load_model(str(tmp_path), "float32", "cpu")


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertLMHeadModel(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not causal"):
        load_model(str(tmp_path), "float32", "cpu")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = llama()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(tmp_path), "float32", "cpu")


@pytest.mark.parametrize("damage", ["cut off", "of other sizes"])
def test_weights_that_cannot_be_read_are_an_error_of_the_model(tmp_path: Path, damage: str) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        LlamaConfig(**COMMON, **{**SIZES, "intermediate_size": 32}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the weights cannot be loaded"):
        load_model(str(tmp_path), "float32", "cpu")


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224 MiB\nMore lines.")


def out_of(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **others: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("step", ["from_pretrained", "to", "forward"])
@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_memory_that_runs_out_while_loading_says_what_helps(
    tmp_path: Path, step: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama().save_pretrained(tmp_path)
    owner = AutoModelForCausalLM if step == "from_pretrained" else LlamaForCausalLM
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda model, device: model)
    monkeypatch.setattr(owner, step, out_of(NO_MEMORY))
    says = rf"memory of {device} \(CUDA out of memory\. Tried to allocate 224 MiB\)\. Use "
    with pytest.raises(ModelError, match=says) as caught:
        load_model(str(tmp_path), "float32", device)
    assert "--dtype bfloat16" in str(caught.value)
    assert "fewer --workers" in str(caught.value)
    assert ("--device-map auto" in str(caught.value)) == (device == "cuda:0")


def test_spread_over_all_gpus_they_are_what_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "places", lambda *args, **others: {"": 0})
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", out_of(NO_MEMORY))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match="memory of the 2 visible GPUs") as caught:
        load_model(str(tmp_path), "float32", "cuda:0", "auto")
    assert "--device-map" not in str(caught.value)


def test_another_error_while_loading_is_not_one_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama().save_pretrained(tmp_path)
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(LlamaForCausalLM, "to", out_of(broken))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        load_model(str(tmp_path), "float32", "cpu")


def test_a_gpu_without_memory_to_plan_with_is_an_error_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = out_of(RuntimeError("CUDA error: out of memory"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    with pytest.raises(ModelError, match="memory of cuda:0"):
        fitting_budget(LlamaConfig(**COMMON, **SIZES), "float32", "cuda:0")


def test_the_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "bfloat16", "cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not loaded.training


def test_parameters_are_counted_once() -> None:
    tied = LlamaForCausalLM(LlamaConfig(**COMMON, **SIZES, tie_word_embeddings=True))
    separate = llama()
    head = VOCABULARY * SIZES["hidden_size"]
    assert Engine(separate).parameters - Engine(tied).parameters == head


def test_devices_and_dtypes() -> None:
    assert choose_dtype(None, "cuda:1") == "bfloat16"
    assert choose_dtype(None, "cpu") == "float32"
    with pytest.raises(SettingError, match="float64"):
        choose_dtype("float64", "cpu")
    with pytest.raises(SettingError, match="gpu"):
        choose_device("gpu")
    with pytest.raises(SettingError, match="cuda:99"):
        choose_device("cuda:99")


def test_a_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = [None, 0, 1, 2, 3]
    devices = [choose_device(None, rank) for rank in ranks]
    assert devices == ["cuda:0", "cuda:0", "cuda:1", "cuda:0", "cuda:1"]


# Spans


@torch.no_grad()
def span_by_hand(model: PreTrainedModel, row: list[int], start: int) -> float:
    """The sum over a span, one token and one whole forward pass at a time."""
    total = 0.0
    for position in range(start, len(row)):
        logits = model(input_ids=torch.tensor([row[:position]])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, dim=-1)[row[position]])
    return total


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_spans_equal_a_loop_over_their_tokens(model: PreTrainedModel, budget: int) -> None:
    numbers = random.Random(3)
    ids = [row for row in sequences(12) if len(row) > 1]
    starts = [numbers.randint(1, len(row)) for row in ids]
    starts[0], starts[1] = 1, len(ids[1])
    found = Engine(model, budget).span_logprobs(ids, starts)
    literal = [span_by_hand(model, row, start) for row, start in zip(ids, starts, strict=True)]
    assert found.values.shape == (len(ids), 1)
    np.testing.assert_allclose(found.values[:, 0], literal, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("start", [0, 4])
def test_a_span_outside_its_sequence_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match=r"starts\[0\]"):
        Engine(llama()).span_logprobs([[5, 6, 7]], [start])


# Shortcuts

PREFIXES = ([9, 8, 7, 6, 5], [9, 8, 7, 4, 4, 4, 3])


def mistral() -> PreTrainedModel:
    """A sliding window: beyond it a sequence is computed whole."""
    return MistralForCausalLM(MistralConfig(**COMMON, **SIZES, sliding_window=40))


def neox() -> PreTrainedModel:
    """Attention and MLP side by side."""
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, **sizes))


def bloom() -> PreTrainedModel:
    """Attention of its own kind."""
    return BloomForCausalLM(BloomConfig(**COMMON, hidden_size=32, n_layer=3, n_head=4))


def mamba() -> PreTrainedModel:
    """No attention."""
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    return MambaForCausalLM(config)


def smaller(config: type[PretrainedConfig], **more: Any) -> Callable[[], PreTrainedModel]:
    """A small random model of the architecture of ``config``."""
    return lambda: AutoModelForCausalLM.from_config(config(**COMMON, **{**SIZES, **more}))


SHARING = {
    "qwen2": smaller(Qwen2Config),
    "qwen3": smaller(Qwen3Config, head_dim=8),
    "gemma3": smaller(Gemma3TextConfig, head_dim=8, sliding_window=256),
    "phi": smaller(PhiConfig),
    "mixtral": smaller(MixtralConfig, num_local_experts=4),
    "olmo": smaller(OlmoConfig),
    "olmo2": smaller(Olmo2Config),
    "cohere": smaller(CohereConfig),
    "granite": smaller(GraniteConfig),
    "opt": smaller(OPTConfig, ffn_dim=64, word_embed_proj_dim=32),
    "deepseek_v3": smaller(
        DeepseekV3Config, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARING)
def test_other_architectures_share_and_stay_the_same(name: str) -> None:
    torch.manual_seed(5)
    model = SHARING[name]().eval()
    ids = begun(9)
    engine = Engine(model, 333)
    found = engine.next_token_logprobs(ids, READ, prefixes=PREFIXES)
    np.testing.assert_allclose(found.values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)
    assert found.reading.way.startswith("shared prefix")
    assert ways_tokens(model, Engine(model, 1), ids) < sum(map(len, ids))


def begun(count: int = 23) -> list[list[int]]:
    """Sequences of which two thirds begin with one of `PREFIXES`; one is nothing else."""
    rows = sequences(count)
    ids = [[*([], *PREFIXES)[i % 3], *row] for i, row in enumerate(rows)]
    return [*ids, list(PREFIXES[0])]


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, mistral, neox, bloom, mamba])
@pytest.mark.parametrize("budget", [1, 333])
def test_a_shared_prefix_changes_nothing(make: Callable[[], PreTrainedModel], budget: int) -> None:
    torch.manual_seed(5)
    model = make().eval()
    before = model.config._attn_implementation
    ids = begun()
    found = Engine(model, budget).next_token_logprobs(ids, READ, prefixes=PREFIXES)
    np.testing.assert_allclose(found.values, one_by_one(model, ids, READ), rtol=0, atol=1e-4)
    assert model.config._attn_implementation == before


def tokens_seen(model: PreTrainedModel, work: Callable[[], Any]) -> int:
    """Tokens that go through the model's embedding."""
    seen: list[int] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda m, args: seen.append(args[0].numel()))
    work()
    hook.remove()
    return sum(seen)


def ways_tokens(model: PreTrainedModel, engine: Engine, ids: list[list[int]]) -> int:
    """Tokens that go through the model in the way that counts, comparisons left out."""
    reading = engine.next_token_logprobs(ids, READ, prefixes=PREFIXES).reading
    engine._ways = [way for way in STRATEGIES if way.name == reading.way]
    engine._compare = lambda chosen, task, tally: setattr(tally, "compared", 1)  # type: ignore
    return tokens_seen(model, lambda: engine.next_token_logprobs(ids, READ, prefixes=PREFIXES))


@pytest.mark.parametrize(
    ("make", "shares"), [(llama, True), (gpt2, True), (neox, True), (gemma2, False), (bloom, False)]
)
def test_a_prefix_is_computed_once_where_that_is_exact(
    make: Callable[[], PreTrainedModel], shares: bool
) -> None:
    torch.manual_seed(5)
    model = make().eval()
    ids = [[*PREFIXES[0], *row] for row in sequences(30)]
    engine = Engine(model, 1)  # every sequence alone: no padding
    whole, prefix = sum(map(len, ids)), len(PREFIXES[0])
    found = ways_tokens(model, engine, ids)
    assert found == ((whole - (len(ids) - 1) * prefix) if shares else whole)


def test_beyond_a_sliding_window_nothing_is_shared() -> None:
    torch.manual_seed(5)
    model = mistral().eval()
    longer = [[*PREFIXES[0], *range(3, 3 + n)] for n in (36, 37, 50)]
    fits = [[*PREFIXES[0], *range(3, 3 + n)] for n in (35, 20, 3)]
    for ids, saved in ((fits, 2 * len(PREFIXES[0])), (longer, -len(PREFIXES[0]))):
        assert ways_tokens(model, Engine(model, 1), ids) == sum(map(len, ids)) - saved


class Forgetful(LlamaForCausalLM):
    """Takes positions and does not use them."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("layers", [SIZES["num_hidden_layers"], 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_its_positions_shares_nothing(
    dtype: torch.dtype, layers: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    sizes = SIZES | {"num_hidden_layers": layers}
    model = spread(Forgetful(LlamaConfig(**COMMON, **sizes))).to(dtype).eval()
    with caplog.at_level("INFO"):
        found = Engine(model, 333).next_token_logprobs(begun(), READ, prefixes=PREFIXES)
    assert found.reading.way == "padded batches"
    assert (
        "read as padded batches; shared prefix failed: Forgetful gives a sequence of" in caplog.text
    )
    plain = Engine(model, 333, shortcuts=False).next_token_logprobs(begun(), READ)
    np.testing.assert_array_equal(found.values, plain.values)


def test_the_last_mlp_sees_one_position_of_each_row() -> None:
    torch.manual_seed(5)
    model = llama().eval()
    engine = Engine(model, 10_000)
    ids = sequences(6)
    shapes: list[tuple[int, ...]] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape[:2])))
    engine.next_token_logprobs(ids, READ)
    longest = max(map(len, ids))
    assert shapes[:3] == [(6, longest), (6, longest), (6, 1)]  # then come the plain passes


# Memory


@pytest.mark.parametrize("gigabytes", [0, 1, 8, 60])
def test_the_budget_is_a_power_of_two_that_fits_the_room(gigabytes: int) -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    room = gigabytes * 10**9
    tokens = budget_in(room, config, itemsize=2)
    held = 2 * (12 * 4096 + 4 * 11008)  # bytes of a token in bfloat16
    assert tokens in {2**i for i in range(10, 16)}
    assert tokens == 1024 or tokens * held <= room / 2
    assert tokens == 32768 or 2 * tokens * held > room / 2


def test_on_the_cpu_the_budget_needs_no_memory_to_be_known() -> None:
    assert fitting_budget(LlamaConfig(), "float32", "cpu") == 1024


# Models whose numbers are of another size


def literal_next(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Of a model of float32, in which every call begins anew."""
    with torch.inference_mode():
        logits = [model(torch.tensor([list(row)])).logits[0, -1].double() for row in ids]
    return torch.stack(logits).log_softmax(-1)[:, list(READ)].numpy()


def random_rows(*lengths: int) -> list[list[int]]:
    chance = random.Random(5)
    return [[chance.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_far_from_zero_are_compared_as_finely(dtype: torch.dtype) -> None:
    """GPT-2 has its logits at about -100, where those of 16 bits are 0.5 or 0.06 apart."""
    torch.manual_seed(0)
    model = llama()
    head = torch.nn.Linear(SIZES["hidden_size"], VOCABULARY)
    torch.nn.init.normal_(head.weight, std=0.5)
    torch.nn.init.constant_(head.bias, -100.0)
    model.lm_head = head
    model = model.to(dtype).eval()
    ids = random_rows(30, 20, 10, 8, 7, 9, 11, 13)
    read = Engine(model).next_token_logprobs(ids, READ)
    assert read.reading.way == STRATEGIES[0].name
    expected = literal_next(model.float(), ids)
    np.testing.assert_allclose(read.values, expected, atol={torch.float16: 0.02}.get(dtype, 0.1))


def test_tokens_that_are_never_written_may_have_no_probability() -> None:
    torch.manual_seed(0)
    model = llama()
    model.lm_head = torch.nn.Linear(SIZES["hidden_size"], VOCABULARY)
    impossible = [token for token in range(VOCABULARY) if token % 3 and token not in READ[1:]]
    model.lm_head.bias.data[impossible] = -torch.inf
    model = model.eval()
    ids = random_rows(30, 20, 10, 8, 7)
    read = Engine(model).next_token_logprobs(ids, READ)
    assert read.reading.way == STRATEGIES[0].name
    assert read.reading.gap < 1e-4
    np.testing.assert_allclose(read.values, literal_next(model, ids), atol=1e-5)


def test_dynamic_rope_at_its_limit_forgets_a_longer_sequence() -> None:
    limit = 64
    config = LlamaConfig(
        **COMMON,
        **(SIZES | {"max_position_embeddings": limit}),
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    at_limit = random_rows(limit, limit)
    expected = literal_next(model, at_limit)
    engine = Engine(model)
    engine.next_token_logprobs(random_rows(100, 90), READ)
    read = engine.next_token_logprobs(at_limit, READ)
    np.testing.assert_allclose(read.values, expected, atol=1e-4)
