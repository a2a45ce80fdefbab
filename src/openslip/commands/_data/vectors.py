"""Make word vectors from a dataset's captions: openslip data vectors shards --output vectors.txt."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from openslip.commands._data._options import TARGET, add_quiet, count, open_source
from openslip.commands._imports import importing_pytorch
from openslip.progress import progress
from openslip.terminal import be_quiet, mention, say


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data vectors", description=__doc__)
    parser.add_argument("target", nargs="+", help=TARGET)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="text file to write, in GloVe's format"
    )
    parser.add_argument(
        "--width",
        type=count,
        default=64,
        metavar="N",
        help="numbers per vector, 64 by default; a model that reads the vectors needs embed_dim=N (with the text tower "
        "text_vectors: vector_width=N)",
    )
    parser.add_argument(
        "--min-count",
        type=count,
        default=1,
        metavar="N",
        help="words in fewer than N captions get no vector; 1 by default",
    )
    parser.add_argument(
        "--max-words", type=count, default=5000, metavar="N", help="most frequent words to take, 5000 by default"
    )
    add_quiet(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Write word vectors that are learned from all captions of a dataset."""
    options = parser().parse_args(arguments)
    be_quiet(options.quiet)

    with importing_pytorch():
        from openslip.text.ppmi import learn
        from openslip.text.word_vectors import write_vectors

    source = open_source(options.target, "caption")
    with progress("captions", total=len(source)) as advance:

        def captions() -> Iterator[str]:
            for index in range(len(source)):
                yield from source[index].captions
                advance(1)

        made = learn(captions(), width=options.width, min_count=options.min_count, max_words=options.max_words)
    write_vectors(options.output, made)
    used = int(made.vectors.any(axis=0).sum())
    say(f"{len(made.words)} words, {used} of {options.width} columns not zero: {options.output}")
    mention(f"next: openslip train model=devise_tiny tokenizer.vectors={options.output}")
    return 0
