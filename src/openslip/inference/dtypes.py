"""Data types in which `openslip strip` stores weights; without PyTorch, because `--help` lists them."""

DTYPES = ("float32", "float16", "bfloat16")
