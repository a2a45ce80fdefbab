"""micro_batch_size=auto: what fits is found without changing the run, agreed by all ranks, and kept."""

import json
from pathlib import Path

import pytest
import torch
from pretraining import BATCH, fit, pretrainer
from ranks import Ranks
from small_models import small_batch
from torch import Tensor

from openslip.training.microbatch import even_size, micro_batch_sizes
from openslip.training.sizing import micro_batch_size as sizing
from openslip.training.sizing.micro_batch_size import MicroBatchSize, fewest_micro_batches, wants_memory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.mark.parametrize("local", [1, 2, 7, 12, 100, 4096])
@pytest.mark.parametrize("room", [1, 2, 3, 5, 11, 64, 1000, 5000])
def test_the_fewest_micro_batches_that_fit_are_found(local: int, room: int):
    truth = next(count for count in range(1, local + 1) if even_size(local, count) <= room)
    assert fewest_micro_batches(local, lambda size: size <= room) == truth
    sizes = micro_batch_sizes(local, even_size(local, truth))
    assert sum(sizes) == local
    assert max(sizes) <= room


def test_where_nothing_fits_micro_batches_are_of_one_sample():
    assert fewest_micro_batches(12, lambda size: False) == 12


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
    monkeypatch.setattr(sizing, "activation_bytes", lambda *_: 1e6)
    monkeypatch.setattr(sizing, "available_memory", lambda: (samples * 1e6 + 3 * weights) / 0.9 + 1)
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
    for local_batch_size, expected in ((BATCH, 3), (24, BATCH)):  # then with other hardware
        kept = {"micro_batch_size": 3, "local_batch_size": local_batch_size, "device": "cpu"}
        file.write_text(json.dumps(kept))
        made = pretrainer("slip", steps=1)
        fit(made, 1, callbacks=[auto(file)])
        assert made.micro_batch_size == expected


def test_what_was_measured_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = pretrainer("clip", steps=1)
    weights = sum(8 * parameter.numel() for parameter in made.parameters())
    monkeypatch.setattr(sizing, "available_memory", lambda: 2 * 3 * weights)
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
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_want_of_memory_is_known_by_what_libraries_say(message: str, expected: bool):
    assert wants_memory(RuntimeError(message)) == expected


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
    callback.count = lambda *_: 3 + 4 * rank  # pyright: ignore[reportAttributeAccessIssue]
    callback.on_train_batch_start(None, made, small_batch(28), 0)  # pyright: ignore[reportArgumentType]
    return made.micro_batch_size
