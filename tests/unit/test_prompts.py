"""Prompt ensembles against loops, and the lists of names and templates."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_models import CLASSNAMES, TEMPLATES, bundle, dual_encoder, tokenizer
from torch.utils.flop_counter import FlopCounterMode

from openslip.errors import UserError
from openslip.evaluation import features
from openslip.evaluation.features import text_features
from openslip.inference import bundle as bundle_module
from openslip.inference.imagenet_prompts import imagenet_classnames, imagenet_templates
from openslip.inference.prompts import class_embeddings, read_lines, templates_of, texts_of
from openslip.models.dual_encoder import DualEncoder


def encode(model: DualEncoder) -> Callable[[list[str]], torch.Tensor]:
    return lambda texts: text_features(bundle(model), texts)


def test_class_embeddings_equal_a_float64_loop_over_padded_prompts():
    model = dual_encoder().double()
    ours = class_embeddings(encode(model), CLASSNAMES, TEMPLATES)
    for row, name in zip(ours, CLASSNAMES, strict=True):
        mean = [0.0] * 12
        for template in TEMPLATES:
            text, length = tokenizer().encode([template.format(name)])
            with torch.no_grad():
                feature = model.encode_text(text, length)[0].tolist()
            norm = math.sqrt(sum(x * x for x in feature))
            mean = [m + x / norm / len(TEMPLATES) for m, x in zip(mean, feature, strict=True)]
        norm = math.sqrt(sum(x * x for x in mean))
        np.testing.assert_allclose(row.numpy(), [x / norm for x in mean], rtol=0, atol=1e-12)


@pytest.mark.parametrize("placeholder", ["{label}", "{0}", "{classname}"])
def test_a_template_with_another_placeholder_is_refused(placeholder: str):
    with pytest.raises(UserError, match=rf"\{placeholder} would stay in the prompts; write \{{\}} for the class name"):
        texts_of([f"a {{}} photo of {placeholder}."], "templates")
    assert texts_of(["a photo of {}, {3 cm} wide."], "templates") == ["a photo of {}, {3 cm} wide."]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_texts_come_back_in_their_order_for_any_batch_size(batch_size: int, monkeypatch: pytest.MonkeyPatch):
    model = dual_encoder().double()
    texts = ["a", "a b c d e f g", "a b", "the same", "x y z x y z x y z", "the same"]
    alone = torch.cat([encode(model)([text]) for text in texts])
    monkeypatch.setattr(features, "TEXTS_PER_BATCH", batch_size)
    torch.testing.assert_close(encode(model)(texts), alone, rtol=0, atol=1e-12)
    monkeypatch.setattr(bundle_module, "BATCH_SIZE", batch_size)
    torch.testing.assert_close(bundle(model).encode_text(texts).double(), alone, rtol=0, atol=1e-6)


def test_texts_cost_no_more_beside_longer_ones(monkeypatch: pytest.MonkeyPatch):
    model, texts = dual_encoder(), ["a"] * 8 + ["one two three four five six seven eight nine"] * 8

    def flops(batch_size: int) -> int:
        monkeypatch.setattr(features, "TEXTS_PER_BATCH", batch_size)
        with FlopCounterMode(display=False) as counter:
            encode(model)(texts)
        return counter.get_total_flops()

    assert flops(16) == flops(8)


def test_a_name_with_braces_is_taken_as_it_is():
    model = dual_encoder()
    ours = class_embeddings(encode(model), ["set {a}"], ["a {}"])
    torch.testing.assert_close(ours, encode(model)(["a set {a}"]))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["a {}"], "classnames is empty"),
        (["dog"], [], "templates is empty"),
        (["dog"], ["a {}", "a photo"], "'a photo' has no {}"),
    ],
)
def test_useless_prompts_are_refused(names: list[str], templates: list[str], message: str):
    with pytest.raises(UserError, match=message):
        class_embeddings(encode(dual_encoder()), names, templates)


def test_imagenet_lists_equal_open_clips():
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES  # noqa: PLC0415

    assert imagenet_classnames() == list(IMAGENET_CLASSNAMES)
    assert len(imagenet_classnames()) == 1000
    assert imagenet_templates(80) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert imagenet_templates(7)[0] == "itap of a {}."
    assert (len(imagenet_templates(80)), len(imagenet_templates(7))) == (80, 7)
    assert set(imagenet_templates(7)) < set(imagenet_templates(80))
    assert imagenet_templates(1) == ["a photo of a {}."]


def test_imagenet_lists_do_not_import_open_clip():
    code = (
        "import sys; from openslip.inference.imagenet_prompts import imagenet_classnames; imagenet_classnames(); "
        "sys.exit('open_clip' in sys.modules)"
    )
    source = Path(__file__).parents[2] / "src"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}).returncode == 0


def test_another_number_of_imagenet_templates_is_refused():
    with pytest.raises(UserError, match="count=8: expected 80, 7 or 1"):
        imagenet_templates(8)


def test_lines_are_read_whole_and_stripped(tmp_path: Path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffdog\r\n caf\u00e9 table \nhot dog\n\n".encode())
    assert read_lines(file) == ["dog", "caf\u00e9 table", "hot dog"]
    assert read_lines(str(file)) == read_lines(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"dog\n\ncat\n", "line 2 is blank"),
        (b"\ndog\n", "line 1 is blank"),
        (b"dog\n\xff\n", "line 2: not UTF-8"),
        ("dog\ncat".encode("utf-16-le"), "not UTF-8"),
        (b"- dog\n- cat\n", "its lines are like '- dog': expected plain text, one name per line"),
        (b'["dog", "cat"]', "plain text"),
        (b"0,dog\n1,cat\n", "plain text"),
        (b"0: dog\n1: cat\n", "plain text"),
        (b"n01440764\ttench\nn01443537\tgoldfish", "plain text"),
        (b'"dog"\n"cat"\n', "plain text"),
        (b"dog;cat", "plain text"),
        (b"dog, cat\n", "plain text"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_lines(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_list_is_decoded_by_its_byte_order_mark(tmp_path: Path, encoding: str):
    (tmp_path / "names.txt").write_bytes("dog\rcaf\u00e9".encode(encoding))
    assert read_lines(tmp_path / "names.txt") == ["dog", "caf\u00e9"]


def test_names_with_commas_and_numbers_are_plain(tmp_path: Path):
    names = ["tench, Tinca tinca", "3 wheeler", "t-shirt", "rock 'n' roll"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert read_lines(tmp_path / "names.txt") == names
    (tmp_path / "templates.txt").write_text("a {}, a type of pet.")
    assert texts_of(tmp_path / "templates.txt", "templates") == ["a {}, a type of pet."]


def test_a_missing_list_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.txt: cannot be read \(No such file"):
        read_lines(tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_lines(tmp_path)


def test_templates_from_python_are_one_string_or_any_collection_and_a_set_is_sorted(tmp_path: Path):
    words = [f"{letter} {{}}." for letter in "hgfedcba"]
    assert templates_of(set(words)) == templates_of(frozenset(words)) == sorted(words)
    assert templates_of(words) == templates_of(tuple(words)) == templates_of(iter(words)) == words
    assert templates_of("a {}, or two {}.") == ["a {}, or two {}."]
    assert templates_of("imagenet7") == imagenet_templates(7)
    (tmp_path / "prompts.txt").write_text("a {}.\nthe {}.")
    assert templates_of(tmp_path / "prompts.txt") == ["a {}.", "the {}."]
    with pytest.raises(UserError, match="templates=a photo: no such file"):
        templates_of("a photo")
