"""The one error a user can cause and mend: entry points print its message alone and exit 1."""


class UserError(Exception):
    """One short message that names the key or file, its value, what was expected and what to do next."""
