"""What the configs say, for tests that need the published numbers."""

from openslip.config.build import build
from openslip.config.compose import compose_config
from openslip.data.image.augment import SimCLRAugment


def simclr_augment() -> SimCLRAugment:
    """With the published strengths."""
    return build(compose_config("train", [])[0]["views"]["strong"]["augment"])
