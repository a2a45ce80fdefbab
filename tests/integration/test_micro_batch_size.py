"""micro_batch_size=auto: what fits is found without changing the run, agreed by all ranks, and kept."""

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pretraining import BATCH, fit, pretrainer
from ranks import Ranks
from small_models import small_batch
from torch import Tensor, nn

from openslip.training.pretrainer import Pretrainer
from openslip.training.sizing import micro_batch_size as sizing
from openslip.training.sizing.layout import are_checkpointed, trained_towers
from openslip.training.sizing.micro_batch_size import MicroBatchSize, fits_on_gpu, wants_memory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def longest(size: int) -> dict[str, Tensor]:
    """Captions that fill the context of the small models."""
    return {"index": torch.arange(size), "text": torch.full((size, 9), 7), "text_length": torch.full((size,), 9)}


def auto(file: Path) -> MicroBatchSize:
    return MicroBatchSize("auto", file=file, longest=longest)


@pytest.mark.parametrize(("setting", "expected"), [(None, BATCH), (5, 5), (BATCH, BATCH)])
def test_a_given_size_is_taken_and_none_means_the_whole_batch(setting: int | None, expected: int, tmp_path: Path):
    made = pretrainer("clip", steps=1)
    fit(made, 1, callbacks=[MicroBatchSize(setting, file=tmp_path / "kept.json", longest=longest)])
    assert made.micro_batch_size == expected
    assert not (tmp_path / "kept.json").exists()


def little_memory(monkeypatch: pytest.MonkeyPatch, samples: float) -> None:
    """A machine with room for so many samples beside what a step holds."""
    made = pretrainer("slip", steps=1)
    weights = sum(8 * parameter.numel() for parameter in made.parameters())
    statistics = sum(buffer.nbytes for buffer in made.buffers())
    monkeypatch.setattr(sizing, "activation_bytes", lambda *_: 1e6)
    # gradients and moments; a checkpoint of weights and moments
    monkeypatch.setattr(sizing, "available_memory", lambda: (samples * 1e6 + 6 * weights + statistics) / 0.9 + 1)
    monkeypatch.setattr(sizing, "return_freed_memory", lambda: None)  # it would be for all later tests


def test_the_choice_changes_neither_weights_nor_statistics_nor_random_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = pretrainer("slip", steps=3)
    torch.manual_seed(5)
    fit(whole, 3)
    drawn = torch.rand(1)
    little_memory(monkeypatch, 4)
    file = tmp_path / "micro_batch_size.json"
    chosen = pretrainer("slip", steps=3)
    torch.manual_seed(5)
    fit(chosen, 3, callbacks=[auto(file)])
    assert torch.equal(torch.rand(1), drawn)
    assert chosen.micro_batch_size == 4
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(chosen.state_dict()[name], tensor, rtol=1e-7, atol=1e-9, msg=f"{name} differs")
    kept = {"micro_batch_size": 4, "local_batch_size": BATCH, "device": "cpu"}
    assert json.loads(file.read_text()) == kept
    assert "micro_batch_size=auto: 4 of 12 samples" in capsys.readouterr().out


def test_a_resumed_run_takes_the_same_size_while_batch_and_device_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "micro_batch_size.json"
    little_memory(monkeypatch, 100)
    # Then with other hardware: more ranks, or another GPU.
    for local_batch_size, device, expected in ((BATCH, "cpu", 3), (24, "cpu", BATCH), (BATCH, "NVIDIA L4", BATCH)):
        kept = {"micro_batch_size": 3, "local_batch_size": local_batch_size, "device": device}
        file.write_text(json.dumps(kept))
        made = pretrainer("slip", steps=1)
        fit(made, 1, callbacks=[auto(file)])
        assert made.micro_batch_size == expected


def test_what_was_measured_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = pretrainer("clip", steps=1)
    weights = sum(8 * parameter.numel() for parameter in made.parameters())
    monkeypatch.setattr(sizing, "available_memory", lambda: 3 * 3 * weights)
    monkeypatch.setattr(sizing, "return_freed_memory", lambda: None)
    fit(made, 1, callbacks=[auto(tmp_path / "micro_batch_size.json")])
    assert made.micro_batch_size is not None
    assert made.micro_batch_size < BATCH


