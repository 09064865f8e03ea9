"""Two-level Schwarz attention, √n subdomains of rank 4, against global low rank of equal error for −u″ = f."""

from collections.abc import Callable

import jax
from studies.results import About
from studies.table import print_header, print_row

from benchmarks.programs import NOT_RUN, SKIP_ABOVE, compile_call, run, scratch
from benchmarks.timing import median_seconds_in_turns
from jaxop import domains, schwarz, testing

ABOUT = {
    "schwarz": About(
        "Two-level Schwarz operators against global low rank",
        "The linear operator of two levels, √n subdomains of rank 4, is applied to one function of n nodes, in turns. "
        "It is compared with a global operator of low rank whose error for −u″ = f is equal: the ratio divides the "
        "time of the global operator by that of two levels. A global operator whose factors need more than 1 GB is not "
        "run. The slope near 1 says that the cost is linear in the nodes.",
    ),
}

RANK = 4


def main(powers: tuple[int, ...] = (7, 8, 9, 10), repeats: int = 9) -> None:
    """Prints one row per size and the slope of the times.

    Args:
        powers: one size each: 4 to this power nodes, less one, and 2 to it subdomains.
        repeats: measured calls.
    """
    calls, rows = {}, {}
    for power in powers:
        subdomains, n = 2**power, 4**power - 1
        dec = schwarz.decompose(domains.interval(n, rule="interior"), subdomains, 8)
        factors = schwarz.random_factors(jax.random.key(0), dec, RANK)
        values = jax.random.normal(jax.random.key(1), (n, 1))
        program = compile_call(schwarz.apply, values, dec, factors)
        calls[f"two levels {n}"] = run(program, values, dec, factors)
        # Galerkin blocks reach a 2-norm error ~ 1 / (N (r + 1))², a global rank R ~ 1 / (R + 1)²
        rank = subdomains * (RANK + 1)
        size = 2 * 4 * n * rank
        if size < SKIP_ABOVE // 8:
            calls[f"global {n}"] = low_rank(values, dec.domain.weights, rank)
        rows[n] = f"{n:,}, {subdomains}, {dec.coarse_size}", scratch(program, digits=1), f"{size / 2**20:,.0f} MB"
    medians = median_seconds_in_turns(calls, repeats)
    titles = "two levels", "per node", "scratch", "global of rank N(r + 1)", "ratio", "its factors"
    print_header("n, N, coarse rank", *titles)
    times = {n: medians[f"two levels {n}"] for n in rows}
    for n, (label, memory, factors_size) in rows.items():
        cells = [NOT_RUN, ""]
        if other := medians.get(f"global {n}"):
            cells = [f"{1e3 * other:.1f} ms", f"{other / times[n]:.1f}×"]
        print_row(label, f"{1e3 * times[n]:.2f} ms", f"{1e9 * times[n] / n:.1f} ns", memory, *cells, factors_size)
    print(f"\nslope of log time over log n: {-testing.observed_order(list(times), list(times.values())):.2f}")


def low_rank(values: jax.Array, weights: jax.Array, rank: int) -> Callable[[], object]:
    """A call of global attention of a rank without softmax."""
    query, key = jax.random.normal(jax.random.key(2), (2, len(values), rank))
    arguments = values, weights, query, key
    return run(compile_call(schwarz.low_rank_apply, *arguments), *arguments)
