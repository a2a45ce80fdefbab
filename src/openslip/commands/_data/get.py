"""Say how a dataset for evaluation is obtained, and fetch it if possible: openslip data get fashion_mnist."""

import argparse
import sys
from pathlib import Path

from openslip.commands._data._options import add_quiet
from openslip.commands._imports import importing_pytorch
from openslip.terminal import be_quiet, say, say_wrapped

ASK_ABOVE = 1_000_000_000  # bytes: a person is asked before larger downloads


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data get", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of a dataset; without it, all are listed")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder in which the dataset's folder is made; by default the one that the environment variable "
        "EVALUATION_DATA names or, if it is not set, data/evaluation",
    )
    parser.add_argument("--yes", action="store_true", help="download more than 1 GB without asking")
    parser.add_argument("--config-dir", metavar="DIR", help="your own folder of configs; its catalogue/ is read too")
    add_quiet(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Print how a dataset is obtained, and make its folder if a public server has it; or list the catalogue."""
    options = parser().parse_args(arguments)
    be_quiet(options.quiet)

    from openslip.config.folder import config_dirs, config_folder
    from openslip.config.help import columns
    from openslip.config.obtain import data_folder, find, obtainable

    folders, root = [config_folder(), *config_dirs(arguments)[0]], options.to or data_folder()
    if options.name is None:
        entries = obtainable(folders)
        rows = {f"{entry.name:26} {entry.state(root)}": f"{entry.size}, {entry.meaning}" for entry in entries}
        say_wrapped("openslip data get NAME says how a dataset is obtained, and fetches it:")
        say(*columns(rows, 37))
        return 0
    entry = find(options.name, folders)
    rows = {"content": entry.content, "licence": entry.licence, "owner's size": entry.size, "page": entry.page}
    if entry.evaluation:
        rows["evaluate it"] = f"openslip eval checkpoint=CHECKPOINT evaluation={entry.evaluation}"
    say_wrapped(f"{entry.name}: {entry.meaning}")
    say(*columns(rows, 13))
    if entry.layouts:
        title = f"layouts below {root} (EVALUATION_DATA=DIR names another folder):"
        say_wrapped(title, *(f"  {row}" for row in entry.layouts))
    if entry.folder is None:
        say_wrapped("it is not fetched: download it by hand from the page, into one of the layouts")
        return 0
    folder = root / entry.folder
    if entry.state(root) == "present":
        say(f"present: {folder}")
        return 0
    with importing_pytorch():
        from openslip.config.build import build
        from openslip.data.get.folder import create

    def agree(num_bytes: int) -> None:
        """Say how much will be downloaded, and ask a person at a terminal about a large download."""
        from openslip.errors import UserError

        say(f"download: {num_bytes / 1e6:,.1f} MB into {folder}")
        is_asked = num_bytes > ASK_ABOVE and not options.yes and sys.stdin.isatty() and sys.stdout.isatty()
        if is_asked and input("download it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise UserError("nothing was downloaded; --yes downloads without asking")

    create(build(entry.fetcher, f"catalogue.{entry.name}.fetcher"), folder, agree)
    say(f"fetched: {folder}")
    return 0
