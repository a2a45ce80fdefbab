"""The type checker of the tests: as PEP 484 has it, an int is a float, which is how YAML writes one."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
