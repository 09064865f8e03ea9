"""Measures jaxop against what a user would pick instead: medians, and ratios within one run.

    python scripts/benchmark.py                  # everything, about 25 minutes on two cores
    python scripts/benchmark.py attention        # or another one: large, kernels, steps, patches, fourier,
                                                 # transformers, momentum, flows, machines, schwarz, two-level

Prints Markdown tables. Every row is measured in fresh processes that alternate where allocator settings
matter; PyTorch rows need ``pip install 'jaxop[benchmark]'`` and are left out without it.
"""

import dataclasses
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
TUNED_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""glibc settings under which large temporary buffers stay mapped between calls."""

STEPS = {
    "FANO 64², patch 16, 8 modes": {"model": "fano", "side": 64, "patch": 16, "modes": 8},
    "ViTNO 64², patch 16, 8 modes": {"model": "vitno", "side": 64, "patch": 16, "modes": 8},
    "FANO 128², patch 32, 9 modes": {"model": "fano", "side": 128, "patch": 32, "modes": 9},
    "ViTNO 128², patch 32, 9 modes": {"model": "vitno", "side": 128, "patch": 32, "modes": 9},
    "TNO 200 nodes, d = 128, batch 64": {"model": "tno", "nodes": 200, "width": 128, "batch": 64},
    "TNO, PyTorch with einsum attention": {
        "model": "tno",
        "nodes": 200,
        "width": 128,
        "batch": 64,
        "attention": "einsum",
    },
}
WARM_UP = 0.5  # seconds of calls before a measurement: a sleeping second core takes that long to be used again
SKIP_ABOVE = 8 << 30  # bytes of scratch beyond which a baseline is not run on this machine


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median wall time of a call that returns JAX arrays, after half a second of calls that warm up.

    A call of more than a minute is made once.
    """
    import jax

    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    begin = time.perf_counter()
    while True:
        first = timed()
        if first > 60:
            return first
        if time.perf_counter() - begin > WARM_UP:
            break
    return statistics.median(timed() for _ in range(repeats))


