"""One file per layout; a new one is found by its name, and the first line of its docstring is its help.

Contract: `records(root: Path, *, ...)` yields a Record or a LeftOut for every sample of the dataset in folder `root`,
in an order that depends on nothing but the files, and raises UserError when the dataset as a whole cannot be read. Its
keyword-only parameters are the layout's options. It opens no images: that is done in parallel, later.
"""
