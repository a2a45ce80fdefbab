"""What some checkpoint files do not state, so that the user must give it: activation and numbers of attention heads."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from openslip.errors import UserError

T = TypeVar("T")

HEAD_WIDTH = 64  # channels of an attention head in OpenAI's builder, and open_clip's default

# Names that a user gives, and the names of our models and of timm.
ACTIVATIONS = {"quickgelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Choices:
    """Answers to what a file does not say; None leaves the question to the file.

    Args:
        allow: import paths of your own model and tokenizer classes that the file may name.
        activation: activation of the MLPs: `quickgelu`, `gelu` or `gelu_tanh`.
        image_heads: number of attention heads of the image tower.
        text_heads: number of attention heads of the text tower.

    Raises:
        UserError: a value is not possible.
    """

    allow: Collection[str] = ()
    activation: str | None = None
    image_heads: int | None = None
    text_heads: int | None = None

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise UserError(f"activation={self.activation}: expected one of {', '.join(ACTIVATIONS)}")
        for name in ("image_heads", "text_heads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UserError(f"{name}={value}: expected a number of attention heads, at least 1")

    def need_activation(self) -> str:
        """Return the chosen activation by its name in our models; raise if none was chosen.

        Raises:
            UserError: no activation was chosen.
        """
        if self.activation is None:
            raise UserError(
                "the file does not say its activation: give --activation quickgelu (OpenAI, MetaCLIP and most others "
                'named "quickgelu") or --activation gelu, or --activation gelu_tanh (its approximation by tanh)'
            )
        return ACTIVATIONS[self.activation]

    def check_activation(self, stated: str) -> str:
        """Return the activation that the file states; raise if another one was chosen.

        Args:
            stated: `quick_gelu`, `gelu` or `gelu_tanh`.

        Raises:
            UserError: another activation was chosen.
        """
        agree("activation", stated, None if self.activation is None else ACTIVATIONS[self.activation])
        return stated


def agree(name: str, stated: T, chosen: T | None) -> T:
    """Return what the file states; raise if the user chose something else.

    Raises:
        UserError: the file and the user differ.
    """
    if chosen is not None and chosen != stated:
        raise UserError(f"{name}={chosen}: the file says {stated}; leave {name} out")
    return stated


def heads(path: Path, name: str, width: int, chosen: int | None, *, known: Collection[int] | None = None) -> int:
    """Return the number of attention heads: the chosen one, or one per 64 channels.

    Args:
        path: the file, for the error.
        name: `image_heads` or `text_heads`.
        width: width of the tower.
        chosen: number that the user chose; None if none.
        known: widths at which one head per 64 channels is assumed if none is chosen; None: at every width, as in
            OpenAI's builder.

    Raises:
        UserError: no number is chosen and the width does not tell it, or the width is not divisible by the number.
    """
    option = name.replace("_", "-")
    if chosen is None and width % HEAD_WIDTH:
        raise UserError(
            f"checkpoint {path}: width {width} does not tell the number of {name} (not a multiple of {HEAD_WIDTH}); "
            f"give --{option}"
        )
    if chosen is None and known is not None and width not in known:
        raise UserError(
            f"checkpoint {path}: width {width} does not tell the number of {name} (heads of this width need not have "
            f"{HEAD_WIDTH} channels); give --{option} (16 in the models H, g, bigG and SO400M of open_clip)"
        )
    number = chosen or width // HEAD_WIDTH
    if width % number:
        raise UserError(
            f"checkpoint {path}: {name}={number} does not divide the width {width}; give another --{option}"
        )
    return number