def scratch_bytes(compiled: Any) -> int:
    """Temporary memory of a compiled program, besides its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def attention(repeats: int = 5) -> None:
    """`integral_attention` with weights against `jax.nn.dot_product_attention` without."""
    import jax
    import jax.numpy as jnp

    from jaxop.attention import integral_attention

    print("\n| n, heads, depth | forward | ratio | forward + gradient | ratio | scratch jaxop | scratch jax.nn |")
    print("|---|---|---|---|---|---|---|")
    cases = [(n, 8, depth) for n in (1024, 4096) for depth in (16, 64)]
    cases += [(16384, heads, depth) for heads in (1, 8) for depth in (16, 64)]
    for n, heads, depth in cases:
        arrays = jax.random.normal(jax.random.key(0), (4, n, heads, depth))
        weights = jnp.linspace(0.5, 1.5, n) / n

        def ours(q, k, v, weights=weights):
            return integral_attention(q, k, v, weights)

        row, scratch = {}, {}
        for name, function in (("jaxop", ours), ("jax.nn", jax.nn.dot_product_attention)):
            forward = jax.jit(function).lower(*arrays[:3]).compile()

            def loss(q, k, v, cotangent, function=function):
                return jnp.vdot(function(q, k, v), cotangent)

            gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
            scratch[name] = scratch_bytes(gradient)
            if scratch[name] > SKIP_ABOVE:
                row[name] = (None, None)
                continue
            count = max(2, repeats // 2) if n > 8192 else repeats
            row[name] = (
                median_seconds(lambda f=forward, a=arrays: f(*a[:3]), count),
                median_seconds(lambda g=gradient, a=arrays: g(*a), count),
            )
        cells = []
        for mine, theirs in zip(row["jaxop"], row["jax.nn"], strict=True):
            cells += [f"{1e3 * mine:.0f} ms", "not run" if theirs is None else f"{mine / theirs:.2f}"]
        megabytes = [f"{scratch[name] / 2**20:,.0f} MB" for name in ("jaxop", "jax.nn")]
        print(f"| {n}, {heads}, {depth} | " + " | ".join(cells + megabytes) + " |", flush=True)


def large() -> None:
    """One head on 65 536 nodes: value and gradient, time and peak memory of the process so far."""
    import jax
    import jax.numpy as jnp

    from jaxop.attention import integral_attention
    from jaxop.kernels import FourierIntegral

    n = 65536
    q, k, v = jax.random.normal(jax.random.key(0), (3, n, 1, 16))
    weights = jnp.full(n, 1 / n)
    forward = jax.jit(integral_attention)
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(integral_attention(*a) ** 2), argnums=(0, 1, 2, 3)))

    def with_sinc(*arrays):
        return jnp.sum(integral_attention(*arrays, kernel=FourierIntegral(1.0)) ** 2)

    sinc = jax.jit(jax.grad(with_sinc, argnums=(0, 1, 2, 3)))
    print("\n| n = 65 536, one head, d = 16 | seconds | peak memory of the process |")
    print("|---|---|---|")
    for name, function in (
        ("forward", forward),
        ("forward + gradient (q, k, v, w)", gradient),
        ("forward + gradient, Fourier integral kernel", sinc),
    ):
        seconds = median_seconds(lambda f=function: f(q, k, v, weights), 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {name} | {seconds:.1f} | {peak:.2f} GB |", flush=True)


def steps(repeats: int = 7) -> None:
    """One training step of the operators against plain PyTorch, with the default and a tuned allocator."""
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        print("\n(torch is not installed: its columns are left out)")
    print("\n| step | allocator | jaxop, GELU | jaxop, tanh GELU | PyTorch | ratio | scratch |")
    print("|---|---|---|---|---|---|---|")
    for name, options in STEPS.items():
        for allocator, variables in (("default", {}), ("tuned", TUNED_ALLOCATOR)):
            environment = {k: v for k, v in os.environ.items() if k not in TUNED_ALLOCATOR} | variables
            arguments = {"batch": 4} | options | {"repeats": repeats}
            flags = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
            ours = [text for key, value in arguments.items() if key != "attention" for text in (f"--{key}", str(value))]
            exact = _run([str(SCRIPTS / "benchmark.py"), "step", *ours], environment)
            tanh = _run([str(SCRIPTS / "benchmark.py"), "step", *ours, "--activation", "gelu_tanh"], environment)
            theirs = _run([str(SCRIPTS / "torch_reference.py"), *flags], environment) if torch else None
            cells = [f"{exact['seconds']:.3f} s", f"{tanh['seconds']:.3f} s"]
            cells += (
                [f"{theirs['seconds']:.3f} s", f"{exact['seconds'] / theirs['seconds']:.2f}"] if theirs else ["", ""]
            )
            cells += [f"{exact['scratch'] / 2**20:.0f} MB"]
            print(f"| {name} | {allocator} | " + " | ".join(cells) + " |", flush=True)


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of one operator."""

    model: str
    side: int = 64
    patch: int = 16
    modes: int = 8
    nodes: int = 200
    width: int = 32
    batch: int = 4
    repeats: int = 7
    activation: str = "gelu"
    accumulate: int | None = None


