"""The errors a user can cause and mend: entry points print the message alone and leave with its exit code."""


class UserError(Exception):
    """One short message that names the key or file, its value, what was expected and what to do next."""

    exit_code = 1


class NonFiniteError(UserError):
    """Loss, gradients or weights are no longer numbers."""

    exit_code = 3


class DataError(UserError):
    """The collection itself is at fault, and the run had begun."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be read."""

    exit_code = 5
