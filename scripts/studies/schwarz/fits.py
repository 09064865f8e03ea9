"""How close fits come to the bound of their rank, to global low rank, and to each other."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxop import schwarz
from studies.schwarz.setting import COLUMNS, Form, Study, columns, fitted
from studies.table import print_header, print_row


def sweep(study: Study, name: str, values: Sequence[int]) -> None:
    """One row per value of a field."""
    print_header(name, *COLUMNS)
    for value in values:
        here = dataclasses.replace(study, **{name: value})
        dec, data = here.decompose(), here.covariance()
        print_row(value, *columns(dec, *fitted(here, dec, data), data))


def decay(study: Study) -> None:
    """One row per spectrum of right-hand sides."""
    print_header("s", "K", *COLUMNS)
    dec = study.decompose()
    for modes in (16, 64, study.nodes):
        for power in (0.0, 1.0, 2.0):
            here = dataclasses.replace(study, decay=power, modes=modes)
            data = here.covariance()
            print_row(f"{power:g}", modes, *columns(dec, *fitted(here, dec, data), data))


FORMS = {
    "two levels": Form(),
    "two levels, from data alone": Form(from_matrix=False),
    "two levels, K = Q": Form(symmetric=True),
    "local only": Form(is_coarse=False, from_matrix=False),
    "coarse only": Form(is_local=False, from_matrix=False),
}
"""The forms that the ablation compares, by the names that they have in its table."""


def ablation(study: Study) -> None:
    """Both levels against each of them, and other ways to start and to tie the factors."""
    dec, data = study.decompose(), study.covariance()
    print_header("form", *COLUMNS)
    for label, form in FORMS.items():
        print_row(label, *columns(dec, *fitted(study, dec, data, form), data))
    galerkin = schwarz.galerkin_factors(dec, study.matrix, study.rank)
    error = schwarz.operator_error(dec, galerkin, *data)
    count = sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(galerkin))
    print_row("Galerkin blocks, truncated", count, f"{error:.2e}", *[""] * (len(COLUMNS) - 2))
    print_header("two levels", "asymmetry", "smallest eigenvalue", "largest")
    for label, form in (("free", Form()), ("K = Q", Form(symmetric=True))):
        report = schwarz.symmetry_report(dec, fitted(study, dec, data, form)[0].factors)
        eigenvalues = f"{report.smallest_eigenvalue:.1e}", f"{report.largest_eigenvalue:.3f}"
        print_row(label, f"{report.asymmetry:.1e}", *eigenvalues)
