"""Two-level Schwarz attention, √n subdomains of rank 4, against global low rank of equal error for −u″ = f."""

import jax
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import NOT_RUN, SKIP_ABOVE, compile_call, scratch, seconds_of_program
from jaxop import domains, schwarz, testing

ABOUT = {
    "schwarz": About(
        "Two-level Schwarz operators against global low rank",
        "The linear operator of two levels, √n subdomains of rank 4, is applied to one function of n nodes. It is "
        "compared with a global operator of low rank whose error for −u″ = f is equal: the ratio divides the time of "
        "the global operator by that of two levels. A global operator whose factors need more than 1 GB is not run. "
        "The slope near 1 says that the cost is linear in the nodes.",
    ),
}

RANK = 4


def main(powers: tuple[int, ...] = (7, 8, 9, 10), repeats: int = 9) -> None:
    """Prints one row per size and the slope of the times.

    Args:
        powers: one size each: 4 to this power nodes, less one, and 2 to it subdomains.
        repeats: measured calls.
    """
    titles = "two levels", "per node", "scratch", "global of rank N(r + 1)", "ratio", "its factors"
    print_header("n, N, coarse rank", *titles)
    times: dict[int, float] = {}
    for power in powers:
        subdomains, n = 2**power, 4**power - 1
        dec = schwarz.decompose(domains.interval(n, rule="interior"), subdomains, 8)
        factors = schwarz.random_factors(jax.random.key(0), dec, RANK)
        values = jax.random.normal(jax.random.key(1), (n, 1))
        program = compile_call(schwarz.apply, values, dec, factors)
        times[n] = seconds_of_program(program, values, dec, factors, repeats=repeats)
        # Galerkin blocks reach a 2-norm error ~ 1 / (N (r + 1))², a global rank R ~ 1 / (R + 1)²
        rank = subdomains * (RANK + 1)
        size, cells = 2 * 4 * n * rank, [NOT_RUN, ""]
        if size < SKIP_ABOVE // 8:
            other = seconds_of_low_rank(values, dec.domain.weights, rank, repeats)
            cells = [f"{1e3 * other:.1f} ms", f"{other / times[n]:.1f}×"]
        ours = f"{1e3 * times[n]:.2f} ms", f"{1e9 * times[n] / n:.1f} ns", scratch(program, digits=1)
        print_row(f"{n:,}, {subdomains}, {dec.coarse_size}", *ours, *cells, f"{size / 2**20:,.0f} MB")
    print(f"\nslope of log time over log n: {-testing.observed_order(list(times), list(times.values())):.2f}")


def seconds_of_low_rank(values: jax.Array, weights: jax.Array, rank: int, repeats: int) -> float:
    """Median wall time of global attention of a rank without softmax."""
    query, key = jax.random.normal(jax.random.key(2), (2, len(values), rank))
    arguments = values, weights, query, key
    return seconds_of_program(compile_call(schwarz.low_rank_apply, *arguments), *arguments, repeats=repeats)
