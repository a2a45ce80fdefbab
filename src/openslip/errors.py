"""The one error a user can cause and mend: entry points print its message alone and leave with its exit code."""


class UserError(Exception):
    """One short message that names the key or file, its value, what was expected and what to do next."""

    exit_code = 1


class DataError(UserError):
    """The collection itself is at fault, and the run had begun."""

    exit_code = 4
