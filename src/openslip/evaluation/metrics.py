"""Metrics of classification, computed from labels and scores. Every metric is in per cent."""

import numpy as np
from jaxtyping import Bool, Float


def expected_calibration_error(
    probabilities_top: Float[np.ndarray, " samples"], is_right: Bool[np.ndarray, " samples"], bins: int = 15
) -> float:
    """Return the mean over samples of the distance between accuracy and mean probability in the sample's bin.

    Guo et al. 2017, arXiv:1706.04599, equation 3, with their 15 bins of equal width; the upper bound belongs to a bin.

    Args:
        probabilities_top: probability of each sample's predicted class, from 0 to 1.
        is_right: whether that class is the true one.
        bins: number of bins.
    """
    place = np.ceil(probabilities_top.astype(np.float64) * bins).astype(np.int64).clip(1, bins) - 1
    excess = np.bincount(place, weights=is_right - probabilities_top.astype(np.float64), minlength=bins)
    return 100 * float(np.abs(excess).sum()) / len(is_right)
