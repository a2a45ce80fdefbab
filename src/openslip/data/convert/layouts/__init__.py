"""Layouts of datasets, one per file; a new file is found by its name, and the first line of its docstring is its help.

Contract: `records(root: Path, *, ...)` yields a Record or a LeftOut for every sample of the dataset in folder `root`,
in an order that depends only on the files, and raises UserError if the dataset as a whole cannot be read. Its
keyword-only parameters are the options of the layout, and their entries under `Args:` are the help texts. It opens no
images, which are read later, in parallel.
"""
