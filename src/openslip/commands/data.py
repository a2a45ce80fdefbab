"""List, get, convert, index and check datasets: openslip data list | get | convert | index | check | vectors."""

import argparse
import importlib
from pathlib import Path

from openslip.commands import commands
from openslip.config.help import columns
from openslip.errors import UserError
from openslip.terminal import say


def main(arguments: list[str]) -> int:
    """Run one of the data commands."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        listed = columns(data_commands(), 8)
        say("usage: openslip data COMMAND ...", "", *listed, "", "openslip data COMMAND --help says more.")
        return 0
    if command not in data_commands():
        raise UserError(f"unknown command data {command}; one of: {', '.join(data_commands())}")
    return importlib.import_module(f"openslip.commands._data.{command}").main(rest)


def data_commands() -> dict[str, str]:
    """Return each data command with its purpose, without importing any."""
    return commands(Path(__file__).parent / "_data")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each data command."""
    return {name: importlib.import_module(f"openslip.commands._data.{name}").parser() for name in data_commands()}
