"""The shells keep scikit-learn's conventions; `jaxop.kernel_machines` does without scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import accuracy_score, r2_score

from jaxop import kernel_machines as km
from jaxop import kernels

RNG = np.random.default_rng(0)
X, Y = RNG.uniform(-1, 1, size=(12, 2)), RNG.uniform(-1, 1, size=(9, 2))
Z = np.outer(X[:, 0], Y[:, 1]) - np.outer(X[:, 1], Y[:, 0]) + 0.05 * RNG.normal(size=(12, 9))
LABELS = np.where(Z > 0, "yes", "no")
MASK = RNG.uniform(size=(12, 9)) < 0.8
REGRESSOR = km.BinaryKernelRegressor(kernels.Gaussian(0.5), regularization=1e-2)
CLASSIFIER = km.BinaryKernelClassifier(kernels.Gaussian(0.5), regularization=1e-1)
BOTH = [(REGRESSOR, Z), (CLASSIFIER, LABELS)]


@pytest.mark.parametrize(("estimator", "responses"), BOTH)
def test_clone_parameters_repr_and_pickle(estimator, responses):
    before = estimator.get_params()
    copy = clone(estimator)
    assert type(copy) is type(estimator)
    assert {k: v for k, v in copy.get_params().items() if k != "kernel"} == {
        k: v for k, v in before.items() if k != "kernel"
    }
    fitted = copy.fit(X, Y, responses, MASK)
    assert fitted is copy
    assert fitted.n_features_in_ == 2
    assert copy.kernel is not None
    assert all(copy.get_params()[k] == v for k, v in before.items() if k != "kernel")  # nothing was changed
    assert "regularization" in repr(fitted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X, Y), fitted.predict(X, Y))
    assert clone(fitted).set_params(regularization=3.0).regularization == 3.0
    assert not hasattr(clone(fitted), "machine_")


@pytest.mark.parametrize(("estimator", "responses"), BOTH)
def test_needs_a_fit(estimator, responses):
    for call in (clone(estimator).predict, lambda x, y: clone(estimator).score(x, y, responses)):
        with pytest.raises(NotFittedError):
            call(X, Y)


def test_kinds():
    assert is_regressor(REGRESSOR)
    assert is_classifier(CLASSIFIER)


@pytest.mark.sample(1)
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_regressor_is_the_machine(mask):
    regressor = clone(REGRESSOR).fit(X, Y, Z, mask)
    assert isinstance(regressor.predict(X, Y), np.ndarray)
    seen = np.ones_like(MASK) if mask is None else mask
    expected = r2_score(Z[seen], regressor.predict(X, Y)[seen])
    assert regressor.score(X, Y, Z, mask) == pytest.approx(expected, rel=1e-5)
    listed = scipy.sparse.coo_array((Z[seen], np.nonzero(seen)), shape=Z.shape)
    assert clone(REGRESSOR).fit(X, Y, listed).score(X, Y, listed) == pytest.approx(expected, rel=1e-3)
    assert regressor.score(X, Y, np.where(seen, Z, np.nan), mask) == pytest.approx(expected, rel=1e-5)


def test_product_of_kernels_is_kernel_ridge_on_pairs():
    regressor = clone(REGRESSOR).set_params(span="product", regularization=0.1).fit(X, Y, Z)
    pairs = np.concatenate([np.repeat(X, 9, axis=0), np.tile(Y, (12, 1))], axis=1)
    ridge = KernelRidge(kernel="rbf", gamma=0.5 / np.sqrt(2), alpha=0.1).fit(pairs, Z.ravel())
    np.testing.assert_allclose(regressor.predict(X, Y).ravel(), ridge.predict(pairs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared"])
@pytest.mark.parametrize(
    "labels", [LABELS, (LABELS == "yes").astype(int), LABELS == "yes"], ids=["text", "int", "bool"]
)
def test_classifier(loss, labels):
    classifier = clone(CLASSIFIER).set_params(loss=loss).fit(X, Y, labels, MASK)
    np.testing.assert_array_equal(classifier.classes_, np.unique(labels))
    predicted, values = classifier.predict(X, Y), classifier.decision_function(X, Y)
    assert predicted.dtype == labels.dtype
    np.testing.assert_array_equal(predicted == classifier.classes_[1], values > 0)
    score = accuracy_score(labels[MASK], predicted[MASK])
    assert score > 0.85
    assert classifier.score(X, Y, labels, MASK) == pytest.approx(score)
    assert hasattr(classifier, "predict_proba") == (loss == "logistic")
    if loss == "logistic":
        probabilities = classifier.predict_proba(X, Y)
        assert probabilities.shape == (12, 9, 2)
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)
        np.testing.assert_allclose(np.log(probabilities[..., 1] / probabilities[..., 0]), values, rtol=1e-3, atol=1e-4)


def test_classifier_of_listed_pairs():
    numbers = (LABELS == "yes") + 1
    listed = scipy.sparse.csr_array((numbers[MASK], np.nonzero(MASK)), shape=MASK.shape)
    classifier = clone(CLASSIFIER).fit(X, Y, listed)
    np.testing.assert_array_equal(classifier.classes_, [1, 2])
    np.testing.assert_array_equal(classifier.predict(X, Y), clone(CLASSIFIER).fit(X, Y, numbers, MASK).predict(X, Y))
    assert classifier.score(X, Y, listed) == classifier.score(X, Y, numbers, MASK)


@pytest.mark.thorough
def test_seeded_landmarks():
    few = clone(REGRESSOR).set_params(landmarks=4, random_state=1)
    first, again = (clone(few).fit(X, Y, Z).predict(X, Y) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_parameters_are_checked_by_fit():
    with pytest.raises(ValueError, match="'sections'"):
        km.BinaryKernelRegressor(span="sectoins").fit(X, Y, Z)
    with pytest.raises(ValueError, match="two different labels, got 3"):
        km.BinaryKernelClassifier().fit(X, Y, RNG.integers(0, 3, size=(12, 9)))
    with pytest.raises(ValueError, match="two different labels, got 1"):
        km.BinaryKernelClassifier().fit(X, Y, np.ones((12, 9)))
    with pytest.raises(AttributeError, match="predict_proba"):
        _ = km.BinaryKernelClassifier(loss="hinge").predict_proba


def test_scikit_learn_is_needed_by_the_shells_only():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from jaxop import kernel_machines as km\n"
        "km.fit\n"
        "try: km.BinaryKernelRegressor\n"
        "except ImportError as error: print(error)\n"
        "try: km.nonsense\n"
        "except AttributeError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert "BinaryKernelRegressor needs scikit-learn" in first
    assert "pip install 'jaxop[sklearn]'" in first
    assert "no attribute 'nonsense'" in second
