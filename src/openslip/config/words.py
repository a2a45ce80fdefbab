"""Prepare words of the command line for Hydra's grammar, which would refuse or misread some values."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from openslip.config.defaults import is_choice
from openslip.config.folder import config_dirs
from openslip.errors import UserError, first_line

TEXTS = ("name", "runs_dir", "checkpoint", "output")  # keys whose value is always text, even if it looks like a number
PLACES = ("shards", "root", "path", "folder", "weights")  # for keys that end in these, a number may be a folder
DASHED = re.compile(r"--([+~]*[A-Za-z_][\w./@]*=.*)", re.DOTALL)  # a setting as W&B agents write it


def quoted(text: str) -> str:
    """Quote a text as one value of Hydra's grammar."""
    return QuotedString(text, Quote.double).with_quotes()


def split_words(arguments: Sequence[str]) -> tuple[list[Path], list[str], list[str]]:
    """Split a command line into folders of the user's configs, settings without leading dashes, and other options.

    Raises:
        UserError: a folder given by `--config-dir` does not exist.
    """
    folders, words = config_dirs(arguments)
    settings, options = [], []
    for word in words:
        if dashed := DASHED.fullmatch(word):
            settings.append(dashed[1])
        else:
            (options if word.startswith("-") else settings).append(word)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: no such folder")
    return folders, settings, options


def readable(word: str, folders: Sequence[Path], *, sweep: bool = False, remedy: str = "give one") -> str:
    """Rewrite a setting so that Hydra reads it as meant: paths and other texts are quoted if its grammar requires it.

    Args:
        word: a setting `key=value` or `~key`.
        folders: folders of the user's own configs.
        sweep: whether several values are allowed, one for each run of a sweep.
        remedy: advice in the error message if several values are not allowed.

    Raises:
        UserError: the word has another form, or several values where one is expected.
    """
    key, equals, text = word.partition("=")
    if not equals and not word.startswith("~"):
        raise UserError(f"{word}: not of the form key=value (write {key}=VALUE)")
    choice = is_choice(word, folders)
    path = not choice and _exists(text)
    try:
        override = _parse(word)
        value = override.value()
    except HydraException as error:
        return _with_quotes(word, path, error)
    if choice:
        if equals and (value is None or isinstance(value, int | float)):
            raise UserError(f"{word}: expected the name of a file in configs/{key.partition('@')[0]}/")
    elif path and value is not None and (not isinstance(value, int | float) or key.rpartition(".")[2] in PLACES):
        return word if value == text else f"{key}={quoted(text)}"
    elif key in TEXTS and not isinstance(value, str) and value is not None and not (sweep and _several(override)):
        return f"{key}={quoted(text)}"
    if _several(override) and not sweep:
        raise UserError(f"{word}: several values, expected one: {remedy}; a list is written {key}=[{text}]")
    return word


def _with_quotes(word: str, path: bool, error: HydraException) -> str:
    """Return a setting with quotes around its value, or around each part of a list."""
    key, _, text = word.partition("=")
    if text.startswith("[") and not path and key not in TEXTS:
        quotes = f"{key}=[{','.join(quoted(part.strip()) for part in text[1:-1].split(','))}]"
        if text.endswith("]") and not re.search(r"""[]['"]""", text[1:-1]):
            return quotes
        raise UserError(f"{word}: not of the form key=value ({first_line(error)})")
    try:
        _parse(with_quotes := f"{key}={quoted(text)}")
    except HydraException:  # quotes do not help, so it is the key that cannot be parsed
        raise UserError(f"{word}: not of the form key=value ({first_line(error)})") from error
    return with_quotes


def _parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _several(override: Override) -> bool:
    return override.is_sweep_override()


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long or with a null byte, so it is not a path
        return False


def debug_words(words: Sequence[str]) -> list[str]:
    """Return the words that choose a debug config."""
    return [word for word in words if word.lstrip("+").startswith("debug=") and not word.endswith("debug=null")]


def refuse_replacing(words: Sequence[str]) -> None:
    """Refuse a sweep of debug runs, because all of them have the same name and replace each other."""
    debug = debug_words(words)
    if debug and not any(word.startswith("name=") for word in words):
        raise UserError(f"{debug[0]}: each run would replace the one before it: add name=null resume=auto")
