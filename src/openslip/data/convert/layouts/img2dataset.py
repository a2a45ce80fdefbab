"""Output of img2dataset: folders 00000/ with 000000000.jpg, .txt and .json, or tar files of such folders."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from openslip.data.captions.decoding import is_damaged, text_of
from openslip.data.captions.policy import listed, merged, not_texts
from openslip.data.convert.delimited import checked_encoding
from openslip.data.convert.record import NOT_A_TEXT, LeftOut, Picture, PictureFile, PictureSlice, Record, not_decoded
from openslip.data.image.formats import IMAGE_SUFFIXES
from openslip.data.index.tar import SPARSE, Problems, map_shard, plain_name, walk
from openslip.data.listing import is_hidden, visible_files
from openslip.errors import UserError

TEXTS = ("txt", "json", "cls")


def records(root: Path, *, encoding: str | None = None) -> Iterator[Record | LeftOut]:
    """Yield records in the order of names, with the sample's txt and json, and its cls if another tool has added one.

    Args:
        root: output_folder of img2dataset.
        encoding: encoding of .txt files without a byte-order mark, such as latin-1; by default UTF-8.
    """
    checked_encoding(encoding)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected img2dataset's output_folder")
    parts = [path for path in sorted(root.iterdir()) if path.is_dir() or path.suffix == ".tar"]
    parts = [path for path in parts if not is_hidden(path.name)]
    if not parts:
        raise UserError(f"{root} holds no folders and no .tar files, as img2dataset's output does")
    for part in parts:
        yield from of_folder(part, encoding) if part.is_dir() else of_tar(part, encoding)


def of_folder(folder: Path, encoding: str | None) -> Iterator[Record | LeftOut]:
    groups = defaultdict[str, dict[str, Path]](dict)
    for path in visible_files(folder):
        suffix = path.suffix[1:].lower()
        if suffix in (*IMAGE_SUFFIXES, *TEXTS):
            groups[path.stem][suffix] = path
    for key, members in groups.items():
        pictures = [PictureFile(str(members[suffix])) for suffix in IMAGE_SUFFIXES if suffix in members]
        texts = {suffix: members[suffix].read_bytes() for suffix in TEXTS if suffix in members}
        yield from sample(key, pictures, texts, encoding)


def of_tar(path: Path, encoding: str | None) -> Iterator[Record | LeftOut]:
    with map_shard(path, str(path)) as data:
        groups = defaultdict[str, dict[str, slice]](dict)
        problems = Problems()
        for raw, start, size in walk(str(path), data, problems):
            full = plain_name(raw.decode("utf-8", "replace"))
            if full is None:
                yield LeftOut(repr(raw), "bad name (leads out of its folder)")
                continue
            folder, slash, name = full.rpartition("/")
            stem, _, suffix = name.partition(".")
            if any(map(is_hidden, folder.split("/"))):
                continue
            if stem and suffix.lower() in (*IMAGE_SUFFIXES, *TEXTS):
                groups[folder + slash + stem].setdefault(suffix.lower(), slice(start, start + size))
        for _ in range(problems.counts[SPARSE]):
            yield LeftOut(f"{path.name}:{problems.first[SPARSE]}", SPARSE)
        for key, members in groups.items():
            places = [members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members]
            pictures = [PictureSlice(str(path), place.start, place.stop - place.start) for place in places]
            texts = {suffix: data[members[suffix]] for suffix in TEXTS if suffix in members}
            yield from sample(key, pictures, texts, encoding)


def sample(
    key: str, pictures: Sequence[Picture], texts: dict[str, bytes], encoding: str | None
) -> Iterator[Record | LeftOut]:
    if not pictures:
        yield LeftOut(key, "missing image")
        return
    try:
        fields = json.loads(text_of(texts.get("json", b"{}")))
        label = int(text_of(texts["cls"])) if "cls" in texts else None
    except (ValueError, RecursionError):
        fields, label = None, None
    if not isinstance(fields, dict):
        yield LeftOut(key, "json or cls that cannot be read")
        return
    first = [text_of(texts["txt"], encoding or "utf-8")] if "txt" in texts else listed(fields.get("caption"))
    listed_texts = listed(fields.get("captions"))
    written = merged(first, listed_texts)
    captions = tuple(text for text in written if not is_damaged(text))
    if len(captions) < len(written):
        yield LeftOut(f"a caption of {key}" if captions else key, not_decoded(encoding))
    if others := not_texts([*first, *listed_texts]):
        yield LeftOut(f"a caption of {key}", NOT_A_TEXT)
    if others or len(captions) < len(written):
        fields = {name: value for name, value in fields.items() if name not in ("caption", "captions")}
    if captions or not written:
        yield Record(key, pictures[0], captions, label, fields)