def step(options: Step) -> None:
    """Prints one line of JSON with the median seconds of a compiled training step."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxop import data, domains, operators, training

    if options.model == "tno":
        config = operators.CONFIGS["tno"](1, 1, width=options.width, activation=options.activation)
        domain, accumulate = domains.interval(options.nodes), options.batch // 4
    else:
        config = operators.CONFIGS[options.model](
            1,
            1,
            width=options.width,
            patches=options.side // options.patch,
            modes=options.modes,
            reference=options.side,
            activation=options.activation,
        )
        domain, accumulate = domains.box((options.side,) * 2, rule="midpoint"), 1
    settings = training.TrainingConfig(batch_size=options.batch, accumulate=options.accumulate or accumulate)
    optimizer = training.make_optimizer(settings)
    graphdef, state = training.init_state(operators.build(config, rngs=nnx.Rngs(0)), optimizer, settings)
    inputs, targets = jax.random.normal(jax.random.key(0), (2, options.batch, domain.size, 1))
    batch = data.Batch(inputs, targets, domain, None, None, jnp.arange(options.batch))
    compiled_step: Any = training.make_step(graphdef, optimizer, settings)
    compiled = compiled_step.lower(state, batch).compile()
    seconds = []
    for _ in range(options.repeats + 2):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    scratch = scratch_bytes(compiled)
    print(json.dumps({"seconds": statistics.median(seconds[2:]), "scratch": scratch}))


def patches(repeats: int = 9) -> None:
    """FANO's attention as the nodes per patch grow at fixed modes; pointwise layers alone for comparison."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxop import nn

    print(
        "\n| nodes per patch (4 × 4 patches, 8 modes, d = 32, 8 heads) | scores and mixing | whole layer | per node |"
    )
    print("|---|---|---|---|")
    from jaxop.attention.patch import spectral_patch_attention
    from jaxop.spectral import Band

    for side in (16, 32, 64, 128):
        band = Band((side, side), (8, 8))
        coefficients = jax.random.normal(jax.random.key(0), (3, 2, band.size, 16, 8, 4))
        weight = jnp.asarray(1 / (16 * side * side), jnp.float32)
        mixing = jax.jit(lambda q, k, v, w, band=band: spectral_patch_attention(q, k, v, band, w))
        layer = nn.FourierPatchAttention(32, 8, 8, reference=(side, side), rngs=nnx.Rngs(0))
        tokens = jax.random.normal(jax.random.key(1), (side * side, 1, 16, 32))
        whole = jax.jit(lambda m, x, w, side=side: m(x, (side, side), w))
        attend = median_seconds(lambda f=mixing, c=coefficients, w=weight: f(*c, w), repeats)
        total = median_seconds(lambda f=whole, m=layer, x=tokens, w=weight: f(m, x, w), repeats)
        per_node = 1e9 * total / tokens.shape[0] / 16
        print(f"| {side}² | {1e3 * attend:.2f} ms | {1e3 * total:.2f} ms | {per_node:.0f} ns |", flush=True)


