"""What `openslip.load` returns, the formats it knows, and the classes that a file may name."""

import re
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder
from PIL import Image
from versions import OLD_TORCH

import openslip
from openslip.data.image.decode import open_image
from openslip.errors import UserError
from openslip.inference import formats
from openslip.inference.architecture import build_model, build_tokenizer
from openslip.inference.bundle import Bundle
from openslip.inference.files import read, write
from openslip.inference.formats.openslip import FORMAT, describe
from openslip.inference.formats.openslip import write as write_bundle
from openslip.inference.strip import strip
from openslip.training.checkpoint_io import DurableCheckpointIO

TEXTS = ["a red ring", "one", "there is a large striped blue cross here", "a red ring"]


def images(count: int) -> list[bytes]:
    return [Pictures(count)[index].image for index in range(count)]


def architecture() -> dict:
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    tower = {"_target_": "openslip.models.timm_tower.TimmTower", "name": "vit_small_patch16_224", "image_size": 16}
    return {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": {**tower, "arguments": arguments}}


def small_bundle() -> Bundle:
    torch.manual_seed(0)
    return Bundle(
        build_model(architecture()), None, bundle(image_encoder()).transform, architecture(), torch.device("cpu")
    )


def test_features_are_of_unit_length_in_the_order_of_what_was_given():
    model = bundle(dual_encoder())
    together, alone = model.encode_text(TEXTS), torch.cat([model.encode_text([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    files = images(5)
    pixels = torch.stack([model.transform(open_image(file, "")) for file in files])
    features = model.encode_image(files)
    torch.testing.assert_close(features, model.encode_image(pixels), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))


def test_similarity_is_the_cosine_of_every_image_with_every_text():
    model = bundle(dual_encoder())
    found = model.similarity(images(3), TEXTS)
    for row, image in zip(found, model.encode_image(images(3)).tolist(), strict=True):
        for cosine, text in zip(row.tolist(), model.encode_text(TEXTS).tolist(), strict=True):
            assert cosine == pytest.approx(sum(a * b for a, b in zip(image, text, strict=True)), abs=1e-6)


def test_images_may_be_paths_bytes_or_pil_images(tmp_path: Path):
    model, file = bundle(dual_encoder()), images(1)[0]
    (tmp_path / "a.png").write_bytes(file)
    with Image.open(tmp_path / "a.png") as picture:
        features = model.encode_image([tmp_path / "a.png", str(tmp_path / "a.png"), file, picture])
    assert all(torch.equal(features[0], other) for other in features[1:])


def test_one_string_in_place_of_texts_is_refused():
    with pytest.raises(
        UserError, match=r"expected a list of texts, got the string 'a red ring': write \['a red ring'\]"
    ):
        bundle(dual_encoder()).encode_text("a red ring")


@pytest.mark.parametrize("other", [None, 5, b"a red ring"])
def test_what_is_no_text_is_refused(other: Any):
    with pytest.raises(UserError, match=f"expected a list of texts, got {type(other).__name__} {other!r} in it"):
        bundle(dual_encoder()).encode_text(text for text in ("a red ring", other))


def test_no_texts_are_refused():
    with pytest.raises(UserError, match="no texts to encode: expected at least one"):
        bundle(dual_encoder()).encode_text([])


def test_texts_need_a_text_tower():
    with pytest.raises(UserError, match="ImageEncoder has neither"):
        bundle(image_encoder()).encode_text(TEXTS)


def test_training_modes_and_random_state_are_left_alone():
    model = bundle(dual_encoder().train())
    before = torch.get_rng_state()
    model.similarity(images(2), TEXTS)
    assert model.model.training
    assert model.model.image_tower.training
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_written_loads_with_the_same_features(tmp_path: Path):
    written = small_bundle()
    write_bundle(written, tmp_path / "model.ckpt")
    loaded = openslip.load(tmp_path / "model.ckpt")
    assert torch.equal(loaded.encode_image(images(3)), written.encode_image(images(3)))
    assert loaded.architecture == written.architecture


@pytest.fixture
def run_checkpoint(tmp_path: Path) -> Path:
    """A run's checkpoint of a small model, with its JSON and the link `last.ckpt`."""
    small, path = small_bundle(), tmp_path / "checkpoints" / "step-000020.ckpt"
    path.parent.mkdir()
    entry = {**describe(small.architecture, None, small.transform), "step": 20}
    state = {f"model.{name}": tensor for name, tensor in small.model.state_dict().items()}
    io = DurableCheckpointIO()
    io.save_checkpoint({"openslip": entry, "state_dict": state}, path)
    assert io.wait() is None
    return path


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path):
    bundle = small_bundle()
    for value in (1.0, 2.0):
        bundle.model.image_tower.trunk.norm.bias.data.fill_(value)
        write_bundle(bundle, tmp_path / "model.pt")
        assert (openslip.load(tmp_path / "model.pt").model.image_tower.trunk.norm.bias == value).all()


def test_a_damaged_checkpoint_that_is_given_by_its_file_is_refused_by_name(run_checkpoint: Path):
    whole = run_checkpoint.read_bytes()
    assert same_weights(openslip.load(run_checkpoint))
    for place in np.random.default_rng(0).integers(0, len(whole), 20).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        run_checkpoint.write_bytes(damaged)
        for path in (run_checkpoint, run_checkpoint.with_name("last.ckpt")):
            with pytest.raises(UserError, match=r"step-000020\.ckpt is damaged \(its content is not what was written"):
                openslip.load(path)


def test_a_checkpoint_file_and_its_json_must_agree(run_checkpoint: Path):
    note = run_checkpoint.with_suffix(".json")
    kept = note.read_text()
    for text in ("{", kept.replace("20", "60", 1), "[]"):
        note.write_text(text)
        with pytest.raises(UserError, match=r"step-000020\.ckpt is damaged \(step-000020\.json"):
            openslip.load(run_checkpoint)
    note.write_text(kept)
    copies = [path.rename(path.with_stem("best")) for path in (run_checkpoint, note)]
    assert same_weights(openslip.load(copies[0]))  # under any name, while its JSON is beside it
    copies[0].write_bytes(copies[0].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        openslip.load(copies[0])
    copies[1].unlink()
    with pytest.raises(UserError, match=r"best\.ckpt: cannot be read as a checkpoint"):
        openslip.load(copies[0])


def test_a_json_of_another_kind_beside_a_stripped_file_is_left_alone(tmp_path: Path):
    write_bundle(small_bundle(), tmp_path / "small.ckpt")
    for text in ('{"top1": 31.2}', "[1]", "notes"):
        (tmp_path / "small.json").write_text(text)
        assert same_weights(openslip.load(tmp_path / "small.ckpt"))


def test_a_file_of_the_first_format_has_clips_tokenizer(tmp_path: Path):
    written = small_bundle()
    state = {f"model.{name}": tensor for name, tensor in written.model.state_dict().items()}
    settings = {"context_length": 12, "truncation": "drop_end", "special_text": "token"}
    entry = describe(written.architecture, None, written.transform) | {"format": 1, "tokenizer": settings}
    write(tmp_path / "old.ckpt", {"openslip": entry, "state_dict": state})
    tokenizer = openslip.load(tmp_path / "old.ckpt").tokenizer
    assert tokenizer is not None
    assert tokenizer.settings() == {**settings, "mask_token": False}


@pytest.mark.parametrize("number", [FORMAT + 1, "2", None, 0])
def test_a_format_number_that_is_not_known_is_refused(tmp_path: Path, number: object):
    entry = describe(architecture(), None, small_bundle().transform) | {"format": number}
    write(tmp_path / "new.ckpt", {"openslip": entry, "state_dict": {}})
    with pytest.raises(UserError, match=rf"has format {number}, and this version reads 1 to {FORMAT}"):
        openslip.load(tmp_path / "new.ckpt")


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A written model with something else in it."""
    write_bundle(small_bundle(), path)
    content = read(path)
    change(content)
    torch.save(content, path)
    return path


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


BOMB: list[Any] = [0]
for _ in range(60):
    BOMB = [BOMB, BOMB]
CLASS_TOKEN = "model.image_tower.trunk.cls_token"
WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{
        f"entry {type(value).__name__}": (
            put("openslip", value=value),
            f"its `openslip` entry is a {type(value).__name__}",
        )
        for value in ([1], "format", None, 3, torch.ones(2))
    },
    **{
        f"state {type(value).__name__}": (
            put("state_dict", value=value),
            f"its `state_dict` is a {type(value).__name__}",
        )
        for value in ([torch.ones(2)], None, "a", torch.ones(2))
    },
    "no state": (lambda content: content.pop("state_dict"), "its `state_dict` is a NoneType"),
    "int key": (put("state_dict", 3, value=torch.ones(1)), "`state_dict` holds 3, an entry from int to Tensor"),  # pyright: ignore
    "no tensor": (
        put("state_dict", CLASS_TOKEN, value=[0.0]),
        f"`state_dict` holds {CLASS_TOKEN}, an entry from str to list",
    ),
    "whole numbers": (
        put("state_dict", CLASS_TOKEN, value=torch.ones(1, 1, 24, dtype=torch.int64)),
        "its weight image_tower.trunk.cls_token is of torch.int64",
    ),
    "complex": (
        put("state_dict", CLASS_TOKEN, value=torch.ones(1, 1, 24, dtype=torch.complex64)),
        "its weight image_tower.trunk.cls_token is of torch.complex64",
    ),
    "sparse": (
        put("state_dict", CLASS_TOKEN, value=torch.ones(1, 1, 24).to_sparse()),
        "is in none of the known formats" if OLD_TORCH else "cannot be read",
    ),
    "meta": (put("state_dict", CLASS_TOKEN, value=torch.ones(1, 1, 24, device="meta")), "its weights do not fit"),
    "shape": (put("state_dict", CLASS_TOKEN, value=torch.ones(1, 1, 25)), "its weights do not fit"),
    "architecture": (put("openslip", "architecture", value=[[]]), "architecture describes no model"),
    "field": (put("openslip", "architecture", 3, value=1), "unexpected or missing fields for this version: 3"),  # pyright: ignore
    "tokenizer": (put("openslip", "tokenizer", value=[1]), "tokenizer is a list"),
    "tokenizer text": (put("openslip", "tokenizer", value="ClipBpe"), "tokenizer is a str"),
    **{
        f"{name} {value!r}": (put("openslip", "transform", name, value=value), "its `transform` is")
        for name, value in (
            *(("size", value) for value in (0, -1, 2.5, float("nan"), "x", 10**9)),
            *(("mean", value) for value in ([float("nan")] * 3, [0.5], "abc", 3, [[1], [2], [3]])),
            *(("std", value) for value in ([0.0] * 3, [float("inf")] * 3, [-1.0] * 3)),
            ("other", 1),
        )
    },
    "transform": (put("openslip", "transform", value=[1]), "its `transform` is"),
    "format": (put("openslip", "format", value={}), "its format is a dict"),
    "target": (put("openslip", "architecture", "_target_", value=["a"]), "names a _target_ that is a list"),
    "endless": (put("openslip", "architecture", value=BOMB), "architecture has more than 100,000 fields"),
    "endless transform": (put("openslip", "transform", value=BOMB), "its `transform` is [["),
    "depth": (
        put("openslip", "architecture", "image_tower", "arguments", "depth", value=10**9),
        "architecture is far larger than its weights: it names 1000000000",
    ),
    "many blocks": (
        put("openslip", "architecture", "image_tower", "arguments", "depth", value=10_000),
        "architecture is far larger than its weights: ",
    ),
    "width": (
        put("openslip", "architecture", "image_tower", "arguments", "embed_dim", value=9_600),
        "architecture is far larger than its weights: ",
    ),
    "image size": (
        put("openslip", "architecture", "image_tower", "image_size", value=8_000),
        "architecture is far larger than its weights: ",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_entry_that_is_wrong_is_one_error_that_names_file_and_entry(tmp_path: Path, case: str):
    change, message = WRONG[case]
    path = changed(tmp_path / "odd.ckpt", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"odd.ckpt.*{re.escape(message)}") as refusal:
        openslip.load(path)
    assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize("entry", ["architecture", "tokenizer"])
def test_an_entry_that_is_nested_too_deeply_is_named(tmp_path: Path, entry: str):
    path = changed(tmp_path / "deep.ckpt", put("openslip", entry, value="NEST"))
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as deep:
        for name, content in members.items():
            deep.writestr(name, content.replace(b"X\x04\x00\x00\x00NEST", b"]" * 10_000 + b"a" * 9_999))
    with pytest.raises(UserError, match=rf"deep\.ckpt: the checkpoint's {entry} is nested too deeply"):
        openslip.load(path)


def test_strip_writes_nothing_that_load_refuses(foreign: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(foreign))
    source = (foreign / "my_npz.py").read_text().replace("mean=[0.5] * 3", "mean=[float('nan')] * 3")
    (foreign / "odd_npz.py").write_text(source)
    target = foreign / "small.ckpt"
    target.write_bytes(b"as before")
    with pytest.raises(UserError, match="its `transform` is"):
        strip(foreign / "weights.npz", target, format="odd_npz", force=True)
    assert target.read_bytes() == b"as before"
    strip(foreign / "weights.npz", target, format="my_npz", force=True)
    assert same_weights(openslip.load(target))
    assert not list(foreign.glob(".*"))


def test_a_tokenizer_is_stored_with_its_class():
    tokenizer = bundle(dual_encoder()).tokenizer
    described = describe({}, tokenizer, small_bundle().transform)["tokenizer"]
    again = build_tokenizer(described)
    assert tokenizer is not None
    assert again is not None
    assert again.settings() == tokenizer.settings()


@pytest.mark.parametrize(
    "target", ["openslip.text.clip_bpe.Path", "openslip.data.sources.shards.ShardSource", "os.system"]
)
def test_a_file_cannot_name_another_class_as_its_tokenizer(target: str):
    with pytest.raises(UserError, match="refused"):
        build_tokenizer({"_target_": target})


def test_every_model_class_of_the_package_may_be_named_and_others_by_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tower = """
import torch
from openslip.models.tower import Tower
class Mean(Tower):
    def __init__(self, *, width):
        super().__init__()
        self.width = width
        self.linear = torch.nn.Linear(3, width)
    def tokens(self, x, /):
        raise NotImplementedError
    def forward(self, x, /):
        return self.linear(x.mean(dim=(2, 3)))
"""
    (tmp_path / "mean_tower.py").write_text(tower)
    monkeypatch.syspath_prepend(str(tmp_path))
    described = {**architecture(), "image_tower": {"_target_": "mean_tower.Mean", "width": 7}}
    with pytest.raises(UserError, match=r"allow it by name \(allow=\[mean_tower\.Mean\]\)"):
        build_model(described)
    assert "mean_tower" not in sys.modules  # refused before anything was imported
    assert build_model(described, ("mean_tower.Mean",)).image_tower.width == 7  # pyright: ignore


FOREIGN = '''
"""Weights in an npz of my own."""
import numpy as np
import torch
from openslip.data.image.eval_transform import EvalTransform
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle

def detect(path):
    return path.suffix == ".npz"

def read(path, choices):
    architecture = ARCHITECTURE
    model = build_model(architecture, choices.allow)
    with np.load(path, allow_pickle=False) as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    transform = EvalTransform(size=16, mean=[0.5] * 3, std=[0.5] * 3)
    return Bundle(model, None, transform, architecture, torch.device("cpu"))
'''


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "my_npz", raising=False)  # of another test, which has one of this name
    (tmp_path / "my_npz.py").write_text(FOREIGN.replace("ARCHITECTURE", repr(architecture())))
    arrays = {name: tensor.numpy() for name, tensor in small_bundle().model.state_dict().items()}
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **arrays)
    return tmp_path


def same_weights(loaded: Bundle) -> bool:
    ours = small_bundle().model.state_dict()
    return all(torch.equal(tensor, ours[name]) for name, tensor in loaded.model.state_dict().items())


def test_a_format_of_ones_own_is_a_module_that_reads(foreign: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(foreign))
    assert same_weights(openslip.load(foreign / "weights.npz", format="my_npz"))
    with pytest.raises(UserError, match="format=your_npz: cannot be imported"):
        openslip.load(foreign / "weights.npz", format="your_npz")


def test_a_file_in_the_folder_of_formats_is_found_by_content(foreign: Path, monkeypatch: pytest.MonkeyPatch):
    folder = foreign / "formats"
    shutil.copytree(Path(formats.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(foreign / "my_npz.py", folder)
    monkeypatch.setattr(formats, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(formats, "__path__", [str(folder)])
    assert "my_npz" in formats.names()
    assert same_weights(openslip.load(foreign / "weights.npz"))


def test_a_file_in_no_known_format_is_told_its_keys(tmp_path: Path):
    torch.save({"weights": {}, "epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"in none of the known formats \(.*openai, openslip, slip.*\); its keys: weights, epoch"
    ):
        openslip.load(tmp_path / "other.pt")


def test_a_bundle_reads_transparency_and_exif_as_it_says(tmp_path: Path):
    """Paths, bytes and PIL images alike."""
    drawing = Image.new("RGBA", (20, 20))
    drawing.save(tmp_path / "a.png")
    images = [tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), drawing, drawing.convert("LA")]
    bundle = small_bundle()
    plain = bundle.encode_image([Image.new("RGB", (20, 20), colour) for colour in ("white", "black")])
    assert not torch.allclose(plain[0], plain[1])
    for transparency, expected in ((None, plain[0]), ("white", plain[0]), ("ignore", plain[1])):
        for feature in bundle.reading(transparency=transparency).encode_image(images):
            assert torch.allclose(feature, expected)
    with pytest.raises(UserError, match="transparency=black: expected white or ignore"):
        bundle.reading(transparency="black")
    with pytest.raises(UserError, match=r"^PIL image: floating-point pixels"):
        bundle.encode_image([Image.new("F", (20, 20))])
