"""Data types in which `openslip strip` stores weights; `--help` lists them, so PyTorch is not imported here."""

DTYPES = ("float32", "float16", "bfloat16")
