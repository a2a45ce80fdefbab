"""`openslip plan` says what a run is from its config, with no data there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from screens import attach_plain, too_wide

from openslip.__main__ import run
from openslip.config.build import build_parts
from openslip.config.compose import compose_config
from openslip.data.view import example_batch
from openslip.errors import UserError
from openslip.plan import amount, costs, hours, number_of_devices, number_of_samples, values
from openslip.training.sizing.cost import StepCost, StepMemory, measure_step


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENSLIP_DATA", str(folder / "nowhere"))
        lines: list[str] = []
        patch.setattr("openslip.commands.plan.say_wrapped", lambda *said: lines.extend(said))
        assert run(["plan", "data=cc3m", "trainer.precision=32-true", "trainer=cpu", "optim.ema_decay=0.99"]) == 0
        assert not list(folder.iterdir())
    return "\n".join(lines)


def test_length_is_that_of_the_config(plan: str):
    assert "2,905,954 samples, 45,405 steps of 64 per epoch" in plan
    assert "1,100 steps, 0.02 epochs, 70,400 samples seen\n  warm-up 50 steps, learning rate 8.0e-04 at most" in plan


@pytest.mark.parametrize(
    ("words", "assumed"),
    [
        ([], True),
        (["model=slip_vits16", "data.num_workers=2"], True),
        (["data=cc3m"], False),
        (["--data=cc3m"], False),
        (["experiment=cc3m_slip_vitb16_40ep"], False),
        (["data.source.root=elsewhere"], False),
    ],
)
def test_a_dataset_that_is_not_named_is_stated_first(
    words: list[str], assumed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(_: Any) -> int:
        raise UserError("no further")

    monkeypatch.setattr("openslip.plan.number_of_samples", stop)
    assert run(["plan", *words]) == 1
    line = "data=builtin is assumed; data=NAME or experiment=NAME names another: openslip data list\n"
    assert capsys.readouterr() == (line if assumed else "", "error: no further\n")


def test_parameters_are_those_of_the_tiny_model(plan: str):
    vit = 3 * 8 * 8 * 96 + 96 + 96 + 17 * 96 + 4 * (12 * 96 * 96 + 13 * 96) + 2 * 96
    text = 49408 * 64 + 77 * 64 + 12 * 64 * 64 + 13 * 64 + 2 * 64
    projections = 96 * 64 + 64 * 64 + 1
    head = 96 * 256 + 256 + 256 * 256 + 256 + 256 * 64 + 64 + 4 * 256
    assert f"parameters {(vit + text + projections) / 1e6:25.2f} M, and {head / 1e6:.2f} M in training only" in plan
    assert re.search(rf"image_tower +{vit / 1e6:.2f} M", plan)
    weights = vit + text + projections + head
    checkpoint = 4 * (3 * weights + vit + text + projections)
    assert f"checkpoint {checkpoint / 1e9:.2f} GB" in plan
    gradients = 4 * weights
    assert (
        f"{(2 * checkpoint + gradients) / 1e9:.2f} GB\n  weights, gradients, AdamW's moments and a save's copy\n"
        in plan
    )


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    terminal = attach_plain(monkeypatch, width)
    assert run(["plan", "model=clip_tiny", "trainer=cpu", f"runs_dir={tmp_path}/{'long/' * 12}"]) == 0
    assert "data=builtin is assumed" in terminal.written
    assert not too_wide(terminal.written, width)


def test_every_line_but_one_that_names_a_folder_fits_80_columns(plan: str):
    assert not [line for line in plan.splitlines() if len(line) > 80 and "GB free in" not in line]


def test_memory_grows_with_the_micro_batch_and_time_is_told_for_each_device(plan: str):
    sizes = [float(size) for size in re.findall(r"micro_batch_size=\d+ +([\d.]+) GB", plan)]
    assert len(sizes) == 3
    assert sizes == sorted(sizes)
    assert re.search(r"this machine, one process \(cpu, \d+ threads, 32-true\)\n  [\d.]+ samples/s", plan)
    for device in ("V100", "A100", "H100", "H200"):
        assert re.search(rf"^  {device} +1 x +(.+ h|.+ min) +the whole batch$", plan, re.MULTILINE)


CONFIG: dict[str, Any] = {
    "global_batch_size": 100,
    "plan": {"utilisation": 0.5, "device_counts": [1, 4, 128]},
    "devices": {"X": {"tflops": 100, "memory_gb": 5}},
}
MEMORY = StepMemory(trained=0, locked=0, averaged=0, pixels=0, activations=1e8)


def cost(**by_checkpointed: float) -> StepCost:
    activations = {name == "checkpointed": size for name, size in by_checkpointed.items()}
    return StepCost(4, 2e12, 1e8, activations, seconds=0.5, update_seconds=2.0)


def planned(cost: StepCost, *, splits: bool = True) -> list[str]:
    return hours(cost, MEMORY, 9000, CONFIG, torch.device("cpu"), "32-true", splits=splits)


def hours_of(passes: float, devices: int) -> str:
    return f"{9000 * 100 * passes * 2e12 / (devices * 100e12 * 0.5) / 3600:.1f} h"


@pytest.mark.parametrize(
    ("plain", "checkpointed", "passes", "told"),
    [
        (1e8, 9e7, 3 + 1, "3 micro-batches of 40"),  # 100 samples take 10 GB, of which 4.5 are given
        (1e8, 4e7, 3 + 0.67, "the whole batch with checkpointed blocks"),
        (4e7, 1e7, 3, "the whole batch"),
    ],
)
def test_hours_are_those_of_the_fastest_layout_that_fits_each_device(
    plain: float, checkpointed: float, passes: float, told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("openslip.plan.room", lambda device: 1e15)
    _, here, _, assumed, *rows = planned(cost(plain=plain, checkpointed=checkpointed))
    assert "0.50" not in here
    # 50 s of passes, 2 of the update
    assert here.endswith(f"{100 / 52:.2f} samples/s by two steps of 4, 130 h for the run")
    assert assumed == "  assumed: micro-batches take one more forward pass, checkpointed blocks 0.67"
    assert [" ".join(row.split()) for row in rows] == [
        f"X 1 x {hours_of(passes, 1)} {told}",
        f"4 x {hours_of(3, 4)} the whole batch",
        "128 x more devices than samples",
    ]


def test_micro_batches_on_this_machine_take_one_more_forward_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openslip.plan.room", lambda device: 5e9)
    assert planned(cost(plain=1e8))[1].endswith(
        f"{100 / (50 * 4 / 3 + 2):.2f} samples/s by two steps of 4, 172 h for the run, in micro-batches"
    )
    assert planned(cost(plain=1e8), splits=False)[1].endswith("130 h for the run")


def test_only_a_cpu_holds_the_copy_that_a_save_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory = StepMemory(trained=10**9, locked=0, averaged=0, pixels=0, activations=1e8)
    assert memory.checkpoint == 12e9

    def told(device: str) -> list[str]:
        return costs(cost(plain=1e8), memory, 100, torch.device(device), tmp_path)

    assert told("cpu")[3:5] == [
        "memory per device: 28.00 GB",
        "  weights, gradients, AdamW's moments and a save's copy",
    ]
    assert told("cuda")[3:5] == ["memory per device: 16.00 GB", "  weights, gradients and AdamW's moments"]
    sizes = [[line.split()[1] for line in told(device)[6:10]] for device in ("cpu", "cuda")]
    assert sizes == [["28.10", "29.60", "34.40", "38.00"], ["16.10", "17.60", "22.40", "26.00"]]
    for room, is_split in ((37.9e9, True), (38.1e9, False)):
        monkeypatch.setattr("openslip.plan.room", lambda device, room=room: room / 0.9)
        here = hours(cost(plain=1e8), memory, 9000, CONFIG, torch.device("cpu"), "32-true", splits=True)[1]
        assert here.endswith("in micro-batches") is is_split


@pytest.mark.parametrize(
    ("plain", "checkpointed", "splits", "told"),
    [
        (1e8, 4e7, False, "the whole batch with checkpointed blocks"),
        (1e8, 9e7, False, "does not fit"),
        (5e9, 1e8, True, "3 micro-batches of 40 with checkpointed blocks"),
        (5e9, 4.6e9, True, "does not fit"),
    ],
)
def test_batch_norm_and_large_models_leave_fewer_layouts(plain: float, checkpointed: float, splits: bool, told: str):
    assert planned(cost(plain=plain, checkpointed=checkpointed), splits=splits)[4].endswith(told)


def test_activations_are_counted_with_checkpointed_blocks_and_without():
    config, _ = compose_config("train", [])
    parts = build_parts(config)
    parts.objective.prepare(parts.model)
    measured = measure_step(
        parts.model,
        parts.objective,
        lambda size: example_batch(parts.views, size),
        2,
        lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        "32-true",
        torch.device("cpu"),
        1e9,
    )
    assert measured.activation_bytes == measured.by_checkpointed[False]
    assert measured.by_checkpointed[True] < 0.8 * measured.by_checkpointed[False]


@pytest.mark.parametrize(
    ("devices", "found"), [("auto", 2), (-1, 2), (3, 6), ([0, 5], 4)], ids=["auto", "all", "three", "listed"]
)
def test_devices_are_counted_over_nodes(devices: Any, found: int):
    assert number_of_devices({"devices": devices, "num_nodes": 2}, torch.device("cpu")) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.devices=0"], "trainer.devices=0: expected a number of devices, a list of device indices, or auto"),
        (["trainer=ddp", "trainer.devices=3"], "global_batch_size=64 cannot be divided among 3 ranks: use 63 or other"),
        (["tf32=true"], "tf32=true: TF32 is a format of CUDA devices"),
        (["plan.utilisation=40"], "plan.utilisation=40: expected a share of the peak"),
    ],
)
def test_what_no_run_could_have_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "data=cc3m", "trainer.accelerator=cpu", *words]) == 1
    assert said in capsys.readouterr().err


def test_locked_towers_have_no_gradients_to_keep():
    config, _ = compose_config("train", ["towers.image.locked=true", "towers.image.weights=runs/earlier"])
    parts = build_parts(config)
    image, text = parts.model.get_submodule("image_tower"), parts.model.get_submodule("text_tower")
    assert values(parts, trained=False) == sum(p.numel() for p in image.parameters())
    assert values(parts, trained=True) > sum(p.numel() for p in text.parameters())


def test_samples_of_a_mixture_are_the_shares_of_its_collections():
    config, _ = compose_config("train", ["data=mixture"])
    assert number_of_samples(config["data"]["source"]) == 2_905_954 + round(0.25 * 10_968_539)


def test_a_collection_of_unknown_size_must_be_there(capsys: pytest.CaptureFixture[str]):
    assert run(["plan", "data=webdataset", "data.source.shards=nowhere.tar"]) == 1
    assert "nowhere.tar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hours", "said"), [(0.001, "< 1 min"), (0.5, "30 min"), (12.34, "12.3 h"), (1234.5, "1,234 h")]
)
def test_durations_are_told_with_digits_that_matter(hours: float, said: str):
    assert amount(hours) == said


def test_a_wrong_word_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run(["plan", "model=slip_vitb17"]) == 1
    assert capsys.readouterr().err.startswith("error: model=slip_vitb17 is unknown; did you mean model=slip_vitb16?")
