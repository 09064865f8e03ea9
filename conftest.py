"""Test-wide switches: strict promotion, run-time shape checks, a persistent compilation cache."""

import gc
import importlib
import os
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import pytest

# of the user, not of the checkout: fresh clones find what others have compiled
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxop" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")

# most of the time goes into compilation, half of it into optimisation; other jobs of CI set XLA_FLAGS= and optimise
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later versions end the process at this flag
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

# tracing makes many objects that live long: full collections at the default rate take a twentieth of the time
gc.set_threshold(100_000, 50, 100)

# before any other conftest imports the package: what is imported earlier goes unchecked
importlib.import_module("tests.shape_checks")  # imports JAX, which reads the variables above; the hook looks it up
jaxtyping.install_import_hook("jaxop", "tests.shape_checks.check")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the cases that ``sample(n)`` leaves out: all but n of each test get ``thorough``."""
    cases = {}
    for item in items:
        if marker := item.get_closest_marker("sample"):
            cases.setdefault((item.parent, item.originalname), (marker.args[0], []))[1].append(item)
    for count, of_test in cases.values():
        # multiples of the golden section: equal distances would pick the same value of a crossed parameter again
        order = sorted(range(len(of_test)), key=lambda i: i * 0.6180339887498949 % 1)
        for i in order[count:]:
            of_test[i].add_marker("thorough")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets compiled programs: each takes some of the 65530 memory maps of a process, beyond which XLA crashes."""
    import jax

    yield
    maps = 5 if "optimization_level=0" in os.environ["XLA_FLAGS"] else 10
    if maps * len(jax.devices()[0].client.live_executables()) > 30_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """No implicit dtype or rank promotion, except where Optax's own code relies on it (marker ``optax``)."""
    import jax

    if request.node.get_closest_marker("optax"):
        yield
    else:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield


@pytest.fixture
def x64():
    """Double precision for the duration of one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Calls as a user's program makes them: without the suite's run-time type checks, which would answer first."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
