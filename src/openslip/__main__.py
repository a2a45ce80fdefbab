"""`openslip COMMAND`: finds `commands/COMMAND.py` by its name, before any slow import."""

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable

from openslip import __version__, progress, signals, slurm, streams, terminal
from openslip.commands import commands
from openslip.commands._imports import importing_pytorch
from openslip.config.folder import config_dirs
from openslip.config.help import columns, help_text
from openslip.errors import UserError, described, run_entry_point

HYDRA = ("train", "eval", "plan")  # commands that take config overrides, and options that print the config
# Environment variables of PyTorch's allocator: first the one that PyTorch names now, then its older names.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
INTERRUPTED = 130  # the exit code that shells give a process after SIGINT
PRINTING = {"--cfg", "-c", "--info", "-i"}  # options that print the config instead of using it
# Commands whose result is in files, not on stdout.
LEAVE_FILES = ("train", "eval", "sweep", "report", "data", "strip", "merge", "export")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    if arguments is None:
        arguments = sys.argv[1:]
        streams.prepare(stdout_is_product=prints_its_product(arguments))
    sys.exit(run(arguments))


def prints_its_product(arguments: list[str]) -> bool:
    """Whether a command's result is what it prints, as with `data list` and `data check` but not `data convert`."""
    if PRINTING & {word.partition("=")[0] for word in arguments}:
        return True
    if arguments[:2] in (["data", "list"], ["data", "check"]):
        return True
    if arguments[:1] == ["reproduce"]:  # with NAME and without --run, it trains or stores; letters are only shown
        names = [word for word in arguments[1:] if not word.startswith("-")]
        return all(len(name) == 1 for name in names[:1]) or is_given("--run", arguments)
    return not is_given("--output", arguments) and arguments[:1] not in [[command] for command in LEAVE_FILES]


def is_given(option: str, arguments: list[str]) -> bool:
    """Whether an option is among the arguments, also in a shorter form, which argparse understands."""
    given = {word.partition("=")[0] for word in arguments}
    return any(option.startswith(word) for word in given if word[:2] == "--" and len(word) > 2)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; a user's mistake prints one line and returns 1."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        show_commands("openslip", commands())
        return 0
    if command in ("-V", "--version"):
        print(__version__)
        return 0
    if command not in commands():
        near = difflib.get_close_matches(command, commands(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(commands())}"
        print(f"error: unknown command {command}; {hint}", file=sys.stderr)
        return 1
    if command in (*HYDRA, "sweep") and {"-h", "--help"} & set(rest):
        print(help_text(command, commands()[command], config_dirs(rest)[0]))
        return 0
    if command in HYDRA and PRINTING & {word.partition("=")[0] for word in rest}:
        show = importlib.import_module("openslip.config.show").main
        return run_entry_point(functools.partial(show, "eval" if command == "eval" else "train"), rest)
    if command == "train" and {"-m", "--multirun"} & set(rest):
        command, rest = "sweep", [word for word in rest if word not in ("-m", "--multirun")]
    if command == "train":
        signals.catch()  # first, because a scheduler's signal would kill the process during the slow imports
    use_expandable_segments()
    terminal.be_quiet("quiet=true" in rest)
    with progress.showing_progress(is_first=slurm.is_first_task()):
        try:
            return run_entry_point(lambda words: entry_of(command)(words), rest)
        except SystemExit as stop:  # argparse has printed the reason
            return 1 if stop.code == 2 else int(stop.code or 0)
        except KeyboardInterrupt:  # only of commands that have nothing to save; training catches the signal
            terminal.notice("interrupted")
            return INTERRUPTED


def entry_of(command: str) -> Callable[[list[str]], int | None]:
    """Import a command and return its entry point.

    Raises:
        UserError: PyTorch, or a package that needs it, cannot be imported.
    """
    if command not in HYDRA:  # the others import PyTorch only after they have read their options
        return importlib.import_module(f"openslip.commands.{command}").main
    with importing_pytorch():
        try:
            return importlib.import_module(f"openslip.commands.{command}").main
        except (ImportError, OSError, RuntimeError) as error:  # such as a torchvision of another torch
            raise UserError(
                f"{described(error)}: a package does not load; `openslip doctor` says which one and what to install "
                "(debug=true shows the traceback)"
            ) from error


def use_expandable_segments() -> None:
    """Let PyTorch's CUDA allocator grow its segments, unless the user has configured the allocator.

    Batches of varying size, such as captions of varying length, then cause no fragmentation of device memory. PyTorch
    reads the environment when it starts, and supports this on Linux only.
    """
    if sys.platform == "linux" and not {*ALLOCATOR} & os.environ.keys():
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def show_commands(program: str, commands: dict[str, str]) -> None:
    """Print the help text that lists all commands."""
    print(f"usage: {program} COMMAND ...\n", *columns(commands, 10), f"\n{program} COMMAND --help says more.", sep="\n")


if __name__ == "__main__":
    main()
