"""Factors that are functions: fitted on one grid, evaluated on finer ones."""

import dataclasses
import functools

from jaxop import domains, schwarz
from studies.schwarz.setting import Study
from studies.table import print_header, print_row


def transfer(study: Study) -> None:
    """Fitted on the grid of the study, evaluated on finer ones with the same coefficients."""
    study = study.with_band()
    sizes = [study.nodes, 2 * study.nodes + 1, 4 * study.nodes + 3]
    print_header("Legendre degree, overlap", *(f"n = {n}" for n in sizes), "bound")
    for degree, overlap, unity in ((5, 0, "multiplicity"), (9, 0, "multiplicity"), (9, study.overlap, "ramp")):
        features = functools.partial(schwarz.legendre_features, degree=degree)
        dec = dataclasses.replace(study, overlap=overlap).decompose(partition=unity)
        fit = schwarz.fit(dec, *study.covariance(), rank=study.rank, features=features, steps=study.steps)
        errors = []
        for nodes in sizes:
            there = dec.on(domains.interval(nodes, rule="interior"))
            data = dataclasses.replace(study, nodes=nodes).covariance()
            errors.append(schwarz.operator_error(there, schwarz.sample_factors(fit.factors, there, features), *data))
        print_row(f"{degree}, {overlap} ({unity})", *(f"{error:.2e}" for error in errors), f"{fit.bound:.2e}")
