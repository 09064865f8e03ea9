"""Fits of two-level Schwarz attention: near the bound, from data alone, from any start."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxop import domains, schwarz
from tests.schwarz.cases import factors_on, halton, laplacian, problem, waves


@pytest.mark.thorough
def test_a_fit_says_whether_it_stopped_by_itself(x64):
    dec, _, inputs, targets = problem(31, 4, 2, 1)
    assert not schwarz.fit(dec, inputs, targets, rank=2, steps=2).converged
    assert schwarz.fit(dec, inputs, targets, rank=2, steps=200).converged


@pytest.mark.sample(1)
@pytest.mark.parametrize(("decay", "gain", "distance"), [(1, 25, 2.0), (0, 8, 2.0)])
def test_the_fit_comes_near_the_bound_and_far_below_the_global_optimum(x64, decay, gain, distance):
    dec, matrix, inputs, targets = problem(63, 4, 4, decay)
    start = schwarz.galerkin_factors(dec, matrix, 3)
    fit = schwarz.fit(dec, inputs, targets, rank=3, initial=start, steps=12)
    assert (np.diff(fit.errors) <= 1e-6).all()
    assert fit.errors[-1] == pytest.approx(schwarz.operator_error(dec, fit.factors, inputs, targets), rel=1e-6)
    parameters = schwarz.count_parameters(dec, fit.factors)
    best = schwarz.low_rank_errors(inputs, targets, dec.domain.weights)
    assert best[parameters // (2 * 63)] > (gain / 4) * fit.errors[-1]  # N = 4 here; N = 8 in the study
    assert fit.bound == pytest.approx(best[4 * 3 + 3])
    assert fit.bound < fit.errors[-1] < distance * fit.bound


@pytest.mark.study
@pytest.mark.parametrize(("decay", "gain"), [(1, 25), (0, 8)])
def test_the_study_reaches_its_aims(x64, decay, gain):
    dec, matrix, inputs, targets = problem(255, 8, 8, decay)
    fit = schwarz.fit(dec, inputs, targets, rank=2, initial=schwarz.galerkin_factors(dec, matrix, 2), steps=10)
    assert schwarz.count_parameters(dec, fit.factors) == 1566
    best = schwarz.low_rank_errors(inputs, targets, dec.domain.weights)
    assert best[3] > gain * fit.errors[-1]  # 1530 parameters
    assert fit.errors[-1] < 2 * fit.bound


@pytest.mark.thorough
def test_fits_from_data_alone_and_symmetric_ones(x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    free = schwarz.fit(dec, inputs, targets, rank=2, steps=8)
    assert free.bound < free.errors[-1] < 3 * free.bound
    tied = schwarz.fit(dec, inputs, targets, rank=2, symmetric=True, steps=8)
    assert tied.factors.local_key is None
    assert tied.errors[-1] < 4 * tied.bound
    report = schwarz.symmetry_report(dec, tied.factors)
    assert report.asymmetry < 1e-12
    assert report.smallest_eigenvalue > -1e-12
    shifted = schwarz.fit(dec, inputs, targets, rank=2, symmetric=True, steps=2, shift=1e-4)
    assert schwarz.symmetry_report(dec, shifted.factors).smallest_eigenvalue == pytest.approx(1e-4, rel=1e-6)
    error = schwarz.operator_error(dec, shifted.factors, inputs, targets)
    assert shifted.errors[-1] == pytest.approx(error, rel=1e-6)
    assert schwarz.symmetry_report(dec, free.factors).asymmetry > 1e-6


@pytest.mark.sample(1)
@pytest.mark.parametrize(("samples", "begin"), [(16, None), (200, None), (16, "galerkin")])
@pytest.mark.thorough
def test_symmetric_fits_of_few_modes(samples, begin, x64):
    """Where most functions are in no sample, truncating a symmetric block must not let the rest of it through."""
    dec, matrix, inputs, targets = problem(63, 8, 2)
    inputs, targets = (a[:, :16] for a in (inputs, targets))
    if samples > 16:
        mix = np.random.default_rng(0).normal(size=(16, samples))
        inputs, targets = inputs @ mix, targets @ mix
    initial = schwarz.galerkin_factors(dec, matrix, 2) if begin else None
    fit = schwarz.fit(dec, inputs, targets, rank=2, symmetric=True, initial=initial, steps=10)
    assert len(fit.errors) > 5
    assert fit.errors[-1] < 2e-3
    assert fit.errors[-1] == pytest.approx(schwarz.operator_error(dec, fit.factors, inputs, targets), rel=1e-6)


def test_symmetric_fits_come_near_the_bound(x64):
    dec = schwarz.decompose(domains.interval(63, rule="interior"), 8, 2)
    inverse = np.linalg.inv(laplacian(63).toarray())
    fit = schwarz.fit(dec, np.eye(63), inverse, rank=2, symmetric=True, steps=12)
    assert fit.bound < fit.errors[-1] < 1.3 * fit.bound


@pytest.mark.sample(1)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.thorough
def test_any_start_is_improved_and_reported_as_it_is(symmetric, x64):
    """Keys where there shall be none, one level only, fewer columns than asked for."""
    dec, matrix, inputs, targets = problem(31, 4, 2)
    galerkin = schwarz.galerkin_factors(dec, matrix, 2)
    starts = [
        factors_on(dec),
        schwarz.Factors(local_query=galerkin.local_query, local_key=galerkin.local_key),
        dataclasses.replace(galerkin, coarse_query=galerkin.coarse_query[:, :1], coarse_key=galerkin.coarse_key[:, :1]),
    ]
    for start in starts:
        fit = schwarz.fit(dec, inputs, targets, rank=2, symmetric=symmetric, initial=start, steps=8)
        assert fit.errors[-1] < 0.05
        assert fit.errors[-1] == pytest.approx(schwarz.operator_error(dec, fit.factors, inputs, targets), rel=1e-6)


def test_blocks_that_no_sample_reaches_do_no_harm(x64):
    dec, _, _, _ = problem(31, 4, 2)
    fit = schwarz.fit(dec, np.eye(31)[:, :3], np.eye(31)[:, :3], rank=2, noise=0.0, steps=3)
    assert np.isfinite(fit.errors).all()
    negative = schwarz.fit(dec, np.eye(31), -np.eye(31), rank=2, symmetric=True, steps=3)
    assert negative.errors[-1] == pytest.approx(1.0)  # nothing semi-definite helps


@pytest.mark.thorough
def test_noise_bounds_the_operator_in_large_subdomains(x64):
    dec = schwarz.decompose(domains.interval(511, rule="interior"), 2, 4)
    k, x = np.arange(1, 33), np.arange(1, 512) / 512
    inputs = np.sin(np.pi * np.outer(x, k)) / k
    fit = schwarz.fit(dec, inputs, inputs / (np.pi * k) ** 2, rank=4, noise=1e-2, steps=3)
    assert fit.errors[-1] < 0.01
    assert np.linalg.norm(np.asarray(schwarz.matrix(dec, fit.factors)), 2) < 0.2  # 1/π² and a little


@pytest.mark.thorough
def test_what_no_sample_contains_stays_bounded(x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    unseen = np.sin(np.pi * np.outer(np.arange(1, 32) / 32, np.arange(7, 32)))
    sizes = []
    for noise in (1e-8, 1e-3):
        fit = schwarz.fit(dec, inputs[:, :6], targets[:, :6], rank=3, steps=8, noise=noise)
        assert fit.errors[-1] < 2e-3
        out = schwarz.apply(jnp.asarray(unseen), dec, fit.factors)
        sizes.append(np.linalg.norm(out) / np.linalg.norm(unseen))
    assert sizes[1] < 1 < sizes[0]


def test_ablations_have_one_level_only(x64):
    dec, _, inputs, targets = problem(31, 4, 2)
    local = schwarz.fit(dec, inputs, targets, rank=3, coarse_rank=0, steps=3)
    coarse = schwarz.fit(dec, inputs, targets, rank=0, steps=3)
    both = schwarz.fit(dec, inputs, targets, rank=3, steps=3)
    assert local.factors.coarse_query is None
    assert coarse.factors.local_query is None
    assert both.errors[-1] < 0.1 * min(local.errors[-1], coarse.errors[-1])


@pytest.mark.thorough
def test_functions_as_factors_move_to_finer_grids(x64):
    features = functools.partial(schwarz.legendre_features, degree=5)
    dec = schwarz.decompose(domains.interval(63, rule="interior"), 4, 0)
    errors = []
    fit = None
    for n in (63, 127, 255):
        here = dec.on(domains.interval(n, rule="interior"))
        k, x = np.arange(1, 33), np.asarray(here.domain.points)
        inputs = np.sin(np.pi * x * k) / k
        targets = np.linalg.solve(laplacian(n).toarray(), inputs)
        if fit is None:
            fit = schwarz.fit(here, inputs, targets, rank=3, features=features, steps=10)
        factors = schwarz.sample_factors(fit.factors, here, features)
        errors.append(schwarz.operator_error(here, factors, inputs, targets))
    assert errors[0] == pytest.approx(fit.errors[-1], rel=1e-6)
    assert errors[0] < 2 * fit.bound
    assert max(errors) < 1.2 * errors[0]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("first", "second", "subdomains"),
    [
        (lambda: domains.box((15, 15), rule="interior"), lambda: domains.box((31, 31), rule="interior"), 2),
        (lambda: halton(400, 0), lambda: halton(900, 7), 4),
    ],
    ids=["grid", "cloud"],
)
def test_functions_as_factors_move_to_other_nodes_of_the_square(first, second, subdomains, x64):
    features = functools.partial(schwarz.legendre_features, degree=3)
    dec = schwarz.decompose(first(), subdomains, 3)
    fit = schwarz.fit(dec, *waves(dec.domain.points), rank=4, features=features, noise=1e-2, steps=5)
    errors = []
    for here in (dec, dec.on(second())):
        factors = schwarz.sample_factors(fit.factors, here, features)
        errors.append(schwarz.operator_error(here, factors, *waves(here.domain.points)))
    assert errors[0] == pytest.approx(fit.errors[-1], rel=1e-6)
    assert errors[0] < 0.06
    assert errors[1] < 0.1


@pytest.mark.parametrize(("symmetric", "factor"), [(False, 1.1), (True, 1.1)])
def test_fits_leave_saddles(symmetric, factor, x64):
    """Gauss–Newton steps alone stay at 1.6 bounds, where blocks have not turned to each other."""
    dec, _, inputs, targets = problem(15, 2, 1, decay=0)
    fit = schwarz.fit(dec, inputs, targets, rank=2, symmetric=symmetric)
    assert fit.bound < fit.errors[-1] < factor * fit.bound
    assert len(fit.errors) < 40


@pytest.mark.thorough
def test_symmetric_fits_start_next_to_general_ones(x64):
    dec, _, inputs, targets = problem(63, 2, 2)
    inputs, targets = inputs[:, :16], targets[:, :16]
    general = schwarz.fit(dec, inputs, targets, rank=4, steps=20)
    for initial in (None, general.factors):
        fit = schwarz.fit(dec, inputs, targets, rank=4, symmetric=True, initial=initial, steps=20)
        assert fit.factors.local_key is None
        assert fit.errors[-1] < 1.2 * general.errors[-1]
    noise = schwarz.random_factors(jax.random.key(0), dec, 4)
    assert schwarz.fit(dec, inputs, targets, rank=4, symmetric=True, initial=noise, steps=0).errors[0] < 1


def test_fits_where_a_subdomain_has_no_weight():
    domain = domains.from_nodes(np.arange(16.0)[:, None].tolist(), np.repeat([1.0, 0.0], 8).tolist())
    dec = schwarz.decompose(domain, 4, 1.0)
    samples = np.random.default_rng(0).normal(size=(16, 3))
    symmetric = schwarz.fit(dec, samples, samples, rank=1, steps=1, symmetric=True)
    assert np.isfinite(symmetric.errors).all()
    fit = schwarz.fit(dec, samples, samples, rank=1, steps=1)
    assert np.isfinite(fit.errors).all()
    assert np.isfinite(fit.factors.local_query).all()


def test_the_shift_of_a_fit_is_that_of_its_start():
    dec, eye = schwarz.decompose(domains.interval(15, rule="interior"), 2, 1), np.eye(15)
    start = schwarz.Factors(shift=jnp.asarray(0.5))
    kept = schwarz.fit(dec, eye, eye, rank=1, coarse_rank=0, initial=start, shift=jnp.asarray(0.5), steps=0)
    assert kept.factors.shift == 0.5
    with pytest.raises(ValueError, match=r"shift must be the shift of initial, 0.5, .* got None"):
        schwarz.fit(dec, eye, eye, rank=1, initial=start)
