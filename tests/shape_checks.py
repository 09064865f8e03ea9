"""The run-time type checker of the test suite: beartype, accepting int where float is declared."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
