"""Print a script that completes commands, options and configs in a shell."""

import argparse
import importlib
import sys
from typing import Any

from openslip.commands import commands
from openslip.config.folder import config_folder, names
from openslip.config.help import GROUPS

SETTINGS = ("train", "eval", "plan", "sweep")  # commands whose arguments are config overrides, not argparse's
# shtab completes words of argparse. Overrides such as model=clip_tiny are words of Hydra, and bash divides them at "=".
BASH = """\
_openslip_{root}() {{
  local last=$((COMP_CWORD - 1)) group="" word="$1"
  if [[ $word == "=" ]]; then group="${{COMP_WORDS[last]}}" word=""
  elif [[ ${{COMP_WORDS[last]}} == "=" ]]; then group="${{COMP_WORDS[last - 1]}}"
  fi
  case "$group" in
{cases}
    "") compgen -W "{settings}" -- "$word" ;;
  esac
}}"""
ZSH = """\
_openslip_{root}() {{
  compadd -- {settings}
}}"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "openslip completion",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # others break a path at its hyphens
        description=__doc__,
        epilog="for bash:\n"
        "openslip completion bash > ~/.local/share/bash-completion/completions/openslip\n\n"
        "for zsh, in a folder of $fpath:\n"
        "openslip completion zsh > _openslip",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    return parser


def main(arguments: list[str]) -> int:
    """Print the script."""
    import shtab

    shell = parser().parse_args(arguments).shell
    functions: Any = {"bash": preamble(BASH), "zsh": preamble(ZSH)}
    sys.stdout.write(shtab.complete(all_commands(), shell, preamble=functions))
    return 0


def all_commands() -> argparse.ArgumentParser:
    """Return one parser with the arguments of every command, and what completes them."""
    from openslip.commands import data

    everything = argparse.ArgumentParser("openslip")
    everything.add_argument("-V", "--version", action="store_true", help="print the version")
    root = everything.add_subparsers()
    for name, purpose in commands().items():
        purpose = purpose.partition(":")[0]
        if name in SETTINGS:
            command = root.add_parser(name, help=purpose)
            completed_by(command.add_argument("--config-dir"), "directory")
            completed_by(command.add_argument("settings", nargs="*"), "eval" if name == "eval" else "train")
        elif name == "data":
            below = root.add_parser(name, help=purpose).add_subparsers()
            for part, arguments in data.parsers().items():
                add(below, part, arguments, data.data_commands()[part].partition(":")[0])
        else:
            add(root, name, importlib.import_module(f"openslip.commands.{name}").parser(), purpose)
    return everything


def add(root: Any, name: str, arguments: argparse.ArgumentParser, purpose: str) -> None:
    """Add a command's parser; all its arguments without choices complete files, because most of them are paths."""
    for action in root.add_parser(name, help=purpose, parents=[arguments], add_help=False)._actions:
        if action.choices is None and action.nargs != 0:
            completed_by(action, "file")


def completed_by(action: argparse.Action, kind: str) -> None:
    """Name what completes an argument: `file` or `directory`, or the function of a root config."""
    import shtab

    known = {"file": shtab.FILE, "directory": shtab.DIRECTORY}
    function = f"_openslip_{kind}"
    action.complete = known.get(kind, {"bash": function, "zsh": function})  # pyright: ignore[reportAttributeAccessIssue]


def preamble(template: str) -> str:
    """Fill in one function for each root config."""
    functions = []
    for root, groups in GROUPS.items():
        options = {group: names(group, [config_folder()]) for group in groups}
        cases = [f'    {group}) compgen -W "{" ".join(words)}" -- "$word" ;;' for group, words in options.items()]
        settings = " ".join(f"{group}={word}" for group, words in options.items() for word in words)
        functions.append(template.format(root=root, cases="\n".join(cases), settings=settings))
    return "\n".join(functions)
