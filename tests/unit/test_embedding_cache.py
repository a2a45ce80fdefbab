"""Class embeddings are computed once for the same weights, labels and templates, and again for any others."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder
from safetensors import safe_open
from safetensors.torch import load, save

from openslip.inference import embedding_cache
from openslip.inference.bundle import Bundle
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.embedding_cache import cached_embeddings
from openslip.inference.prompts import class_embeddings
from openslip.inference.wrapped import WrappedTokenizer
from openslip.text.clip_bpe import ClipBpe

LABELS = ["cat", "dog", "red fox"]
TEMPLATES = ["a {}.", "the {}."]


class Counted:
    """Counts the prompts that bundles encode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encode, self.prompts = Bundle.encode_text, 0

        def counting(bundle: Bundle, texts: Any) -> torch.Tensor:
            self.prompts += len(texts)
            return encode(bundle, texts)

        monkeypatch.setattr(Bundle, "encode_text", counting)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(embedding_cache, "_memory", WeakKeyDictionary())
    return Counted(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what is in memory, as another process does."""
    monkeypatch.setattr(embedding_cache, "_memory", WeakKeyDictionary())


def test_a_second_classifier_encodes_nothing_and_ranks_the_same(counted: Counted):
    model, image = bundle(dual_encoder()), Pictures(1)[0].image
    first = ZeroShotClassifier(model, LABELS, TEMPLATES)
    assert counted.prompts == 6
    second = ZeroShotClassifier(replace(model), list(LABELS), set(TEMPLATES))
    assert counted.prompts == 6
    assert first(image) == second(image)
    assert torch.equal(first.classes, class_embeddings(model.encode_text, LABELS, TEMPLATES))


def test_other_weights_labels_templates_or_settings_are_encoded_again(counted: Counted):
    model = bundle(dual_encoder())
    keep_end = {"context_length": 24, "special_text": "plain"}

    def new(bundle: Bundle, labels: list[str] = LABELS, templates: list[str] = TEMPLATES) -> bool:
        before = counted.prompts
        cached_embeddings(bundle, labels, templates)
        return counted.prompts > before

    assert new(model)
    assert not new(model)
    assert new(model, LABELS[::-1])
    assert new(model, LABELS, TEMPLATES[::-1])
    assert new(model, ["cat", "dog red fox", ""][:2])
    assert new(replace(model, tokenizer=ClipBpe(truncation="drop_end", **keep_end)))
    assert new(replace(model, architecture={"text_tower": {"heads": 1}}))
    with torch.no_grad():
        model.model.image_projection.add_(1)  # no text feature depends on it
        model.model.logit_scale.add_(1)
    assert not new(model)
    for weight in (model.model.text_projection, model.model.text_tower.token_embedding.weight.data):
        with torch.no_grad():
            weight.view(-1)[0] += 1e-3
        assert new(model)


def test_any_weight_counts_in_a_class_of_the_user(counted: Counted):
    class Own(type(dual_encoder())):
        """Its text features may depend on any of its weights."""

    model = bundle(dual_encoder())
    model.model.__class__ = Own
    cached_embeddings(model, LABELS, TEMPLATES)
    with torch.no_grad():
        model.model.image_projection.add_(1)
    cached_embeddings(model, LABELS, TEMPLATES)
    assert counted.prompts == 12


def test_another_process_reads_the_file_which_holds_tensors_only(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = cached_embeddings(bundle(dual_encoder()), LABELS, TEMPLATES, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    with safe_open(path, "pt") as file:
        assert file.metadata() is None
        assert {*file.keys()} == {"classes", "sha256"}
    forget(monkeypatch)
    assert torch.equal(cached_embeddings(bundle(dual_encoder()), LABELS, TEMPLATES, tmp_path / "cache"), expected)
    assert counted.prompts == 6


@pytest.mark.parametrize("part", ["model", "tower", "tokenizer"])
def test_code_of_the_user_is_never_cached_in_a_file(part: str, counted: Counted, tmp_path: Path):
    model = bundle(dual_encoder())
    changed: Any = {"model": model.model, "tower": model.model.text_tower, "tokenizer": model.tokenizer}[part]
    changed.__class__ = type("Own", (type(changed),), {"__module__": "my_code"})
    cached_embeddings(model, LABELS, TEMPLATES, tmp_path)
    cached_embeddings(model, LABELS, TEMPLATES, tmp_path)
    assert counted.prompts == 6
    assert not [*tmp_path.iterdir()]


def test_a_tokenizer_of_another_library_is_known_in_memory_only(counted: Counted, tmp_path: Path):
    def wrapped(text: str) -> WrappedTokenizer:
        return WrappedTokenizer(
            lambda texts: ours.encode([text for _ in texts]), context_length=24, vocab_size=9, invert=str, origin="hf:x"
        )

    model, ours = bundle(dual_encoder()), bundle(dual_encoder()).need_tokenizer()
    one, other = (replace(model, tokenizer=wrapped(text)) for text in ("one", "other"))
    first = cached_embeddings(one, LABELS, TEMPLATES, tmp_path)
    assert torch.equal(cached_embeddings(one, LABELS, TEMPLATES, tmp_path), first)
    assert counted.prompts == 6
    assert not torch.equal(cached_embeddings(other, LABELS, TEMPLATES, tmp_path), first)
    assert not [*tmp_path.iterdir()]


def damaged(content: bytes) -> dict[str, bytes]:
    stored = load(content)
    flipped = bytearray(content)
    flipped[-40 if content.rfind(b"classes") > content.rfind(b"sha256") else -1] ^= 1
    return {
        "empty": b"",
        "cut": content[:-5],
        "bit": bytes(flipped),
        "other": save({"classes": stored["classes"]}),
        "shape": save({**stored, "classes": stored["classes"][:2].contiguous()}),
        "half": save({**stored, "classes": stored["classes"].half()}),
        "pickle": b"\x80\x04N.",
    }


@pytest.mark.parametrize("kind", ["empty", "cut", "bit", "other", "shape", "half", "pickle"])
def test_a_damaged_file_is_ignored_and_written_again(
    kind: str, counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = cached_embeddings(bundle(dual_encoder()), LABELS, TEMPLATES, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damaged(whole)[kind])
    forget(monkeypatch)
    assert torch.equal(cached_embeddings(bundle(dual_encoder()), LABELS, TEMPLATES, tmp_path), expected)
    assert counted.prompts == 12
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    cached_embeddings(bundle(dual_encoder()), LABELS, ["one {}."], tmp_path / "file" / "cache")
    assert "could not be written" in capsys.readouterr().err


def test_the_files_used_last_are_kept(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_cache, "MOST_FILES", 2)
    model = bundle(dual_encoder())
    for place, label in enumerate(("a", "b", "a", "c", "a")):
        forget(monkeypatch)
        before = {*tmp_path.iterdir()}
        cached_embeddings(model, [label], TEMPLATES, tmp_path)
        for path in {*tmp_path.iterdir()} - before:
            os.utime(path, (place, place))
    assert counted.prompts == 2 * 3  # "a" was used after "b", which made room for "c"
    assert len([*tmp_path.iterdir()]) == 2


def test_the_newest_embeddings_are_kept_in_memory(counted: Counted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_cache, "MOST_IN_MEMORY", 2)
    model = bundle(dual_encoder())
    for label, prompts in (("a", 2), ("b", 4), ("c", 6), ("b", 6), ("c", 6), ("a", 8)):
        assert cached_embeddings(model, [label], TEMPLATES).shape[0] == 1
        assert counted.prompts == prompts, label


def test_a_file_of_another_version_is_not_read(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached_embeddings(bundle(dual_encoder()), LABELS, TEMPLATES, tmp_path)
    forget(monkeypatch)
    monkeypatch.setattr(embedding_cache, "__version__", "0.0.0")
    cached_embeddings(bundle(dual_encoder()), LABELS, TEMPLATES, tmp_path)
    assert counted.prompts == 12
