"""What `openslip verify` says of a device's kernels, with a CPU as the device and faults planted in what it runs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openslip.models import attention as attention_module
from openslip.models import class_token, text_transformer
from openslip.objectives.tiles import RunningSoftmax
from openslip.training.precision import DTYPES
from openslip.verify import kernels, layers, recording, steps
from openslip.verify.deviation import Row
from openslip.verify.kernels import attempt, augmentation_rows, kernel_rows, tiled_loss_rows
from openslip.verify.layers import caption_rows, class_token_rows, image_rows
from openslip.verify.steps import micro_batch_rows, skipped_step_rows


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def out_of_tolerance(rows: list[Row]) -> set[str]:
    return {row.quantity for row in rows if not row.ok}


def test_a_cpus_kernels_are_within_tolerance_and_named():
    rows = kernel_rows("cpu", "float32")
    assert out_of_tolerance(rows) == set()
    assert all(row.deviation is not None for row in rows)
    assert len({row.quantity for row in rows}) == len(rows) == 21
    notes = {row.quantity: row.note for row in rows if row.quantity.endswith("output")}
    shapes = ("attention of images", "last block, 1 query", "packed captions", "pooled captions, 1 query")
    assert notes == {f"{shape}, float32: output": "kernel: flash (CPU)" for shape in shapes} | {
        f"{shape}, bfloat16: output": "kernel: unfused attention" for shape in shapes
    }


@pytest.mark.parametrize("check", [image_rows, caption_rows, augmentation_rows, tiled_loss_rows, micro_batch_rows])
def test_float64_agrees_with_itself(check: Callable):
    rows = check("cpu", "float64")
    assert out_of_tolerance(rows) == set()
    assert all(row.deviation < 1e-5 for row in rows)


def test_micro_batches_in_16_bits_are_as_good_as_one():
    assert out_of_tolerance(micro_batch_rows("cpu", "bfloat16")) == set()


@pytest.mark.parametrize(
    ("operator", "kernel"),
    [
        ("aten._scaled_dot_product_cudnn_attention.default", "cuDNN"),
        ("aten._scaled_dot_product_flash_attention.default", "flash"),
        ("aten._scaled_dot_product_flash_attention_for_cpu.default", "flash (CPU)"),
        ("aten._scaled_dot_product_efficient_attention.default", "memory-efficient"),
        ("torch_attn._varlen_attn.default", "varlen (flash)"),
        ("aten.bmm.default", "unfused attention"),
    ],
)
def test_operators_of_gpus_have_the_names_that_people_use(operator: str, kernel: str):
    operators = layers.Operators()
    operators.names = {"aten.view.default", operator}
    assert operators.kernel() == kernel


@pytest.mark.parametrize(
    ("module", "check", "label"),
    [
        (layers, image_rows, "attention of images"),
        (class_token, class_token_rows, "last block, 1 query"),
        (text_transformer, caption_rows, "packed captions"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_that_are_five_per_cent_off_are_seen(
    module: Any, check: Callable, label: str, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    kernel = attention_module.attention
    monkeypatch.setattr(module, "attention", lambda q, *rest, **options: kernel(1.05 * q, *rest, **options))
    assert {f"{label}, {dtype}: output", f"{label}, {dtype}: gradients"} <= out_of_tolerance(check("cpu", dtype))


def test_a_kernel_that_is_not_causal_is_seen(monkeypatch: pytest.MonkeyPatch):
    kernel = text_transformer.attention_in_buckets
    monkeypatch.setattr(
        text_transformer, "attention_in_buckets", lambda qkv, buckets, causal: kernel(qkv, buckets, causal=False)
    )
    quantities = {f"packed captions, bfloat16: {part}" for part in ("output", "gradients")}
    assert out_of_tolerance(caption_rows("cpu", "bfloat16")) == quantities


@pytest.mark.parametrize("short", [False, True])
def test_the_varlen_kernel_is_checked_where_there_is_one(short: bool, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def sequence_by_sequence(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_starts: Tensor,
        k_starts: Tensor,
        longest_q: int,
        longest_k: int,
        causal: bool,
    ) -> Tensor:
        calls.append((longest_q, longest_k, causal))
        parts = []
        for i in range(len(q_starts) - 1):
            queries, keys = slice(*q_starts[i : i + 2].tolist()), slice(*k_starts[i : i + 2].tolist())
            keys = slice(keys.start, min(keys.stop, keys.start + 64)) if short else keys  # a kernel that stops at 64
            asking, asked, told = (x.transpose(0, 1) for x in (q[queries], k[keys], v[keys]))
            parts.append(F.scaled_dot_product_attention(asking, asked, told, is_causal=causal).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(text_transformer, "varlen_is_possible", lambda *_: True)
    monkeypatch.setattr(text_transformer, "varlen_attention", sequence_by_sequence)
    rows = caption_rows("cpu", "float32")
    assert calls == [(77, 77, True), (1, 77, False)]
    assert out_of_tolerance(rows) == ({row.quantity for row in rows} if short else set())


@pytest.mark.parametrize("planted", [False, True], ids=["eager", "compiled"])
def test_a_pixel_that_is_off_is_seen(planted: bool, monkeypatch: pytest.MonkeyPatch):
    batch = kernels.augment_batch

    def changed(images: Tensor, plan: Any, *, compiled: bool) -> Tensor:
        images = batch(images, plan)
        images[5, 1, 20, 20] += 2e-5 * (compiled == planted)
        return images

    monkeypatch.setattr(kernels, "augment_batch", changed)
    for compiled in (False, True):
        rows = augmentation_rows("cpu", "float32", compiled=compiled)
        assert len(out_of_tolerance(rows)) == (compiled == planted)


@pytest.mark.parametrize(
    ("device", "missing", "times"), [("cuda", None, 1), ("cuda", "triton is not installed", 0), ("cpu", None, 0)]
)
def test_compiled_augmentation_is_checked_on_gpus_that_compile(
    device: str, missing: str | None, times: int, monkeypatch: pytest.MonkeyPatch
):
    quantities = []
    monkeypatch.setattr(kernels, "why_not", lambda: missing)
    monkeypatch.setattr(kernels, "attempt", lambda quantity, *_: quantities.append(quantity) or [])
    kernel_rows(device, "float32")
    assert quantities.count("compiled augmentation") == times


def test_tiles_that_lose_a_row_are_seen(monkeypatch: pytest.MonkeyPatch):
    add = RunningSoftmax.add

    def changed(self: RunningSoftmax, rows: slice, tile: Tensor, paired: bool) -> None:
        add(self, rows, tile, paired)
        self.total[-1] *= 0.99

    monkeypatch.setattr(RunningSoftmax, "add", changed)
    assert out_of_tolerance(tiled_loss_rows("cpu", "float32")) == {
        "InfoNCE in tiles, float32",
        "NT-Xent in tiles, float32",
    }


def test_a_step_that_is_not_skipped_is_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "gradient_norm", lambda optimizer: torch.tensor(1.0))
    assert len(out_of_tolerance(skipped_step_rows("cpu", "float32"))) == 1


def test_an_optimizer_that_skips_all_steps_is_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "gradient_norm", lambda optimizer: torch.tensor(torch.nan))
    (row,) = skipped_step_rows("cpu", "float32")
    assert not row.ok
    assert row.note.endswith("a step after it that changes nothing")


def test_micro_batches_that_add_up_in_16_bits_are_seen(monkeypatch: pytest.MonkeyPatch):
    def cached(device: torch.device, precision: str) -> torch.autocast:
        return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)

    monkeypatch.setattr(recording, "autocast", cached)
    assert len(out_of_tolerance(micro_batch_rows("cpu", "bfloat16"))) == 1


def test_a_kernel_that_fails_is_a_row_out_of_tolerance(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(layers, "attention", fails)
    (row,) = attempt("attention of images", image_rows, "cpu", "bfloat16")
    assert not row.ok
    assert (row.quantity, row.note) == ("attention of images, bfloat16", "RuntimeError: no kernel image is available")
