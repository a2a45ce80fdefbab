"""Files of openai/CLIP: features as recorded, and hostile archives refused."""

import hashlib
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_towers import BOTH, FOLDER, TOLERANCE, assert_as_recorded, deviations, recorded
from torch import Tensor

import openslip
from openslip.errors import UserError
from openslip.inference.formats import openai
from openslip.inference.formats.openslip import write
from openslip.inference.layouts import openai as layout
from openslip.inference.torchscript import read_tensors
from openslip.models import text_transformer
from openslip.run import file_sizes
from openslip.text.bare_ids import BareIds

ARCHIVE = FOLDER / "openai_vit_archive.pt"
FILES = [
    ("openai_vit.pt", "openai_vit"),
    ("openai_vit_archive.pt", "openai_vit"),
    ("openai_resnet.pt", "openai_resnet"),
]


@pytest.mark.parametrize(("file", "name"), FILES)
def test_features_are_the_recorded_ones_and_stay_after_strip(file: str, name: str, tmp_path: Path):
    bundle = openslip.load(FOLDER / file)
    assert_as_recorded(bundle, name, BOTH)
    write(bundle, tmp_path / "stripped.safetensors")
    again = openslip.load(tmp_path / "stripped.safetensors")
    assert_as_recorded(again, name, BOTH)
    assert again.tokenizer is not None
    assert bundle.tokenizer is not None
    assert again.tokenizer.settings() == bundle.tokenizer.settings()
    assert again.transform.settings() == bundle.transform.settings()


def test_preprocessing_is_that_of_the_published_loader():
    settings = openslip.load(FOLDER / "openai_vit.pt").transform.settings()
    assert settings["size"] == 32
    assert settings["interpolation"] == "bicubic"
    assert settings["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert settings["std"] == [0.26862954, 0.26130258, 0.27577711]


def test_a_model_with_clips_number_of_ids_has_clips_tokenizer_and_another_model_says_that_it_has_none(
    capsys: pytest.CaptureFixture,
):
    tokenizer = layout.tokenizer({"vocab_size": 49408, "context_length": 77})
    ids, lengths = tokenizer.encode(["a photo", "word " * 100])
    assert lengths.tolist() == [4, 77]
    assert ids[1, -1] == 49407  # a truncated text keeps its end token
    bundle = openslip.load(FOLDER / "openai_vit.pt")
    assert isinstance(bundle.tokenizer, BareIds)
    assert "vocabulary of 60 ids is not CLIP's and not in its file" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"texts cannot be encoded: .*60 ids"):
        bundle.encode_text(["a photo"])


def test_choices_that_the_file_answers_must_agree():
    assert_as_recorded(
        openslip.load(FOLDER / "openai_vit.pt", activation="quickgelu", text_heads=1), "openai_vit", BOTH
    )
    with pytest.raises(UserError, match=r"activation=gelu: the file says quick_gelu"):
        openslip.load(FOLDER / "openai_vit.pt", activation="gelu")
    with pytest.raises(UserError, match=r"text_heads=3 does not divide the width 64"):
        openslip.load(FOLDER / "openai_vit.pt", text_heads=3)


def test_a_width_that_does_not_tell_its_heads_asks_for_them(tmp_path: Path):
    state = torch.load(FOLDER / "openai_vit.pt", weights_only=True)
    state["visual.class_embedding"] = torch.ones(100)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt: width 100 does not tell the number of image_heads.*--image-heads"):
        openslip.load(tmp_path / "odd.pt")


def test_the_hash_of_a_published_file_names_it(monkeypatch: pytest.MonkeyPatch):
    assert openslip.load(ARCHIVE).provenance == {}
    assert len(openai.PUBLISHED) == 9
    monkeypatch.setitem(openai.PUBLISHED, hashlib.sha256(ARCHIVE.read_bytes()).hexdigest(), "ViT-B/32")
    assert openslip.load(ARCHIVE).provenance == {"published": "OpenAI CLIP ViT-B/32"}


