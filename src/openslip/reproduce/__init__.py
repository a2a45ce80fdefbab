"""Runs to reproduce, from a laptop to the paper: what each should give, and whether a finished run gives it."""
