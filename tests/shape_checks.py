"""The run-time type checker of the test suite: beartype, accepting int where float is declared.

A size of an array may be unknown where int is declared, because `jax.export` traces programs for any size.
"""

import jax.export
from beartype import BeartypeConf, BeartypeHintOverrides, beartype

_Unknown = type(jax.export.symbolic_shape("n")[0])

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=BeartypeHintOverrides({int: int | _Unknown})))