def test_captions_that_fill_the_context_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured: list[dict[str, Tensor]] = []
    little_memory(monkeypatch, 4)
    monkeypatch.setattr(sizing, "activation_bytes", lambda objective, model, batch: measured.append(batch) or 1e6)
    for method in ("clip", "simclr"):
        fit(pretrainer(method, steps=1), 1, callbacks=[auto(tmp_path / f"{method}.json")])
    batch = small_batch(BATCH)
    assert batch["text_length"].min() < 9
    assert measured[0].keys() == batch.keys()
    assert torch.equal(measured[0]["text"], longest(BATCH)["text"])
    assert torch.equal(measured[0]["text_length"], longest(BATCH)["text_length"])
    assert torch.equal(measured[0]["image"], batch["image"])


@pytest.mark.parametrize(("samples", "expected"), [(3.9 * BATCH, BATCH // 2), (4.1 * BATCH, BATCH)])
def test_a_whole_batch_has_room_for_the_holes_that_it_leaves(
    samples: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    little_memory(monkeypatch, samples)
    made = pretrainer("clip", steps=1)
    fit(made, 1, callbacks=[auto(tmp_path / "micro_batch_size.json")])
    assert made.micro_batch_size == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", False),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART", False),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM_NULL_POINTER", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED_SHARED_MEMORY_INSUFFICIENT", False),  # of a kernel's blocks
        ("GET was unable to find an engine to execute this computation", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_want_of_memory_is_known_by_what_libraries_say(message: str, expected: bool):
    assert wants_memory(RuntimeError(message)) == expected


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of CUDA is answered, as of a GPU of 5000 bytes."""
    properties = SimpleNamespace(total_memory=5000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(Pretrainer, "optimizers", lambda *_, **__: torch.optim.AdamW([nn.Parameter(torch.ones(1))]))


class Held:
    """Something large that frames and cycles refer to."""


def test_nothing_of_a_failed_trial_is_alive_when_the_memory_is_given_back(gpu: None, monkeypatch: pytest.MonkeyPatch):
    alive: list[Any] = []
    lasting: list[Any] = []  # what keeps an exception, and all its frames, beyond the trial

    def fails(*_: Any) -> None:
        held, cycle = Held(), Held()
        cycle.itself = cycle  # pyright: ignore[reportAttributeAccessIssue]
        alive.extend([weakref.ref(held), weakref.ref(cycle)])
        error = RuntimeError("CUDA out of memory")
        lasting.append(error)
        raise error

    given_back: list[list[Any]] = []
    monkeypatch.setattr(sizing, "differentiate", fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append([ref() for ref in alive]))
    gc.disable()
    try:
        assert not fits_on_gpu(pretrainer("slip", steps=1), small_batch(2), 2)
    finally:
        gc.enable()
    assert given_back == [[None, None]]


def test_a_fault_that_is_no_want_of_memory_ends_the_trials_with_its_message(gpu: None, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(sizing, "differentiate", fails)
    with pytest.raises(RuntimeError, match="CUDNN_STATUS_EXECUTION_FAILED"):
        fits_on_gpu(pretrainer("slip", steps=1), small_batch(2), 2)


def chosen_on_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, local: int, plain: int, checkpointed: int, is_on: bool
) -> int | None:
    """The choice on a GPU with room for so many samples at a time."""
    made = pretrainer("slip", steps=1)
    for tower in trained_towers(made.model):
        tower.gradient_checkpointing = is_on
    room = {False: plain, True: checkpointed}
    tried: set[tuple[int, bool]] = set()

    def fits(pl_module: Pretrainer, batch: dict[str, Tensor], size: int) -> bool:
        trial = size, are_checkpointed(pl_module.model)
        assert trial not in tried, "each trial takes seconds"
        tried.add(trial)
        return size <= room[trial[1]]

    monkeypatch.setattr(sizing, "fits_on_gpu", fits)
    monkeypatch.setattr(Pretrainer, "device", torch.device("cuda"))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    auto(tmp_path / "micro_batch_size.json").on_train_batch_start(trainer, made, small_batch(local), 0)
    assert are_checkpointed(made.model) is is_on
    return made.micro_batch_size


BOTH = "towers.image.gradient_checkpointing={0} towers.text.gradient_checkpointing={0}"


@pytest.mark.parametrize(
    ("plain", "checkpointed", "is_on", "size", "advice"),
    [
        (100, 999, False, 100, ""),
        (
            99,
            999,
            False,
            56,
            "the whole batch with checkpointed blocks would fit and be faster: " + BOTH.format("true"),
        ),
        (99, 99, False, 56, ""),
        (33, 99, False, 32, ""),
        (99, 999, True, 100, ""),
        (100, 999, True, 100, "checkpointed blocks are not needed; the whole batch would fit and be faster: "),
        (20, 99, True, 56, "checkpointed blocks are not needed; 7 micro-batches of 16 would fit and be faster: "),
        (0, 99, True, 56, ""),
        (
            0,
            99,
            False,
            1,
            "2 micro-batches of 56 with checkpointed blocks would fit and be faster: " + BOTH.format("true"),
        ),
    ],
)
def test_a_gpu_gets_multiples_of_eight_and_a_line_where_other_blocks_are_faster(
    plain: int,
    checkpointed: int,
    is_on: bool,
    size: int,
    advice: str,
    gpu: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    found = chosen_on_gpu(tmp_path, monkeypatch, local=100, plain=plain, checkpointed=checkpointed, is_on=is_on)
    assert found == size
    first, kept, *more = capsys.readouterr().out.splitlines()
    assert first == f"micro_batch_size=auto: {size} of 100 samples at a time (a GPU)"
    assert kept == f"  kept in {tmp_path}/micro_batch_size.json"
    if advice:
        assert more[0].startswith(f"micro_batch_size=auto: {advice}")
        assert more[0].endswith(BOTH.format(str(not is_on).lower()))
    assert len(more) == bool(advice)


def test_a_cpu_counts_what_its_blocks_take_and_says_which_are_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    little_memory(monkeypatch, 4 * BATCH)  # with the holes of a whole batch
    monkeypatch.setattr(sizing, "activation_bytes", lambda _, model, __: 1e6 if are_checkpointed(model) else 2e6)
    made = pretrainer("slip", steps=1)
    fit(made, 1, callbacks=[auto(tmp_path / "micro_batch_size.json")])
    assert made.micro_batch_size == BATCH // 2
    assert f"the whole batch with checkpointed blocks would fit and be faster: {BOTH.format('true')}" in (
        capsys.readouterr().out
    )


def test_a_tower_that_mixes_samples_gets_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    little_memory(monkeypatch, 1)
    made = pretrainer("slip", steps=1, image="batch norm")
    fit(made, 1, callbacks=[auto(tmp_path / "micro_batch_size.json")])
    assert made.micro_batch_size == BATCH


def test_all_ranks_take_the_micro_batches_of_the_one_that_needs_most(two_ranks: Ranks, tmp_path: Path):
    assert two_ranks(size_of_rank, str(tmp_path)) == [4, 4]
    assert json.loads((tmp_path / "micro_batch_size.json").read_text())["micro_batch_size"] == 4


def size_of_rank(folder: str) -> int | None:
    """The first rank could do with 3 micro-batches, the second needs 7."""
    rank = torch.distributed.get_rank()
    callback, made = auto(Path(folder) / "micro_batch_size.json"), pretrainer("slip", steps=1)
    callback.count = lambda *_: (3 + 4 * rank, "")  # pyright: ignore[reportAttributeAccessIssue]
    callback.on_train_batch_start(None, made, small_batch(28), 0)  # pyright: ignore[reportArgumentType]
    return made.micro_batch_size
