"""Endings of the files that `openslip strip` and `openslip merge` write; `--help` lists them without PyTorch."""

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth")
