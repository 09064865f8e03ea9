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

from studies.results import About
from studies.schwarz import conjugate_gradients, fits, poisson, transfer
from studies.schwarz.coefficient import coefficient
from studies.schwarz.setting import DEFAULT, Study
from studies.schwarz.training import descent

DETERMINISTIC = "nothing here is random"
SETTING = (
    "The two-level operator of Köhler and Rheinbach (arXiv:2606.18525) learns f ↦ u for −u″ = f on (0, 1), in our "
    "reconstruction of their experiment: 255 interior nodes, 8 subdomains, an overlap of 8 nodes, rank 2, and "
    "right-hand sides that are sums of sines with variances k^(−2s), s = 1. Options in the command replace these."
)
READING = (
    "Errors are relative, in the Frobenius norm over the population of right-hand sides: lower is better. No operator "
    'of the same rank can have an error below the bound. "global" is the best error that QKᵀ with at least as many '
    "parameters can have, trained or not."
)
ABOUT = {
    "schwarz-rank": About(
        "Two-level Schwarz fits against rank",
        f"{SETTING} The table varies the rank of the subdomains. {READING}",
        DETERMINISTIC,
    ),
    "schwarz-overlap": About(
        "Two-level Schwarz fits against overlap",
        f"{SETTING} The table varies the nodes that are added on each side of a subdomain. {READING}",
        DETERMINISTIC,
    ),
    "schwarz-subdomains": About(
        "Two-level Schwarz fits against the number of subdomains",
        f"{SETTING} The table varies the number of subdomains. {READING}",
        DETERMINISTIC,
    ),
    "schwarz-decay": About(
        "Two-level Schwarz fits against the decay of the right-hand sides",
        f"{SETTING} The table varies s and the number K of sines. {READING}",
        DETERMINISTIC,
    ),
    "schwarz-ablation": About(
        "Two levels, one level, and other ways to start a fit",
        f"{SETTING} The first table compares both levels with each of them, and fits that start at the matrix, at the "
        f"data, or with tied factors K = Q. {READING} The second table says how far the fitted operators are from "
        "symmetric, and names their extreme eigenvalues.",
        DETERMINISTIC,
    ),
    "schwarz-training": About(
        "Two-level Schwarz operators trained on samples",
        f"{SETTING} The fit, from the matrix or from the data alone, is compared with Adam from random factors and "
        "with global operators of at least as many parameters, on 4096 samples. The errors are relative, on new "
        "samples and on sines that no sample holds, mean ± standard deviation over the seeds.",
    ),
    "schwarz-transfer": About(
        "Two-level Schwarz operators on finer grids",
        f"{SETTING} Factors that are Legendre polynomials are fitted on the first grid and evaluated with the same "
        "coefficients on finer ones. Equal errors in a row mean that the operator carries over.",
        DETERMINISTIC,
    ),
    "schwarz-cg": About(
        "Conjugate gradients on the interval for a growing number of subdomains",
        "The cells are iterations to a residual of 1e-8 for −u″ = f with subdomains of a fixed size. The columns are "
        "preconditioners: none, the best global operator of as many parameters with a shift, classical Schwarz with "
        "one level and with two, two levels of rank 4 with a shift, and fits of these. If the numbers of a column "
        "stay, its preconditioner does not depend on the number of subdomains.",
    ),
    "schwarz-poisson": About(
        "Two-level Schwarz fits on the square",
        "Two-level operators learn f ↦ u for −Δu = f on the unit square, where Galerkin blocks are not exact. "
        "Right-hand sides are sums of 16 × 16 sines with variances (k² + l²)^(−s), s = 1. Subdomains have cores of 16² "
        f"nodes and rank 4. {READING} The fits make five Gauss–Newton steps.",
        DETERMINISTIC,
    ),
    "schwarz-plane-cg": About(
        "Conjugate gradients on the square for a growing number of subdomains",
        "The cells are iterations to a residual of 1e-8 for −Δu = f on the unit square with subdomains of 8² nodes. "
        "The columns are preconditioners: none, classical Schwarz with one level and with two. If the numbers of a "
        "column stay, its preconditioner does not depend on the number of subdomains.",
    ),
    "schwarz-coefficient": About(
        "Two-level Schwarz attention in networks that see a coefficient",
        "Small transformer neural operators learn (a, f) ↦ u for −∇·(a∇u) = f with log-normal a on 32² nodes. Their "
        "attention has two levels, the local level alone, or is global. All are trained for the same time. They are "
        "tested on the grid of the training and on one that is three times as fine. The columns are mean relative L2 "
        "errors, mean ± standard deviation over the seeds.",
    ),
}

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
