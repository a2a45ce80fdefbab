"""One file per command of `openslip data`; a file's name is the command, and its docstring says what it is for."""
