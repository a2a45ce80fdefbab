"""Interpolate two checkpoints (WiSE-FT): openslip merge A B --alpha 0:1:0.1 --out FOLDER evaluation=builtin."""

import argparse
import shlex
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from openslip.commands._choices import add_choices, choices_of
from openslip.commands._imports import importing_pytorch
from openslip.errors import UserError
from openslip.inference.endings import ENDINGS
from openslip.progress import progress
from openslip.terminal import mention, say

# Keys of `openslip eval` that have another meaning here, or none.
NOT_TAKEN = {
    "checkpoint": "each merged checkpoint is evaluated",
    "output": "--out names the place of the results",
    "allow": "give --allow",
    "format": "the formats of A and B are detected",
    "activation": "give --activation",
    "image_heads": "give --image-heads",
    "text_heads": "give --text-heads",
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "openslip merge",
        description="Interpolate the weights of two checkpoints of one model, (1 - alpha) * A + alpha * B, as WiSE-FT "
        "does (Wortsman et al., arXiv:2109.01903).",
    )
    parser.add_argument("first", metavar="A", help="a run's folder, a checkpoint, or a published name")
    parser.add_argument(
        "second",
        metavar="B",
        help="another checkpoint of the same architecture, given in the same ways; usually fine-tuned from A",
    )
    parser.add_argument("--alpha", required=True, help="weight of B: a number, a list 0,0.5,1, or a range 0:1:0.1")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="OUT",
        help="folder for one file per alpha, alpha-0.5.safetensors; or, for one alpha, a file to write "
        "(.safetensors, .ckpt, .pt, .pth)",
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.add_argument(
        "--allow", action="append", default=[], help="import path of your own class that the checkpoints may name"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="also use your own folder of configs")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="evaluate each alpha: evaluation=NAME and other settings of openslip eval",
    )
    add_choices(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Write one checkpoint per alpha; if evaluations are chosen, print a table of their metrics and the best alpha."""
    options = parser().parse_intermixed_args(arguments)
    refuse_settings(options.settings)

    with importing_pytorch():
        from openslip.commands._alpha_evaluations import evaluate, opened_table
        from openslip.inference.load import load
        from openslip.inference.merge import Pair, alphas
    numbers = alphas(options.alpha)
    files, results = places(options.out, numbers)
    refuse_existing([*files, results] if options.settings else files, force=options.force)
    folder = [] if options.config_dir is None else ["--config-dir", options.config_dir]
    parents = options.first, options.second
    table = opened_table([*folder, *options.settings], results, parents) if options.settings else None
    with progress("loading the checkpoints"):
        first, second = (load(path, allow=options.allow, **choices_of(options)) for path in parents)
        pair = Pair(first, second, options.allow)
    say(*pair.notes)
    has_failed = False
    try:
        for number, file in zip(numbers, files, strict=True):
            with progress(f"merging with alpha {number:f}"):
                bundle = pair.write(number, file)
            say(f"alpha {number:f}: {file} (float32)")
            if table is not None:
                has_failed |= not evaluate(number, bundle, table)
    finally:  # what is finished is shown even if a file cannot be written
        if table is not None and table.rows:
            table.show()
    if table is None:
        mention(f"next: openslip eval {shlex.quote(f'checkpoint={files[-1]}')} evaluation=NAME")
    return int(has_failed)


def refuse_settings(settings: Sequence[str]) -> None:
    """Refuse words that are no setting of the evaluations, and settings that have no meaning here."""
    for word in settings:
        key, equals, _ = word.lstrip("+").partition("=")
        if not equals:
            raise UserError(f"{word}: expected two checkpoints, options, and settings such as evaluation=builtin")
        if key in NOT_TAKEN:
            raise UserError(f"{word}: not a setting of openslip merge; {NOT_TAKEN[key]}")
    if settings and not any(word.lstrip("+").startswith("evaluation=") for word in settings):
        raise UserError(f"{settings[0]}: no evaluation is chosen; add evaluation=NAME, such as evaluation=builtin")


def places(out: Path, numbers: Sequence[Decimal]) -> tuple[list[Path], Path]:
    """Return the file of each alpha, and the file of the evaluations' results.

    Raises:
        UserError: several alphas and one file, or a name with the ending of another kind of file.
    """
    if out.suffix[1:].isalpha() and out.suffix.lower() not in ENDINGS and not out.is_dir():
        raise UserError(
            f"--out {out}: expected a file that ends in {', '.join(ENDINGS)}, or a folder such as {out.stem}"
        )
    if out.suffix.lower() not in ENDINGS:
        return [out / f"alpha-{number:f}.safetensors" for number in numbers], out / "merge.json"
    if len(numbers) > 1:
        raise UserError(f"--out {out}: {len(numbers)} alphas need a folder, such as --out {out.with_suffix('')}")
    return [out], out.with_name(f"{out.name}-merge.json")


def refuse_existing(files: Sequence[Path], *, force: bool) -> None:
    """Refuse to replace files, unless that is asked for."""
    if folders := [file for file in files if file.is_dir()]:
        raise UserError(f"{folders[0]} is a folder, and a file of this name is to be written: give another --out")
    existing = [file for file in files if file.exists()]
    if existing and not force:
        which = f"{existing[0]} exists" if len(existing) == 1 else f"{existing[0]} and {len(existing) - 1} more exist"
        raise UserError(f"{which}: add --force to replace existing files, or give another --out")
