"""The number of samples of a published split, which reveals another split or an incomplete dataset."""

from openslip.errors import UserError


def samples_note(title: str, num_samples: int, expected: int | list[int] | None) -> str:
    """Compare a source's length with the published split: return `N of M` for an incomplete one, else an empty text.

    Args:
        title: name of the evaluation in the error message.
        num_samples: length of the source.
        expected: number of samples of the published split; a list if there are several; None if it is not known.

    Raises:
        UserError: there are more samples than in any published split, so that the source is another split.
    """
    known = sorted([expected] if isinstance(expected, int) else expected or [])
    if not known or num_samples in known:
        return ""
    if num_samples > known[-1]:
        published = " or ".join(map(str, known))
        raise UserError(
            f"{title}: the source has {num_samples} samples, the published split has {published}: give the source of "
            "that split, or set expected_samples=null"
        )
    return f"{num_samples} of {next(number for number in known if number > num_samples)}"