def faults() -> dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Any]]]:
    def change(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], Any]:
        convert = layout.convert

        def changed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            state = convert(weights)
            return state | {name: value(state[name])}

        return lambda patch: patch.setattr(layout, "convert", changed)

    def swap(patch: pytest.MonkeyPatch) -> None:
        convert = layout.convert
        a, b = "text_tower.blocks.0.ln_1.weight", "text_tower.blocks.0.ln_2.weight"
        patch.setattr(layout, "convert", lambda w: (s := convert(w)) | {a: s[b], b: s[a]})

    def heads(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(openai, "heads", lambda path, name, width, chosen: width // 32)

    def pooled(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(BareIds, "lengths", lambda self, ids: ids.argmax(dim=1))

    quick = text_transformer.ACTIVATIONS
    return {
        "projection transposed": ("text_features", change("text_projection", lambda p: p.flatten().view(p.T.shape).T)),
        "image projection negated": ("image_features", change("image_projection", lambda p: -p)),
        "two norms swapped": ("text_features", swap),
        "other heads": ("image_features", heads),
        "other activation": ("text_features", lambda patch: patch.setitem(quick, "quick_gelu", quick["gelu"])),
        "other epsilon": ("image_features", lambda patch: patch.setattr(layout, "NORM_EPS", 1e-3)),
        "pooled one before": ("text_features", pooled),
    }


@pytest.mark.parametrize("fault", list(faults()))
def test_a_planted_fault_moves_the_features(fault: str, monkeypatch: pytest.MonkeyPatch):
    moved, plant = faults()[fault]
    plant(monkeypatch)
    differing = deviations(openslip.load(FOLDER / "openai_vit.pt"), recorded("openai_vit"))
    assert differing[moved] > 10 * TOLERANCE


def test_missing_unexpected_and_misshaped_weights_are_counted_and_named(tmp_path: Path):
    state = torch.load(FOLDER / "openai_vit.pt", weights_only=True)
    del state["ln_final.bias"]
    torch.save(state | {"visual.extra": torch.ones(2), "text_projection": torch.ones(64, 31)}, tmp_path / "odd.pt")
    with pytest.raises(UserError) as caught:
        openslip.load(tmp_path / "odd.pt")
    assert "of 50 weights matched; 1 missing: text_tower.ln_final.bias; 1 unexpected: visual.extra" in str(caught.value)
    state = torch.load(FOLDER / "openai_vit.pt", weights_only=True)
    torch.save(state | {"context_length": torch.tensor(77)}, tmp_path / "size.pt")
    with pytest.raises(UserError, match=r"size\.pt: context_length is 77, and its weights have 12"):
        openslip.load(tmp_path / "size.pt")


# Hostile archives

ROOT = "openai_vit_archive"


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], *, compress: bool = False) -> Path:
    """Write the archive with changed members."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class Runs:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call, self.arguments


def pickled(value: Any) -> Callable[[dict[str, bytes]], None]:
    data = value if isinstance(value, bytes) else pickle.dumps(value, 2)
    return lambda members: members.update({f"{ROOT}/data.pkl": data})


def replaced(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        assert old in members[f"{ROOT}/data.pkl"]
        members[f"{ROOT}/data.pkl"] = members[f"{ROOT}/data.pkl"].replace(old, new, 1)

    return change


def cycle() -> bytes:
    module = b"c__torch__\nA\n)\x81q\x00"
    return b"\x80\x02" + module + b"}X\x01\x00\x00\x00ah\x00sb."


def nested(depth: int) -> bytes:
    """Pickle a tuple of two equal tuples of two equal tuples and so on: `depth` memo entries, 2 ** `depth` leaves."""
    return b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(depth))


DEPTH = 12  # harmless; each ten levels more would take a thousand times the time and memory
STORAGE = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x00\x03tQ"
REBUILD = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02" + nested(DEPTH) + b"Q.", "a persistent id is no storage"),
        (b"\x80\x02(X\x07\x00\x00\x00storage" + nested(DEPTH) + b"X\x00\x00\x00\x00h\x00K\x00tQ.", "is no storage"),
        (REBUILD + STORAGE + b"K\x00" + nested(DEPTH) + b")tR.", "not given by its storage, offset, size and stride"),
        (b"\x80\x02}" + nested(DEPTH) + b"K\x01s.", "a key that TorchScript does not have"),
        (b"\x80\x02}(" + nested(DEPTH) + b"K\x01u.", "a key that TorchScript does not have"),
        (b"\x80\x02ccollections\nOrderedDict\n]" + nested(DEPTH) + b"K\x01\x86a\x85R.", "cannot be read"),
    ],
)
def test_tuples_that_share_their_parts_are_neither_printed_nor_hashed(data: bytes, message: str, tmp_path: Path):
    file = rewritten(tmp_path / "hostile.pt", pickled(data))
    with pytest.raises(UserError, match=message):
        read_tensors(file)


def test_tensors_that_share_one_storage_may_not_be_far_larger_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = b"K\x00M\x00\x03\x85K\x01\x85tR"
    tensor = REBUILD[2:-1] + b"(" + STORAGE + whole
    module = b"\x80\x02c__torch__\nA\n)\x81}(" + b"".join(b"X\x01\x00\x00\x00%c" % n + tensor for n in range(97, 123))
    file = rewritten(tmp_path / "shared.pt", pickled(module + b"ub."))
    assert len(read_tensors(file)) == 26
    monkeypatch.setattr(file_sizes, "SLACK", 0)
    monkeypatch.setattr(file_sizes, "EXPANSION", 1)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("constants.pkl", b""), ("data.pkl", module + b"ub."), ("data/0", bytes(3072))):
            archive.writestr(f"a/{name}", content)
    assert file.stat().st_size < 26 * 3072
    with pytest.raises(UserError, match=r"shared\.pt: its tensors claim 0\.1 MB"):
        read_tensors(file)


def test_tensors_of_one_storage_have_their_own_parts_of_it(tmp_path: Path):
    """Rows 1 and 2 of a matrix of 4 columns, and its transpose, as TorchScript writes views."""
    views = [b"K\x04K\x02K\x04\x86K\x04K\x01\x86tR", b"K\x00K\x04K\x02\x86K\x01K\x04\x86tR"]
    tensors = [REBUILD[2:-1] + b"(" + STORAGE + view for view in views]
    items = b"".join(b"X\x01\x00\x00\x00%c" % name + tensor for name, tensor in zip(b"ab", tensors, strict=True))
    found = read_tensors(rewritten(tmp_path / "views.pt", pickled(b"\x80\x02c__torch__\nA\n)\x81}(" + items + b"ub.")))
    with zipfile.ZipFile(ARCHIVE) as archive:
        values = np.frombuffer(archive.read(f"{ROOT}/data/0"), np.float32)
    np.testing.assert_array_equal(found["a"], values[4:12].reshape(2, 4))
    np.testing.assert_array_equal(found["b"], values[:8].reshape(2, 4).T)


def test_a_long_name_and_a_large_pickle_are_refused(tmp_path: Path):
    module = b"\x80\x02c__torch__\nA\n)\x81}X\xe9\x03\x00\x00" + b"a" * 1001 + b"K\x01sb."
    with pytest.raises(UserError, match=r"no string of up to 1000 characters"):
        read_tensors(rewritten(tmp_path / "name.pt", pickled(module)))
    with pytest.raises(UserError, match=r"larger than 4,194,304 bytes"):
        read_tensors(rewritten(tmp_path / "large.pt", pickled(b"\x80\x02N." + bytes(4 << 20))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pickled(Runs(shutil.rmtree, "/nowhere")), r"names shutil\.rmtree, which could run code"),
        (pickled(Runs(eval, "1/0")), r"names __builtin__\.eval, which could run code"),
        (pickled(b"\x80\x02cbuiltins\ngetattr\n."), r"names builtins\.getattr"),
        (replaced(b"ctorch\nFloatStorage\n", b"ctorch\nUntypedStorage\n"), r"names torch\.UntypedStorage"),
        (pickled(b"\x80\x02cposix\nsystem\n."), r"names posix\.system"),
        (pickled(b"\x80\x04\x8c\x05posix\x8c\x06system\x93."), r"cannot be read as a TorchScript archive"),
        (pickled(b"\x80\x02r\xff\xff\xff\x7f."), r"cannot be read"),  # a memo of 2 billion entries
        (pickled(b"\x80\x02K\x01}b."), r"which only a module has"),
        (pickled(cycle()), r"contains itself"),
        (pickled(b""), r"cannot be read"),
        (pickled([1, 2]), r"contains itself or is none"),
        (lambda members: members.update({f"{ROOT}/data/0": b"0"}), r"data/0 has 1 bytes; expected 768"),
        (lambda members: members.pop(f"{ROOT}/data/0"), r"cannot be read"),
        (replaced(b"K\x0cK@t", b"K\xffK@t"), r"does not fit its storage"),
        (replaced(b"K@K\x01t\x88", b"K\xffK\x01t\x88"), r"cannot be read"),  # a stride beyond the storage
    ],
)
def test_a_hostile_archive_is_refused_by_name(
    change: Callable[[dict[str, bytes]], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("code of the archive was run")

    monkeypatch.setattr(shutil, "rmtree", run)
    monkeypatch.setattr(torch.jit, "load", run)
    file = rewritten(tmp_path / "hostile.pt", change)
    with pytest.raises(UserError, match=rf"hostile\.pt.*{message}"):
        openslip.load(file)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path):
    bomb = {f"{ROOT}/data/0": bytes(200_000_000)}
    file = rewritten(tmp_path / "bomb.pt", lambda members: members.update(bomb), compress=True)
    assert file.stat().st_size < 2_000_000
    with pytest.raises(UserError, match=r"bomb\.pt.*compressed"):
        openslip.load(file)


def test_a_cut_off_archive_is_refused(tmp_path: Path):
    (tmp_path / "cut.pt").write_bytes(ARCHIVE.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut\.pt"):
        openslip.load(tmp_path / "cut.pt")
