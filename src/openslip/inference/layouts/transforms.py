"""Image preprocessing of the published models: mean and standard deviation, interpolation, resize."""

from typing import Any

OPENAI: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
}
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# The loaders of these projects drop transparency, and do not turn images upright.
AS_PUBLISHED: dict[str, Any] = {"transparency": "ignore", "exif": "ignore"}
