"""One model over several devices: where its layers go, and that nothing it says changes.

A machine without GPUs has one device to compute on, so this holds in two halves. Real values go
through accelerate's hooks, with every part on the CPU and with layers whose weights come from the
disk for each batch. Devices are told apart by labels: every tensor says one, and refuses to meet
a tensor of another. Both give the bits of the model on one device.
"""

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model, hooks
from datasets import Dataset
from datasets.fingerprint import Hasher
from small_models import COMMON, READ, SIZES, VOCABULARY
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
)

from selectit_hf import SentenceScore, TokenScore
from selectit_hf.errors import ModelError, SettingError
from selectit_hf.rating import mapping
from selectit_hf.rating.engine.engine import Engine
from selectit_hf.rating.engine.verification import STRATEGIES
from selectit_hf.rating.mapping import score
from selectit_hf.rating.models.loading import DEVICE_MAPS, budget_in, fitting_budget, load_model
from selectit_hf.selectors.perplexity import Perplexity

PREFIX = [9, 8, 7, 6, 5]
IDS = [[*PREFIX, *range(3, 3 + n)] for n in (41, 40, 22, 9, 1)] + [[20, 21, 22]]
CONFIGS = {
    "llama": LlamaConfig(**COMMON, **SIZES),
    "gpt2": GPT2Config(**COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "gemma2": Gemma2Config(**COMMON, **SIZES, head_dim=8, final_logit_softcapping=0.05),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(5)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype).eval()
    return model


def parts(model: PreTrainedModel) -> list[str]:
    """The names that a device map has: layers, and what stands beside them."""
    (layers,) = (n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    base = layers.partition(".")[0]
    beside = [f"{base}.{n}" for n, _ in model.get_submodule(base).named_children()]
    within = [f"{layers}.{n}" for n, _ in model.get_submodule(layers).named_children()]
    return [*(n for n in beside if n != layers), *within, "lm_head"]


# Values: through accelerate's hooks


@pytest.fixture(params=["all in memory", "two layers on the disk"])
def spread(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[PreTrainedModel], Any]:
    """Makes a copy of a model that accelerate computes."""

    def through_hooks(model: PreTrainedModel) -> Any:
        places = dict.fromkeys(parts(model), "cpu")
        if "disk" in request.param:
            layers = [name for name in places if name.rpartition(".")[2] in ("1", "2")]
            assert len(layers) == 2
            places |= dict.fromkeys(layers, "disk")
        made = dispatch_model(
            copy.deepcopy(model), places, offload_dir=tmp_path, force_hooks=True,
            skip_keys=model._skip_keys_device_placement,
        )  # fmt: skip
        assert any(p.device.type == "meta" for p in made.parameters()) == ("disk" in request.param)
        return made

    return through_hooks


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_change_no_value(
    name: str, dtype: torch.dtype, spread: Callable[[PreTrainedModel], Any]
) -> None:
    plain = make(name, dtype)
    engines = [Engine(plain, 100), Engine(spread(plain), 100)]
    rated = [one.next_token_logprobs(IDS, READ, prefixes=[PREFIX]) for one in engines]
    spans = [one.span_logprobs(IDS, [1] * len(IDS)) for one in engines]
    for one, other in (rated, spans):
        np.testing.assert_array_equal(one.values, other.values)
        assert np.isfinite(one.values).all()
    assert rated[0].reading.way == rated[1].reading.way
    if name == "llama" and dtype == torch.float32:
        assert rated[1].reading.way == STRATEGIES[0].name


# Devices: told apart

HERE, THERE = torch.device("cpu:0"), torch.device("cpu:1")


def where(tensor: torch.Tensor) -> torch.device:
    return getattr(tensor, "label", torch.device("cpu"))


class Labels(TorchFunctionMode):
    """Every tensor says a device of its own, and none meets a tensor of another device.

    All are computed on the CPU. As on GPUs, a number may come from the CPU, and so may an index.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return where(args[0])
        if func is torch.Tensor.to:
            asked = [*args[1:], kwargs.pop("device", None)]
            found = [one for one in asked if isinstance(one, (str, torch.device))]
            others = [one for one in args[1:] if one not in found]
            moved = func(args[0], *others, **kwargs).view_as(args[0])
            return self.label(moved, torch.device(found[0]) if found else where(args[0]))
        device = kwargs.pop("device", None)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        places = {where(one) for one in tensors if one.ndim}
        if func is torch.Tensor.__getitem__:
            places -= {torch.device("cpu")}
        if len(places) > 1:
            raise RuntimeError(f"{func} meets tensors on {places}")
        place = torch.device(device) if device is not None else next(iter(places), None)
        return tree_map(lambda one: self.label(one, place), func(*args, **kwargs))

    @staticmethod
    def label(one: Any, place: torch.device | None) -> Any:
        if isinstance(one, torch.Tensor) and place is not None:
            one.label = place  # type: ignore[attr-defined]
        return one


def on_two_devices(model: PreTrainedModel, head: torch.device) -> Any:
    """Embeddings and first layer on one device, the rest on the other; the head as said."""
    places = {
        part: THERE if part.rpartition(".")[2] in ("1", "2", "norm", "ln_f") else HERE
        for part in parts(model)
    }
    places |= {"lm_head": head}
    # A head that is tied to the embeddings has a copy where they are not.
    tied: Any = model.get_output_embeddings()
    tied.weight = torch.nn.Parameter(tied.weight.detach().clone(), requires_grad=False)
    for name, place in places.items():
        within = model.get_submodule(name)
        for weight in [*within.parameters(), *within.buffers()]:
            Labels.label(weight, place)
    # What dispatch_model does once the weights are there.
    hooks.attach_align_device_hook_on_blocks(
        model, {"": HERE, **places}, dict.fromkeys(places, False),
        skip_keys=model._skip_keys_device_placement,
    )  # fmt: skip
    return model


@pytest.mark.parametrize("head", [HERE, THERE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_devices_meet_only_where_they_may(
    name: str, dtype: torch.dtype, head: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "set_module_tensor_to_device", lambda *args, **others: None)
    plain = make(name, dtype)
    model = on_two_devices(copy.deepcopy(plain), head)
    with Labels():
        asked = Engine(model, 100)
        assert asked.device == HERE
        rated = asked.next_token_logprobs(IDS, READ, prefixes=[PREFIX])
        spans = asked.span_logprobs(IDS, [1] * len(IDS))
        if name != "gemma2":
            kept = [where(keys) for keys, _ in asked._forward.record(PREFIX).layers.values()]
            assert kept == [HERE, THERE, THERE]
    alone = Engine(plain, 100)
    expected = alone.next_token_logprobs(IDS, READ, prefixes=[PREFIX])
    np.testing.assert_array_equal(rated.values, expected.values)
    expected = alone.span_logprobs(IDS, [1] * len(IDS))
    np.testing.assert_array_equal(spans.values, expected.values)
    assert rated.reading.way.startswith("shared prefix") == (name != "gemma2")


def test_labels_do_not_mix() -> None:
    """Else the test above would say nothing."""
    with Labels():
        one, other = (torch.ones(3, device=device) for device in (HERE, THERE))
        assert where(one.to(THERE) + other) == THERE
        assert where(one) == HERE
        with pytest.raises(RuntimeError, match="meets tensors on"):
            one + other
        with pytest.raises(RuntimeError, match="meets tensors on"):
            one[torch.tensor([1], device=THERE)]


# Loading


@pytest.fixture
def saved(tmp_path: Path) -> str:
    make("llama").save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("device_map", DEVICE_MAPS)
def test_without_a_gpu_all_of_it_is_on_the_cpu(saved: str, device_map: str) -> None:
    models = [load_model(saved, "float32", "cpu", how) for how in (None, device_map)]
    assert {p.device.type for p in models[1].parameters()} == {"cpu"}
    assert not models[1].training
    values = [Engine(one, 100).next_token_logprobs(IDS, READ).values for one in models]
    np.testing.assert_array_equal(*values)


class Loaded(OSError):
    pass


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Where the parts of a model would have been loaded to; no weight is read."""
    maps: list[dict[str, Any]] = []

    def stop(path: str, device_map: Any, **others: Any) -> None:
        maps.append(device_map)
        raise Loaded("stopped here")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stop)
    return maps


def give_memory(patch: pytest.MonkeyPatch, **bytes_of: int) -> None:
    """GPUs and a CPU with so much memory, as ``gpu0=..., cpu=...``."""
    room = {int(n[3:]) if n != "cpu" else n: size for n, size in bytes_of.items()}
    monkey = {"get_max_memory": lambda: dict(room), "get_balanced_memory": lambda *a, **k: room}
    for name, value in monkey.items():
        patch.setattr(f"accelerate.utils.{name}", value)
    patch.setattr(torch.cuda, "device_count", lambda: len(room) - 1)


def size_of(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("device_map", ["auto", "sequential"])
def test_a_model_larger_than_a_gpu_is_spread(
    saved: str, placed: list[dict[str, Any]], device_map: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = size_of(make("llama"))
    give_memory(monkeypatch, gpu0=int(0.7 * whole), gpu1=int(0.7 * whole), cpu=100 * whole)
    with pytest.raises(ModelError, match="stopped here"):
        load_model(saved, "float32", "cuda:0", device_map)
    assert set(placed[0].values()) == {0, 1}
    layers = [place for name, place in placed[0].items() if ".layers." in name]
    assert layers == sorted(layers)
    assert len(layers) == 3


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_tied_head_stays_with_the_embeddings(
    name: str, tmp_path: Path, placed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    room = int(0.9 * size_of(model))
    give_memory(monkeypatch, gpu0=room, gpu1=room, cpu=100 * room)
    with pytest.raises(ModelError, match="stopped here"):
        load_model(str(tmp_path), "float32", "cuda:0", "auto")
    places = placed[0]
    assert set(places.values()) == {0, 1}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {module: name for name, module in model.named_modules()}
    assert places[names[head]] == places[names[embedding]]


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    saved: str, placed: list[dict[str, Any]], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = size_of(make("llama"))
    cpu = 100 * whole if gpus else whole // 2
    give_memory(monkeypatch, cpu=cpu, **{f"gpu{i}": int(0.4 * whole) for i in range(gpus)})
    on = ("the CPU", "the one visible GPU", "the 2 visible GPUs")[gpus]
    says = rf"does not fit on {on}: \d of its \d parts.*16-bit.*fewer --workers"
    with pytest.raises(ModelError, match=says):
        load_model(saved, "float32", "cuda:0" if gpus else "cpu", "auto")
    assert not placed


@pytest.mark.parametrize("gpus", [1, 2])
def test_layers_that_may_be_cut_are_not_spread(
    tmp_path: Path, placed: list[dict[str, Any]], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture that does not say what stays whole; one device holds it as ever."""
    config = BioGptConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    whole = size_of(AutoModelForCausalLM.from_config(config))
    room = int(1.4 / gpus * whole)
    give_memory(monkeypatch, cpu=100 * whole, **{f"gpu{i}": room for i in range(gpus)})
    says = "stopped here" if gpus == 1 else "BioGptForCausalLM cannot be spread.*one device"
    with pytest.raises(ModelError, match=says):
        load_model(str(tmp_path), "float32", "cuda:0", "auto")
    assert len(placed) == (gpus == 1)


@pytest.mark.parametrize("device_map", ["auto", "sequential"])
@pytest.mark.parametrize("room", [{"mps": 10**9}, {0: 10**9, "cpu": 10**9}])
def test_accelerators_without_cuda_are_left_alone(
    saved: str,
    placed: list[dict[str, Any]],
    room: dict[Any, int],
    device_map: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What accelerate says on a Mac, and on a machine with GPUs of another kind."""
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: dict(room))
    monkeypatch.setattr("accelerate.utils.get_balanced_memory", lambda *args, **others: dict(room))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match="stopped here"):
        load_model(saved, "float32", "cpu", device_map)
    assert set(placed[0].values()) == {"cpu"}


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_a_spread_model_is_let_go_before_another_is_read(
    saved: str,
    placed: list[dict[str, Any]],
    device_map: str | None,
    spread: Callable[[PreTrainedModel], Any],
) -> None:
    model = spread(make("llama"))
    held = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert held() is not None
        with pytest.raises(ModelError, match="stopped here"):
            load_model(saved, "float32", "cpu", device_map)
        assert held() is None
    finally:
        gc.enable()


def test_what_cannot_be_loaded_is_an_error_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "none of ours"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path), "float32", "cpu", "auto")


@pytest.mark.parametrize(
    ("gigabytes", "room", "expected"),
    [
        ((80, 80), 80 - 65.3, 32768),
        ((40, 48), 40 - 65.3 / 2, 16384),
        ((30, 30, 30, 30), 30 - 65.3 / 3, 16384),  # and not 30 - 65.3 / 4, which gives 32768
    ],
)
def test_the_budget_is_that_of_as_few_gpus_as_hold_the_model(
    gigabytes: tuple[int, ...], room: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model of 65.3 GB in 16 bits."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=160)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gigabytes))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (gigabytes[i] * 10**9, 0))
    assert budget_in(int(room * 1e9), config, 2) == expected
    assert fitting_budget(config, "bfloat16", "cuda:0", "auto") == expected


# Settings


def test_a_device_and_a_device_map_contradict_each_other(checkpoint: Path) -> None:
    with pytest.raises(SettingError, match="contradict"):
        SentenceScore(str(checkpoint), device="cpu", device_map="auto")
    with pytest.raises(SettingError, match="device_map='all' is unknown; choose one of auto"):
        SentenceScore(str(checkpoint), device_map="all")


def test_a_device_map_is_a_matter_of_place(checkpoint: Path) -> None:
    plain, placed = (SentenceScore(str(checkpoint), device_map=how) for how in (None, "auto"))
    assert Hasher.hash(plain) == Hasher.hash(placed)
    assert plain.rating_key() == placed.rating_key()
    assert "device_map" not in placed.__getstate__()
    assert placed.resolved().device_map == "auto"
    assert placed.place(None).device_map == "auto"
    readers = [Perplexity(str(checkpoint), device_map=how) for how in (None, "auto")]
    assert Hasher.hash(readers[0]) == Hasher.hash(readers[1])
    assert readers[0].given().key() == readers[1].given().key()
    assert readers[1].rater.place(None).device_map == "auto"


def test_the_environment_spreads_where_no_device_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = SentenceScore(str(checkpoint), device="cpu")
    spread = SentenceScore(str(checkpoint), device_map="sequential")
    plain = SentenceScore(str(checkpoint))
    monkeypatch.setenv("SELECTIT_DEVICE_MAP", "auto")
    assert [one.spread for one in (plain, named, spread)] == ["auto", None, "sequential"]
    monkeypatch.setenv("SELECTIT_DEVICE", "cpu")
    assert [one.spread for one in (plain, named, spread)] == [None, None, "sequential"]
    monkeypatch.delenv("SELECTIT_DEVICE")
    monkeypatch.setenv("SELECTIT_DEVICE_MAP", "all")
    with pytest.raises(SettingError, match=r"^SELECTIT_DEVICE_MAP='all' is unknown; choose"):
        plain.place(None)


def test_scores_are_those_of_one_device(checkpoint: Path) -> None:
    batch = {"instruction": ["Add 1 and 2.", "Sing."], "output": ["3", "La la"]}
    scorers = [SentenceScore(str(checkpoint), device_map=how) for how in (None, "auto")]
    plain, spread = (Dataset.from_dict(scorer(batch)).to_dict() for scorer in scorers)
    assert plain == spread


def test_several_processes_of_a_machine_do_not_each_take_all_its_gpus(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = SentenceScore(str(checkpoint), device_map="auto")
    assert scorer.place(1).device == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("SELECTIT_DEVICE", "cuda:3")
    place = scorer.place(0)
    assert (place.device, place.dtype, place.token_budget) == ("cuda:0", "bfloat16", 32768)
    with pytest.raises(SettingError, match="nproc-per-node 1"):
        scorer.place(1)


def test_map_takes_one_process(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"instruction": ["Say."] * 3, "output": ["a", "b", "c"]})
    scorer = TokenScore(str(checkpoint), device_map="auto")
    with pytest.raises(SettingError, match="Omit num_proc"):
        score(rows, scorer, num_proc=2)
    monkeypatch.setattr(mapping, "device_count", lambda: 4)
    scored = score(rows, scorer)
    assert scored.to_dict() == score(rows, TokenScore(str(checkpoint), device="cpu")).to_dict()


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 1, ["0,1,2,3"]),
        (None, 2, ["0,1", "2,3"]),
        ("7,3,GPU-a,GPU-b", 4, ["7", "3", "GPU-a", "GPU-b"]),
        ("0,1,2,3,-1", 2, ["0,1", "2,3"]),
    ],
)
def test_workers_share_the_gpus_out(
    visible: str | None, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "device_count", lambda: 4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert mapping.shares(count) == expected


def test_shares_are_equal_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mapping.shares(3) == [None] * 3
    monkeypatch.setattr(mapping, "device_count", lambda: 4)
    for count in (3, 8):
        with pytest.raises(SettingError, match=f"--workers {count} .* that divides 4"):
            mapping.shares(count)
