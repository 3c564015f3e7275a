"""The type checker that `conftest` puts on the package: beartype, where an int is a float too."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