def fourier(repeats: int = 5) -> None:
    """Fourier integral attention, 2 samples × 4 heads, against the obvious jnp code, PyTorch's autograd and KeOps."""
    import jax
    import jax.numpy as jnp

    from jaxop.attention import integral_attention
    from jaxop.kernels import FourierIntegral

    def matrix(q, k):
        return jnp.exp(jax.vmap(jax.vmap(FourierIntegral(1.0).tile, in_axes=1))(q, k))

    def attend(q, k, v):
        return jax.vmap(lambda q, k, v: integral_attention(q, k, v, kernel=FourierIntegral(1.0)))(q, k, v)

    def obvious_matrix(q, k):
        return jnp.prod(jnp.sinc((q[:, :, None] - k[:, None]) / jnp.pi) ** 4, axis=-1)

    def obvious(q, k, v):
        kernel = obvious_matrix(q, k)
        return jnp.einsum("bijh,bjhc->bihc", kernel, v) / (jnp.sum(kernel, axis=2)[..., None] + 1e-6)

    torch = importlib.util.find_spec("torch") is not None
    keops = torch and importlib.util.find_spec("pykeops") is not None
    square = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    rate = 2 * 1024**3 / median_seconds(lambda: product(square, square), 20)
    print(f"\nmatrix products on this machine: {1e-9 * rate:.0f} GFlop/s")
    print(
        "\n| n, depth | what | jaxop | obvious jnp | ratio | PyTorch | ratio | KeOps | ratio "
        "| scratch jaxop | scratch jnp | of rate |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for n, depth in ((512, 16), (512, 64), (2048, 16), (2048, 64)):
        *arrays, cotangent = 0.3 * jax.random.normal(jax.random.key(0), (4, 2, n, 4, depth))

        def gradient(function, arrays=arrays, cotangent=cotangent):
            def loss(q, k, v):
                return jnp.vdot(function(q, k, v), cotangent)

            return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()

        def compiled(function, count=3, arrays=arrays):
            return jax.jit(function).lower(*arrays[:count]).compile()

        sides = [f"--nodes={n}", f"--depth={depth}", f"--repeats={repeats}"]
        autograd = 32 * n * n * depth * 8  # bytes that PyTorch's backward pass keeps, about
        theirs = (
            _run([str(SCRIPTS / "torch_fourier.py"), *sides], dict(os.environ))
            if torch and autograd < SKIP_ABOVE
            else {}
        )
        # KeOps takes seconds at the smallest size already
        lazy = _run([str(SCRIPTS / "keops_fourier.py"), *sides], dict(os.environ)) if keops and n == 512 else {}
        for what, ours, plain, count in (
            ("matrix", compiled(matrix, 2), compiled(obvious_matrix, 2), 2),
            ("forward", compiled(attend), compiled(obvious), 3),
            ("gradient", gradient(attend), gradient(obvious), 3),
        ):
            seconds = median_seconds(lambda f=ours, a=arrays, c=count: f(*a[:c]), repeats)
            cells = [f"{1e3 * seconds:.0f} ms"]
            if scratch_bytes(plain) > SKIP_ABOVE:
                cells += ["not run", ""]
            else:
                reference = median_seconds(lambda f=plain, a=arrays, c=count: f(*a[:c]), max(2, repeats // 2))
                cells += [f"{1e3 * reference:.0f} ms", f"{reference / seconds:.1f}×"]
            for other in (theirs.get(what), lazy.get(what)):
                cells += [f"{1e3 * other:.0f} ms", f"{other / seconds:.1f}×"] if other else ["not run", ""]
            cells += [f"{scratch_bytes(program) / 2**20:,.0f} MB" for program in (ours, plain)]
            # operations per pair and channel of the formulas, forward 12, with gradient 12 + 12 + 24
            operations = 8 * n * n * depth * (48 if what == "gradient" else 12)
            print(
                f"| {n}, {depth} | {what} | " + " | ".join(cells) + f" | {operations / seconds / rate:.0%} |",
                flush=True,
            )


def kernels(repeats: int = 15) -> None:
    """Attention with every kernel against softmax's, 2 samples × 4 heads of 1024 nodes, in turns."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxop import kernels, nn
    from jaxop.attention import integral_attention, linear_attention
    from jaxop.kernels.per_head import over_heads

    choices = {
        "exponentiated dot product": kernels.ExpDotProduct(),
        "Gaussian": kernels.Gaussian(0.5),
        "Euclidean distance": kernels.EuclideanDistance(),
        "intersection": kernels.Intersection(0.25),
        "quadratic": kernels.Quadratic(),
        "truncated exponential, degree 2": kernels.TruncatedExponential(2),
        "truncated exponential, degree 8": kernels.TruncatedExponential(8),
        "Gaussian + 2 · quadratic": kernels.Gaussian(0.5) + 2.0 * kernels.Quadratic(),
        "Fourier integral": kernels.FourierIntegral(0.4),
    }
    print("\n| n = 1024, depth, kernel | implementation | forward | ratio | with gradient | ratio | scratch |")
    print("|---|---|---|---|---|---|---|")
    for depth in (16, 64):
        *arrays, cotangent = jax.random.normal(jax.random.key(0), (4, 2, 1024, 4, depth))
        learned = nn.LearnedFeaturesConfig().make(4, depth, rngs=nnx.Rngs(0))

        def linear(q, k, v, learned=learned):
            by_query, by_key = over_heads(lambda k, q, x: k.features(q, x), learned, (q, k), (1, 1), 1, heads=4)
            return linear_attention(by_query, by_key, v)

        for implementation in ("dense", "chunked"):
            programs = {}
            for name, kernel in [*choices.items(), ("learned features", None)]:

                def one(q, k, v, kernel=kernel, implementation=implementation, linear=linear):
                    if kernel is None:
                        return linear(q, k, v)
                    return integral_attention(q, k, v, kernel=kernel, implementation=implementation)

                def loss(q, k, v, cotangent, one=one):
                    return jnp.vdot(jax.vmap(one)(q, k, v), cotangent)

                forward = jax.jit(jax.vmap(one)).lower(*arrays).compile()
                gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays, cotangent).compile()
                programs[name] = (forward, arrays, []), (gradient, [*arrays, cotangent], [])
            for _ in range(repeats + 2):
                for compiled, operands, seconds in (p for pair in programs.values() for p in pair):
                    start = time.perf_counter()
                    jax.block_until_ready(compiled(*operands))
                    seconds.append(time.perf_counter() - start)
            medians = {name: [statistics.median(p[2][2:]) for p in pair] for name, pair in programs.items()}
            for name, (_, (gradient, *_)) in programs.items():
                if name == "learned features" and implementation == "dense":
                    continue
                label = "linear" if name == "learned features" else implementation
                cells = []
                for mine, softmax in zip(medians[name], next(iter(medians.values())), strict=True):
                    cells += [f"{1e3 * mine:.0f} ms", f"{mine / softmax:.2f}"]
                scratch = f"{scratch_bytes(gradient) / 2**20:.0f} MB"
                print(f"| {depth}, {name} | {label} | " + " | ".join([*cells, scratch]) + " |", flush=True)


def transformers(repeats: int = 9) -> None:
    """A training step of the models of compare_kernels.py, with the Fourier kernel and with softmax, in turns."""
    import compare_kernels
    import jax
    import numpy as np

    from jaxop import data, training
    from jaxop.experiments.terminal import tune_allocator

    tune_allocator()
    print("\n| training step | softmax | Fourier integral | ratio |")
    print("|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name, shape in (("text", None), ("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))):
        task = compare_kernels.TASKS[name]
        count = task.batch_size
        if shape is None:
            train = data.text_windows(rng.integers(0, 256, count * task.context + 1), task.context)
        else:
            train = data.Examples(rng.normal(size=(count, *shape)), rng.integers(0, 10, count))
        batch, runs = train[np.arange(count)], []
        for kernel in ("softmax", "fourier"):
            model = compare_kernels.build(task, compare_kernels.kernel(kernel, task.radius), train, 0)
            settings = training.TrainingConfig(batch_size=count, loss="cross_entropy")
            optimizer = training.make_optimizer(settings)
            graphdef, state = training.init_state(model, optimizer, settings)
            compiled_step: Any = training.make_step(graphdef, optimizer, settings)
            runs.append((compiled_step.lower(state, batch).compile(), state, []))
        for _ in range(repeats + 2):
            for i, (compiled, state, seconds) in enumerate(runs):
                start = time.perf_counter()
                state, metrics = compiled(state, batch)
                jax.block_until_ready((state, metrics))
                seconds.append(time.perf_counter() - start)
                runs[i] = compiled, state, seconds
        softmax, fourier = (statistics.median(seconds[2:]) for *_, seconds in runs)
        print(f"| {name} | {softmax:.3f} s | {fourier:.3f} s | {fourier / softmax:.2f} |", flush=True)


def momentum(repeats: int = 15) -> None:
    """A training step of the language model of compare_momentum.py with every block, in turns."""
    print("\n| block | allocator | step | ratio to no velocity | scratch |")
    print("|---|---|---|---|---|")
    for allocator, variables in (("default", {}), ("tuned", TUNED_ALLOCATOR)):
        environment = {k: v for k, v in os.environ.items() if k not in TUNED_ALLOCATOR} | variables
        rows = _run([str(SCRIPTS / "benchmark.py"), "momentum-steps", "--repeats", str(repeats)], environment)
        for label, (seconds, scratch) in rows.items():
            ratio = seconds / rows["none"][0]
            print(
                f"| {label} | {allocator} | {1e3 * seconds:.0f} ms | {ratio:.2f} | {scratch / 2**20:.0f} MB |",
                flush=True,
            )


def momentum_steps(repeats: int = 15) -> None:
    """Prints one line of JSON: median seconds and scratch of a step with each block."""
    import compare_momentum
    import jax
    import numpy as np

    from jaxop import data, training

    task = compare_momentum.TASKS["softmax"]
    tokens = np.random.default_rng(0).integers(0, 256, task.batch_size * task.context + 1)
    batch, runs = data.text_windows(tokens, task.context)[np.arange(task.batch_size)], {}
    settings = training.TrainingConfig(batch_size=task.batch_size, loss="cross_entropy")
    for block in compare_momentum.TASKS["softmax"].blocks:
        optimizer = training.make_optimizer(settings)
        graphdef, state = training.init_state(compare_momentum.build(task, block, 0), optimizer, settings)
        compiled_step: Any = training.make_step(graphdef, optimizer, settings)
        runs[block] = [compiled_step.lower(state, batch).compile(), state, []]
    for _ in range(repeats + 3):
        for run in runs.values():
            start = time.perf_counter()
            run[1], metrics = run[0](run[1], batch)
            jax.block_until_ready((run[1], metrics))
            run[2].append(time.perf_counter() - start)
    print(json.dumps({b: (statistics.median(s[3:]), scratch_bytes(compiled)) for b, (compiled, _, s) in runs.items()}))


def flows(repeats: int = 3) -> None:
    """Ten steps of the accelerated linear flow, d = 32, as the number of particles grows."""
    import jax
    import jax.numpy as jnp

    from jaxop import flows

    print("\n| particles, d = 32 | ten steps | per particle and step | scratch |")
    print("|---|---|---|---|")
    system = flows.accelerated_linear_flow(bilinear=jnp.eye(32), hessian=-jnp.eye(32))
    method, schedule = flows.KickDampDrift(), flows.Damping(logarithmic=3.0)

    def ten(state):
        advance = lambda state, _: (flows.step(method, system, state, schedule, 0.01), None)  # noqa: E731
        return jax.lax.scan(advance, state, length=10)[0]

    for count in (10_000, 100_000, 1_000_000):
        state = flows.start(method, jax.random.normal(jax.random.key(0), (count, 32)))
        program = jax.jit(ten).lower(state).compile()
        seconds = median_seconds(lambda f=program, s=state: f(s), repeats)
        print(
            f"| {count:,} | {seconds:.2f} s | {1e9 * seconds / count / 10:.0f} ns | "
            f"{scratch_bytes(program) / 2**20:,.0f} MB |",
            flush=True,
        )


def machines(repeats: int = 5) -> None:
    """Binary kernel machines: the closed form against scikit-learn on the same problem, and large domains."""
    import numpy as np

    from jaxop import kernel_machines, kernels

    kernel = kernels.Gaussian(0.5)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 100, 3)).astype(np.float32)
    responses = np.sin(x @ y.T) + 0.1 * rng.normal(size=(100, 100)).astype(np.float32)

    def ours() -> Any:
        return kernel_machines.fit(kernel, x, y, responses, span="product", regularization=0.1).coefficients

    print("\n| fit | seconds | ratio | peak memory of the process so far |")
    print("|---|---|---|---|")

    def row(name: str, seconds: float, ratio: str = "") -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {name} | {seconds:.3f} s | {ratio} | {peak:.2f} GB |", flush=True)

    mine = median_seconds(ours, repeats)
    row("100 × 100 pairs, product of Gaussians", mine)
    large_machines(row)
    from sklearn.kernel_ridge import KernelRidge  # last: it takes threads and memory

    pairs = np.concatenate([np.repeat(x, 100, axis=0), np.tile(y, (100, 1))], axis=1)
    gamma = 0.5 / 3**0.5  # the product of both Gaussians is the Gaussian on pairs
    ridge: Any = KernelRidge(kernel="rbf", gamma=gamma, alpha=0.1)  # pyright: ignore[reportArgumentType]
    start = time.perf_counter()
    ridge.fit(pairs, responses.ravel())
    theirs = time.perf_counter() - start
    machine = kernel_machines.fit(kernel, x, y, responses, span="product", regularization=0.1)
    difference = np.abs(ridge.predict(pairs[:100]) - machine(x[:1], y)[0]).max()
    row(f"100 × 100 pairs, scikit-learn's KernelRidge (differs by {difference:.0e})", theirs, f"{theirs / mine:.0f}×")


def large_machines(row: Callable[[str, float], None]) -> None:
    """10⁶ listed responses of 10⁴ × 10⁴ pairs; dense responses of 2000 × 2000 pairs."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental.sparse import BCOO
    from rich import progress

    from jaxop import kernel_machines, kernels

    rng = np.random.default_rng(1)
    n, observed, chosen = 10_000, 1_000_000, jax.random.key(1)
    x, y = jax.random.normal(jax.random.key(2), (2, n, 4)) / 2
    flat = rng.choice(n * n, observed + 10_000, replace=False)
    i, j = np.divmod(flat, n)
    truth = np.sin(2 * np.einsum("kd,kd->k", np.asarray(x)[i], np.asarray(y)[j]))
    noisy = (truth + 0.1 * rng.normal(size=flat.size)).astype(np.float32)
    indices = jnp.asarray(np.stack([i, j], axis=1)[:observed])
    listed = BCOO((jnp.asarray(noisy[:observed]), indices), shape=(n, n))
    for points in (256, 512):
        with progress.Progress() as bar:
            task, start = bar.add_task(f"{points} landmarks", total=None), time.perf_counter()
            machine = kernel_machines.fit(
                kernels.Gaussian(1.0), x, y, listed, landmarks=points, rng_key=chosen, tolerance=1e-3,
                progress=lambda step, _, bar=bar, task=task: bar.update(task, completed=step),
            )  # fmt: skip
            jax.block_until_ready(machine.coefficients)
            seconds = time.perf_counter() - start
        error = np.sqrt(np.mean((np.asarray(machine.pairs(x[i[observed:]], y[j[observed:]])) - truth[observed:]) ** 2))
        row(
            f"10⁴ × 10⁴, 10⁶ observed, {points} landmarks, {int(machine.steps)} steps (held-out error {error:.3f})",
            seconds,
        )

    x, y = jax.random.normal(jax.random.key(0), (2, 2000, 8))
    responses = jnp.sin(x @ y.T)
    for span in kernel_machines.SPANS:
        start = time.perf_counter()
        jax.block_until_ready(kernel_machines.fit(kernels.Gaussian(0.5), x, y, responses, span=span).coefficients)
        row(f"2000 × 2000 pairs, span {span}, compiled and run once", time.perf_counter() - start)


def schwarz(repeats: int = 9) -> None:
    """Two-level Schwarz attention, √n subdomains of rank 4, against global low rank of equal error for −u″ = f."""
    import jax

    from jaxop import domains, schwarz, testing

    print("\n| n, N, coarse rank | two levels | per node | scratch | global of rank N(r + 1) | ratio | its factors |")
    print("|---|---|---|---|---|---|---|")
    rank, rows = 4, []
    for power in (7, 8, 9, 10):
        subdomains, n = 2**power, 4**power - 1
        dec = schwarz.decompose(domains.interval(n, rule="interior"), subdomains, 8)
        factors = schwarz.random_factors(jax.random.key(0), dec, rank)
        values = jax.random.normal(jax.random.key(1), (n, 1))
        apply: Any = jax.jit(schwarz.apply)
        program = apply.lower(values, dec, factors).compile()
        seconds = median_seconds(lambda f=program, a=(values, dec, factors): f(*a), repeats)
        rows.append((n, seconds))
        # Galerkin blocks reach a 2-norm error ~ 1 / (N (r + 1))², a global rank R ~ 1 / (R + 1)²
        equal = subdomains * (rank + 1)
        size, cells = 2 * 4 * n * equal, ["not run", ""]
        if size < SKIP_ABOVE // 8:
            query, key = jax.random.normal(jax.random.key(2), (2, n, equal))
            flat: Any = jax.jit(schwarz.low_rank_apply)
            arguments = values, dec.domain.weights, query, key
            compiled = flat.lower(*arguments).compile()
            other = median_seconds(lambda f=compiled, a=arguments: f(*a), repeats)
            cells = [f"{1e3 * other:.1f} ms", f"{other / seconds:.1f}×"]
            del query, key, arguments
        print(
            f"| {n:,}, {subdomains}, {dec.coarse_size} | {1e3 * seconds:.2f} ms | {1e9 * seconds / n:.1f} ns | "
            f"{scratch_bytes(program) / 2**20:,.1f} MB | {cells[0]} | {cells[1]} | {size / 2**20:,.0f} MB |",
            flush=True,
        )
    print(f"\nslope of log time over log n: {-testing.observed_order(*zip(*rows, strict=True)):.2f}")


def two_level(repeats: int = 3, global_nodes: int = 65536) -> None:
    """A layer of two-level Schwarz attention on square grids, value and gradient, against chunked global attention.

    Args:
        repeats: timed calls.
        global_nodes: largest grid of global attention, a minute there; 262144 for all of them, half an hour.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxop import domains, nn, schwarz, testing

    print("\n| nodes | Schwarz attention | per node | scratch | global attention, chunked | ratio |")
    print("|---|---|---|---|---|---|")
    width, heads, core, rows = 64, 4, 16, []
    for side in (64, 128, 256, 512):
        grid, n = domains.box((side, side), rule="midpoint"), side**2
        cut = schwarz.decompose(grid, side // core, core // 4, partition="ramp", coarse="partition")
        values = jax.random.normal(jax.random.key(0), (1, n, width))

        def slope(layer: Any, values: Any, measure: Any) -> Any:
            return jax.grad(lambda u: jnp.sum(layer(u, measure) ** 2))(values)

        local = nn.SchwarzAttentionConfig().make(width, heads, rngs=nnx.Rngs(0))
        program = jax.jit(slope).lower(local, values, cut).compile()
        seconds = median_seconds(lambda f=program, a=(local, values, cut): f(*a), repeats)
        rows.append((n, seconds))
        cells = ["not run", ""]
        if n <= global_nodes:
            everywhere = nn.IntegralAttention(width, heads, implementation="chunked", rngs=nnx.Rngs(0))
            arguments = everywhere, values, grid.weights
            compiled = jax.jit(slope).lower(*arguments).compile()
            other = median_seconds(lambda f=compiled, a=arguments: f(*a), repeats if n <= 16384 else 1)
            cells = [f"{other:.2f} s", f"{other / seconds:.1f}×"]
        print(
            f"| {n:,} | {seconds:.2f} s | {1e6 * seconds / n:.1f} µs | {scratch_bytes(program) / 2**20:,.0f} MB | "
            f"{cells[0]} | {cells[1]} |",
            flush=True,
        )
    print(f"\nslope of log time over log n: {-testing.observed_order(*zip(*rows, strict=True)):.2f}")


def everything() -> None:
    """All sections, each in a process of its own."""
    for section in (
        "attention",
        "large",
        "kernels",
        "patches",
        "steps",
        "fourier",
        "transformers",
        "momentum",
        "flows",
        "machines",
        "schwarz",
        "two-level",
    ):
        subprocess.run([sys.executable, __file__, section], check=True)


def main() -> None:
    import tyro

    from jaxop.experiments.terminal import print_anywhere

    print_anywhere()
    if len(sys.argv) == 1:
        everything()
    else:
        tyro.extras.subcommand_cli_from_dict(
            {
                "attention": attention,
                "large": large,
                "kernels": kernels,
                "steps": steps,
                "step": step,
                "patches": patches,
                "fourier": fourier,
                "transformers": transformers,
                "momentum": momentum,
                "momentum-steps": momentum_steps,
                "flows": flows,
                "machines": machines,
                "schwarz": schwarz,
                "two-level": two_level,
            },
            config=(tyro.conf.OmitArgPrefixes,),
        )


if __name__ == "__main__":
    main()
