"""Merging two checkpoints: the weights of alpha, what is refused, and the files."""

import copy
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import CLASSNAMES, Pictures
from model_folders import folder_of
from safetensors.torch import load_file
from stored_models import ARCHITECTURE
from torch import Tensor, nn

import openslip
from openslip.commands import eval as eval_command
from openslip.commands._alpha_evaluations import AlphaTable
from openslip.commands.merge import main, places
from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.evaluation.suite import Suite
from openslip.inference import merge
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.inference.formats.openslip import write
from openslip.inference.merge import Pair, alphas, interpolated
from openslip.text.clip_bpe import ClipBpe

TOKENIZER = {"context_length": 77, "truncation": "keep_end", "special_text": "plain"}
TRANSFORM: dict[str, Any] = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
RESNET = {"name": "resnet18", "arguments": {"channels": [8, 8, 8, 16], "layers": [1, 1, 1, 1], "stem_width": 8}}


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Copy nested settings; a change names `part__key`."""
    settings = copy.deepcopy(settings)
    for name, value in changes.items():
        *parts, last = name.split("__")
        inside = settings
        for part in parts:
            inside = inside[part]
        inside[last] = value
    return settings


def made(seed: int, architecture: dict[str, Any] = ARCHITECTURE, **settings: Any) -> Bundle:
    torch.manual_seed(seed)
    tokenizer = ClipBpe(**TOKENIZER | settings.pop("tokenizer", {}))
    transform = EvalTransform(**TRANSFORM | settings)
    model = build_model(architecture).eval()
    return Bundle(model, tokenizer, transform, architecture, torch.device("cpu"), origin="AB"[seed])


def state(bundle: Bundle) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in bundle.model.state_dict().items()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of one model, the second with provenance."""
    paths = tmp_path / "a.safetensors", tmp_path / "b.ckpt"
    for seed, path in enumerate(paths):
        bundle = made(seed)
        bundle.provenance.update({"starts": [{"command": f"openslip train seed={seed}"}]} if seed else {})
        write(bundle, path)
    return paths


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.5", ["0.5"]),
        ("0,0.5,1", ["0", "0.5", "1"]),
        ("0:1:0.1", ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]),
        ("0.2:0.8:0.3", ["0.2", "0.5", "0.8"]),
        ("0.50,0.5", ["0.50"]),
        ("-0", ["0"]),
        ("-0.0:1:1", ["0.0", "1.0"]),
        ("0:1:0.01", [f"{place / 100:.2f}" for place in range(101)]),
    ],
)
def test_alphas_are_the_decimal_numbers_of_a_list_or_a_range_with_its_end(text: str, numbers: list[str]):
    assert [f"{alpha:f}" for alpha in alphas(text)] == numbers


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "0:1", "0:1:0.3", "1:0:0.1", "0:1:0", "-0.1", "0,1.5", "nan", "0:1:0.005", "0:1:0.0001"),
        *("0:1e30:0.1", "0:1:1e-30", "0:1:1e-999999", "0:1:1e999999", "-1e30:0:1", "1e999999"),
        *("1e-300", "0.5,1e-21", "1e-999999"),
    ],
)
def test_other_alphas_are_refused(text: str):
    with pytest.raises(UserError, match=f"--alpha {text}: "):
        alphas(text)


