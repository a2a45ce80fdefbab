"""The ladder of runs from a laptop to the paper: what each run should give, and whether a finished run gives it."""
