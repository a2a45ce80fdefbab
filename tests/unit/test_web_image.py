"""Images with an http(s) address: what is read, and every limit."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder
from image_server import image_server

from openslip.errors import UserError
from openslip.inference import web_image
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.images import to_image
from openslip.inference.web_image import download

IMAGE = Pictures(1)[0].image


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with image_server({"/a.png": IMAGE, "/%C3%BC%20b.png": IMAGE, "/page": b"<html></html>"}) as address:
        yield address


def test_an_address_is_the_image_that_it_serves(root: str):
    model = bundle(dual_encoder())
    expected = model.encode_image([IMAGE])
    for address in (f"{root}/a.png", f"{root.replace('http', 'HTTP')}/a.png?size=3#x", f"{root}/to/{root}/a.png"):
        assert torch.equal(model.encode_image(address), expected)
        assert torch.equal(model.encode_image([IMAGE, address]), model.encode_image([IMAGE, IMAGE]))
    classify = ZeroShotClassifier(model, ["cat", "dog"])
    assert classify(f"{root}/a.png") == classify(IMAGE)


def test_letters_and_spaces_of_an_address_are_encoded_once(root: str):
    assert download(f"{root}/\u00fc b.png") == download(f"{root}/%C3%BC%20b.png") == IMAGE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "HTTP 404 Not Found"),
        ("to/file:///etc/passwd", "HTTP 302"),
        ("to/ftp://127.0.0.1/a.png", "unknown url type: ftp"),
        ("silent", "no answer in time"),
        ("endless", "more than 0 MB"),
        ("huge", "more than 0 MB"),
        ("short", "it broke off after 60 bytes"),
    ],
)
def test_what_is_not_sent_whole_and_in_time_is_refused_by_name(
    path: str, reason: str, root: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web_image, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(web_image, "MAX_BYTES", 20_000)
    with pytest.raises(UserError) as error:
        to_image(f"{root}/{path}")
    message = str(error.value)
    assert message.startswith(f"image {root}/{path}: cannot be downloaded ({reason}")
    assert message.endswith("; check the address, or give a file")


def test_a_download_that_takes_too_long_is_refused(root: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web_image, "MAX_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"/endless: cannot be downloaded \(longer than 0 s\)"):
        to_image(f"{root}/endless")


def test_a_page_is_no_image(root: str):
    with pytest.raises(UserError, match=r"image http://127\.0\.0\.1:\d+/page: cannot be decoded \(not an image"):
        to_image(f"{root}/page")


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:1/a.png?key=secret", "http://me:secret@[", "https://"])
def test_no_error_shows_a_password(address: str):
    with pytest.raises(UserError, match=r"image .*: cannot be downloaded") as error:
        to_image(address)
    assert "secret" not in json.dumps(str(error.value))


def test_other_protocols_are_paths(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(IMAGE)
    for address in (f"file://{tmp_path}/a.png", "ftp://127.0.0.1/a.png"):
        with pytest.raises(UserError, match="no such file"):
            to_image(address)