def test_weights_are_the_mean_of_float64_rounded_once():
    first, second = (
        state(
            made(seed, changed(ARCHITECTURE, image_tower__name="resnet18", image_tower__arguments=RESNET["arguments"]))
        )
        for seed in (0, 1)
    )
    first["logit_scale"], second["logit_scale"] = torch.tensor(1.1), torch.tensor(4.3)
    name = next(name for name in first if name.endswith("running_var"))
    second[name] = torch.rand(second[name].shape)
    merged = interpolated(first, second, Decimal("0.3"))
    assert merged.keys() == first.keys()
    for key, weight in merged.items():
        values = [tensor[key].numpy() for tensor in (first, second)]
        if weight.dtype == torch.int64:
            assert key.endswith("num_batches_tracked")
            continue
        expected = (0.7 * values[0].astype(np.float64) + 0.3 * values[1].astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(weight.numpy(), expected, err_msg=key)
    assert float(merged["logit_scale"]) == pytest.approx(0.7 * 1.1 + 0.3 * 4.3, rel=1e-7)


def test_0_and_1_are_exactly_the_two_checkpoints():
    first = {"x": torch.tensor([-0.0, 1.0, float("inf")]), "count": torch.tensor(3)}
    second = {"x": torch.tensor([1.0, float("nan"), -0.0]), "count": torch.tensor(5)}
    for alpha, expected in (("0", first), ("0.0", first), ("1.0", second)):
        merged = interpolated(first, second, Decimal(alpha))
        for name, weight in expected.items():
            assert weight.numpy().tobytes() == merged[name].numpy().tobytes()
    assert interpolated(first, second, Decimal("0.5"))["count"] == 3


def test_files_of_0_and_1_have_the_weights_of_the_parents_and_every_file_has_their_provenance(
    tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    first, second = files
    assert main([str(first), str(second), "--alpha", "0:1:0.5", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"alpha-{alpha}.safetensors" for alpha in ("0.0", "0.5", "1.0")
    ]
    assert "batch norm" not in capsys.readouterr().out
    for parent, alpha in ((first, "0.0"), (second, "1.0")):
        expected, merged = (
            openslip.load(path).model.state_dict() for path in (parent, tmp_path / f"out/alpha-{alpha}.safetensors")
        )
        assert all(torch.equal(weight, merged[name]) for name, weight in expected.items())
    merged = openslip.load(tmp_path / "out/alpha-0.5.safetensors").provenance["merge"]
    assert merged["alpha"] == 0.5
    assert {"command", "commit", "dates"} <= merged.keys()
    assert merged["parents"] == [
        {"checkpoint": str(first), "weight": 0.5, "provenance": {}},
        {"checkpoint": str(second), "weight": 0.5, "provenance": {"starts": [{"command": "openslip train seed=1"}]}},
    ]


def test_existing_files_are_replaced_only_with_force(tmp_path: Path, files: tuple[Path, Path]):
    target = tmp_path / "new" / "half.safetensors"
    words = [*map(str, files), "--alpha", "0.5", "--out", str(target)]
    assert main(words) == 0
    content = target.read_bytes()
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"half\.safetensors exists: add --force"):
        main(words)
    assert target.read_bytes() == b"mine"
    assert main([*words, "--force"]) == 0
    assert len(load_file(target)) > 10
    assert len(target.read_bytes()) == len(content)
    with pytest.raises(UserError, match=r"2 alphas need a folder, such as --out .*new/half"):
        main([*words[:3], "0,1", *words[4:]])


def test_the_ending_of_another_kind_of_file_is_no_folder(tmp_path: Path, files: tuple[Path, Path]):
    words = [*map(str, files), "--alpha", "0.5", "--out"]
    with pytest.raises(
        UserError, match=r"half\.bin: expected a file that ends in \.safetensors, .* folder such as half"
    ):
        main([*words, str(tmp_path / "half.bin")])
    assert not (tmp_path / "half.bin").exists()
    (tmp_path / "my.models").mkdir()
    for folder in ("wise-0.5", "merged.v2", "my.models"):
        assert places(tmp_path / folder, alphas("0.5"))[0] == [tmp_path / folder / "alpha-0.5.safetensors"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path, files: tuple[Path, Path]):
    (tmp_path / "half.ckpt").mkdir()
    for words in ([], ["--force"]):
        with pytest.raises(UserError, match=r"half\.ckpt is a folder, .* --out"):
            main([*map(str, files), "--alpha", "0.5", "--out", str(tmp_path / "half.ckpt"), *words])
    assert list((tmp_path / "half.ckpt").iterdir()) == []


def test_a_file_that_cannot_be_loaded_appears_under_no_name(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    pair = Pair(openslip.load(files[0]), openslip.load(files[1]))

    def fail(*_: object, **__: object) -> None:
        raise UserError("cannot be loaded")

    monkeypatch.setattr(merge, "load", fail)
    with pytest.raises(UserError, match="cannot be loaded"):
        pair.write(Decimal("0.5"), tmp_path / "out" / "half.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


Change = Callable[[], Bundle]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: made(1, mean=[0.4, 0.5, 0.5]),
            r"transform\.mean: \[0\.5, 0\.5, 0\.5\] in A, \[0\.4, 0\.5, 0\.5\] in B",
        ),
        (lambda: made(1, crop="floor"), r"transform\.crop: 'round' in A, 'floor' in B"),
        (lambda: made(1, interpolation="bicubic"), r"transform\.interpolation: 'bilinear' in A, 'bicubic' in B"),
        (
            lambda: made(1, tokenizer={"truncation": "drop_end"}),
            r"tokenizer\.truncation: 'keep_end' in A, 'drop_end' in B",
        ),
        (
            lambda: made(1, changed(ARCHITECTURE, image_tower__arguments__num_heads=2)),
            r"architecture\.image_tower\.arguments\.num_heads: 3 in A, 2 in B",
        ),
        (
            lambda: made(1, changed(ARCHITECTURE, text_tower__activation="gelu")),
            r"architecture\.text_tower\.activation: 'quick_gelu' in A, 'gelu' in B: give",
        ),
        (
            lambda: made(1, changed(ARCHITECTURE, image_tower__norm_eps=1e-5)),
            r"architecture\.image_tower\.norm_eps: None in A, 1e-05 in B",
        ),
        (lambda: made(1, changed(ARCHITECTURE, embed_dim=9)), r"architecture\.embed_dim: 8 in A, 9 in B"),
    ],
)
def test_checkpoints_that_differ_are_refused_with_the_key_and_both_values(other: Change, message: str):
    with pytest.raises(UserError, match=message):
        Pair(made(0), other())


def test_of_many_different_keys_the_first_is_named():
    other = changed(ARCHITECTURE, embed_dim=9, image_tower__norm_eps=1e-5, text_tower__activation="gelu")
    with pytest.raises(UserError, match=r"embed_dim: 8 in A, 9 in B and 2 more keys: give") as error:
        Pair(made(0), made(1, other))
    assert len(str(error.value)) < 160


def test_merged_files_of_16_bit_weights_are_float32_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, dtype in enumerate((torch.float32, torch.float16)):
        write(made(seed), tmp_path / f"{seed}.ckpt", dtype)
    out = tmp_path / "half.safetensors"
    assert main([f"{tmp_path}/0.ckpt", f"{tmp_path}/1.ckpt", "--alpha", "0.5", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    advice = "openslip strip --dtype float16 or bfloat16 halves and rounds them"
    note = f"B is of float16; merged files are of float32: {advice}"
    assert printed.out == f"{note}\nalpha 0.5: {out} (float32)\n"
    assert printed.err.splitlines()[-1] == f"next: openslip eval checkpoint={out} evaluation=NAME"
    assert {weight.dtype for weight in load_file(out).values()} == {torch.float32}


@pytest.mark.parametrize("swapped", [False, True])
def test_a_model_with_logit_bias_is_not_merged_with_one_without(swapped: bool):
    bundles = [made(0), made(1, changed(ARCHITECTURE, logit_bias_init=-10.0))]
    message = "a number in B" if not swapped else "a number in B, absent in A"
    with pytest.raises(UserError, match=rf"differ in architecture\.logit_bias_init: .*{message}"):
        Pair(bundles[swapped], bundles[not swapped])
    other = made(1, changed(ARCHITECTURE, logit_bias_init=-3.0))
    Pair(bundles[1], other)


def test_other_descriptions_of_the_same_model_can_be_merged():
    same = changed(
        ARCHITECTURE, image_tower__name="vit_base_patch16_224", logit_scale_init=1.0, text_tower__causal=True
    )
    assert Pair(made(0), made(1, same, transparency="white", exif="ignore")).notes == []


def test_checkpoints_of_two_formats_can_be_merged(tmp_path: Path):
    folder = folder_of("transformers_clip", tmp_path / "folder")
    first = openslip.load(folder)
    second = openslip.load(folder)
    for weight in second.model.parameters():
        weight.data.mul_(1.5)
    write(second, tmp_path / "second.ckpt")
    out = tmp_path / "out.safetensors"
    assert main([str(folder), str(tmp_path / "second.ckpt"), "--alpha", "0.5", "--out", str(out)]) == 0
    merged = openslip.load(out).model.state_dict()
    for name, weight in first.model.named_parameters():
        expected = ((weight.double() + (weight * 1.5).double()) / 2).float()
        assert torch.equal(merged[name], expected), name


def test_running_statistics_and_integer_buffers_are_mentioned():
    architecture = changed(ARCHITECTURE, image_tower__name="resnet18", image_tower__arguments=RESNET["arguments"])
    bundles = made(0, architecture), made(1, architecture)
    layers = [layer for layer in bundles[1].model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert Pair(*bundles).notes == [
        f"batch norm: the running statistics of {len(layers)} layers are averaged as well; they only approximate those "
        "that the merged model would have on images"
    ]
    for layer in layers[:2]:
        layer.num_batches_tracked += 5  # pyright: ignore[reportOperatorIssue]
    note = Pair(*bundles).notes[1]
    assert note.startswith("integer buffers differ and are those of the first checkpoint (alpha 1: of the second): ")
    assert note.endswith("num_batches_tracked and 1 more")


def test_words_that_are_no_setting_of_the_evaluations_are_refused(tmp_path: Path, files: tuple[Path, Path]):
    words = [*map(str, files), "--alpha", "0.5", "--out", str(tmp_path / "out")]
    for word, message in (
        ("checkpoint=x", "each merged checkpoint is evaluated"),
        ("more", "expected two checkpoints"),
        ("device=cpu", "no evaluation is chosen"),
        ("evaluation=buildin", "evaluation"),
    ):
        with pytest.raises(UserError, match=message):
            main([*words, word])
    assert not (tmp_path / "out").exists()


def test_an_earlier_table_is_replaced_only_with_force(tmp_path: Path, files: tuple[Path, Path]):
    (tmp_path / "merge.json").write_text("mine")
    with pytest.raises(UserError, match=r"merge\.json exists: add --force"):
        main([*map(str, files), "--alpha", "0:1:0.5", "--out", str(tmp_path), "evaluation=builtin"])
    assert (tmp_path / "merge.json").read_text() == "mine"


def test_the_best_alpha_has_the_highest_accuracy_or_the_lowest_loss(tmp_path: Path):
    better: dict[str, Any] = {"loss": "lower", "top1": "higher", "size": None}
    table = AlphaTable(tmp_path / "merge.json", ("a", "b"), {}, better)
    for alpha, value in (("0", 3.0), ("0.5", 1.0), ("1", 2.0)):
        record: dict[str, Any] = {"problems": []}
        records = {name: {**record, "headline_metric": name, "metrics": {name: value}} for name in better}
        table.add(Decimal(alpha), tmp_path / "x", records, {})
    best = {name: table.best(name) for name in better}
    assert best == {
        "loss": {"metric": "loss", "value": 1.0, "alphas": [0.5]},
        "top1": {"metric": "top1", "value": 3.0, "alphas": [0.0]},
        "size": None,
    }


def test_alphas_are_evaluated_as_by_openslip_eval_and_a_failure_keeps_the_other_rows(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OPENSLIP_CACHE", str(tmp_path / "cache"))
    for place, name in enumerate(CLASSNAMES):
        for number in range(4):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Pictures(28)[place + 7 * number].image)
    settings = ["evaluation=folder", f"evaluation.folder.source.root={tmp_path}/images", "templates=[a {}.]"]
    settings += ["evaluation.folder.num_workers=0", "device=cpu", "feature_cache=null"]
    plain_run = Suite.run

    def run(suite: Suite, *arguments: Any) -> dict[str, Any]:
        if "alpha-0.5" in suite.checkpoint:
            raise MemoryError("no memory")
        return plain_run(suite, *arguments)

    monkeypatch.setattr(Suite, "run", run)
    assert main([*map(str, files), "--alpha", "0:1:0.25", "--out", str(tmp_path / "out"), *settings]) == 1
    printed = capsys.readouterr()
    assert "error: alpha 0.50: folder: MemoryError: no memory" in printed.err
    content = json.loads((tmp_path / "out/merge.json").read_text())
    rows = {row["alpha"]: row for row in content["rows"]}
    assert list(rows) == [0, 0.25, 0.5, 0.75, 1]
    assert (content["a"], content["b"]) == tuple(map(str, files))
    top1 = {alpha: row["metrics"]["folder"]["top1"] for alpha, row in rows.items() if alpha != 0.5}
    best = max(top1.values())
    where = [alpha for alpha, value in top1.items() if value == best]
    assert content["best"] == {"folder": {"metric": "top1", "value": best, "alphas": where}}
    assert f"folder: best top1 {best:.2f} % at alpha {', '.join(f'{alpha:g}' for alpha in where)}" in printed.out
    assert rows[0.5]["errors"] == {"folder": "MemoryError: no memory"}
    for file, alpha in ((files[0], 0), (files[1], 1), (tmp_path / "out/alpha-0.25.safetensors", 0.25)):
        assert eval_command.main([f"checkpoint={file}", *settings, f"output={tmp_path}/one.json"]) == 0
        assert json.loads((tmp_path / "one.json").read_text())["metrics"] == rows[alpha]["metrics"]
    assert len(set(top1.values())) > 1
