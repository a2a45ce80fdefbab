"""List the datasets that data=NAME takes, and which of them are on disk: openslip data list."""

import argparse

from openslip.terminal import say, say_wrapped


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("openslip data list", description=__doc__)
    parser.add_argument("--config-dir", metavar="DIR", help="also list the datasets of your own folder of configs")
    return parser


def main(arguments: list[str]) -> int:
    """Print one line per data config: whether its shards are on disk, where they are looked for, and what it is.

    The licences of what `openslip data get` fetches follow.
    """
    parser().parse_args(arguments)

    from openslip.config.catalogue import datasets, fetched_licences
    from openslip.config.folder import config_dirs, config_folder
    from openslip.config.help import columns

    rows, folders = {}, [config_folder(), *config_dirs(arguments)[0]]
    for dataset in datasets(folders):
        needs = ", ".join(dataset.places) or "data.source.shards=..."
        rows[f"{dataset.name:11} {dataset.state()}"] = f"{needs}: {dataset.meaning}"
    say_wrapped("datasets: openslip train data=NAME; OPENSLIP_DATA=DIR names another folder than data")
    say(*columns(rows, 26), "", "docs/DATA.md says how to download and convert them", "")
    rows = fetched_licences(folders)
    say_wrapped("openslip data get NAME fetches these, with the licences that their owners state:")
    say(*columns(rows, 20))
    return 0
