"""Two-level Schwarz attention as an operator that solves elliptic equations: learn f ↦ u, or (a, f) ↦ u.

    python scripts/studies/run.py schwarz all           # every table below
    python scripts/studies/run.py schwarz rank          # error against rank; also overlap, subdomains, decay
    python scripts/studies/run.py schwarz ablation      # local only, coarse only, both; from A, from data, symmetric
    python scripts/studies/run.py schwarz training      # Adam against the fit, at equal parameters and time
    python scripts/studies/run.py schwarz transfer      # factors that are functions, on finer grids
    python scripts/studies/run.py schwarz cg            # conjugate gradients as the number of subdomains grows
    python scripts/studies/run.py schwarz poisson       # −Δu = f on the square, 63², 127² and 255² nodes
    python scripts/studies/run.py schwarz plane-cg      # conjugate gradients there
    python scripts/studies/run.py schwarz coefficient   # −∇·(a∇u) = f on the square, networks that see a and f

The operator is that of Köhler and Rheinbach (arXiv:2606.18525); the experiment is our reconstruction: −u″ = f on (0, 1)
with u = 0 at the ends, n = 255 interior nodes, f = Σ_k c_k sin(kπx), c_k ~ N(0, k^(−2s)), k ≤ K. Errors are
‖(M − A⁻¹)F‖ / ‖A⁻¹F‖ in the Frobenius norm, F a factor of the covariance of f. "bound": no operator of the same rank,
N·r + r0, can do better (Eckart and Young). "global": the best that QKᵀ of no fewer parameters can do at all.
Parameters count both Q and K.

A table ignores the options that it varies or fixes itself: "cg" and "plane-cg" all sizes, "rank" the rank.
"""

from collections.abc import Callable
from typing import Literal

import jax
import tyro

from studies.schwarz import conjugate_gradients, fits, poisson, transfer
from studies.schwarz.coefficient import coefficient
from studies.schwarz.setting import DEFAULT, Study
from studies.schwarz.training import descent

Table = Literal[
    "all",
    "rank",
    "overlap",
    "subdomains",
    "decay",
    "ablation",
    "training",
    "transfer",
    "cg",
    "poisson",
    "plane-cg",
    "coefficient",
]

TABLES: dict[Table, Callable[[Study, float], object]] = {
    "rank": lambda study, _: fits.sweep(study, "rank", (1, 2, 3, 4, 6)),
    "overlap": lambda study, _: fits.sweep(study, "overlap", (0, 1, 2, 4, 8, 16)),
    "subdomains": lambda study, _: fits.sweep(study, "subdomains", (2, 4, 8, 16)),
    "decay": lambda study, _: fits.decay(study),
    "ablation": lambda study, _: fits.ablation(study),
    "training": descent,
    "transfer": lambda study, _: transfer.transfer(study),
    "cg": lambda study, _: conjugate_gradients.line(study),
    "poisson": lambda study, _: poisson.poisson(study),
    "plane-cg": lambda study, _: conjugate_gradients.plane(study),
    "coefficient": coefficient,
}


def main(name: tyro.conf.Positional[Table], study: Study = DEFAULT, seconds: float = 20.0) -> None:
    """Prints the table NAME, or all of them.

    Args:
        name: the table.
        study: the setting.
        seconds: of training, for each model that Adam trains.
    """
    for table in TABLES if name == "all" else (name,):
        with jax.enable_x64(table != "coefficient"):
            TABLES[table](study, seconds)
