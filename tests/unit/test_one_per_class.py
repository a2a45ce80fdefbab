"""One captioned image per class of a labelled dataset, for retrieval."""

import pytest
from evaluation_models import CLASSNAMES, Pictures

from openslip.data.sources.one_per_class import OnePerClass
from openslip.errors import UserError


def named(count: int, labels: list[int | None]) -> Pictures:
    source = Pictures(count, labels=labels)
    source.classes = CLASSNAMES
    return source


def test_the_first_image_of_each_class_has_the_name_of_its_class():
    source = OnePerClass(named(6, [4, 4, 0, 4, 2, 0]))
    samples = [source[index] for index in range(len(source))]
    assert [(sample.key, sample.captions) for sample in samples] == [
        ("picture2", (CLASSNAMES[0],)),
        ("picture4", (CLASSNAMES[2],)),
        ("picture0", (CLASSNAMES[4],)),
    ]
    assert samples[0].image == source.source[2].image
    assert source.fingerprint != source.source.fingerprint


def test_a_source_without_names_or_labels_is_refused():
    with pytest.raises(UserError, match="the source has no class names"):
        OnePerClass(Pictures(3))
    with pytest.raises(UserError, match="sample 'picture1' has no label"):
        OnePerClass(named(2, [0, None]))
