"""Runs from a laptop's to the paper's: what each should give, and whether a finished run gives it."""
