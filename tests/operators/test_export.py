"""Operators as programs: equal to the model in a process without jaxop, and what cannot be exported says why."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxop import domains, dynamics, nn, operators
from jaxop.operators.constraint import innermost
from tests.scale.cases import build, configs, square

CONFIGS = configs() | {
    "decoder": operators.TransformerNeuralOperatorConfig(
        1, 2, dim=2, width=4, heads=2, layers=1, feedforward=4, decoder_layers=1, initial_channels=3
    ),
    "latent-grid": operators.LatentGridOperatorConfig(1, 1, dim=2, width=4, layers=1, heads=2, feedforward=4, grid=8),
    "lno": operators.LatentNeuralOperatorConfig.lno(1, 1, 2, width=8, heads=2),
    "slices": operators.LatentNeuralOperatorConfig.functional(1, 1, 2, width=8, heads=2, layers=1),
    "many modes": operators.FourierNeuralOperatorConfig(1, 1, 1, width=4, layers=1, modes=40, reference=80),
    "momentum": dataclasses.replace(configs()["tno"], norm="pre", momentum=nn.MomentumConfig("H1")),
}
TNO = operators.TransformerNeuralOperatorConfig(1, 1, 2, width=4, heads=2, layers=1, feedforward=4)
FNO = dataclasses.replace(configs()["fno"], out_channels=1)
ANYWHERE = dataclasses.replace(TNO, decoder_layers=1)
CONFIGS |= {
    "integral": operators.ConservativeOperatorConfig(ANYWHERE, integrals=(2.0,)),
    "integral on grids": operators.ConservativeOperatorConfig(FNO),
    "sides": operators.BoundaryOperatorConfig(ANYWHERE, factor=operators.BoxSidesConfig(upper=(2.0, 2.0))),
    "turns": operators.EquivariantOperatorConfig(TNO),
    "members": operators.EnsembleConfig(TNO, members=3),
}
# in its own process, where neither the library nor Flax can be imported
RUN = """
import sys
sys.modules["jaxop"] = sys.modules["flax"] = None
import jax, numpy, zipfile
for path in sys.argv[1:]:
    program = jax.export.deserialize(bytearray(zipfile.ZipFile(path).read("operator.bin")))
    cases = numpy.load(path + ".npz")
    for case in range(3):
        given = {name[2:]: cases[name] for name in cases.files if name.startswith(f"{case}/")}
        expected = given.pop("expected")
        outputs = program.call(**given)
        assert outputs.shape == expected.shape, (path, outputs.shape, expected.shape)
        print(float(abs(outputs - expected).max() / abs(expected).max()))
"""


def model_of(name):
    """An operator with statistics far from 0 and 1, so that a program in other units is found out."""
    config = CONFIGS[name]
    if isinstance(config, operators.EnsembleConfig):
        return build(config)
    zeros = {"initial_mean": [0.0] * 3} if getattr(config, "initial_channels", 0) else {}
    model = operators.Standardized(
        build(config),
        input_mean=[3.0],
        input_std=[0.5],
        output_mean=[0.25] * config.out_channels,
        output_std=[7.0] * config.out_channels,
        **zeros,
    )
    model.eval()
    return model


def arguments_of(config, batch, domain, rng, symbolic):
    """Random arguments of a program, and the keywords of the same call of the operator."""
    given = {"values": rng.normal(size=(batch, domain.size, 1))}
    options = {}
    if channels := getattr(config, "initial_channels", 0):
        options["initial"] = given["initial"] = rng.normal(size=(batch, channels))
    inside = innermost(config)
    if "nodes" in symbolic and inside.acts_on_grids:
        given |= {f"axis_{i}": axis.nodes for i, axis in enumerate(domain.axes)}
    elif "nodes" in symbolic:
        given |= {"points": domain.points, "weights": domain.weights}
        if inside.evaluates_anywhere:
            at = domains.monte_carlo(rng.random((batch + 4, config.dim), np.float32))
            options["at"], given["at"] = at, at.points
            if isinstance(config, operators.ConservativeOperatorConfig):
                given["at_weights"] = at.weights
    return {name: np.asarray(array, np.float32) for name, array in given.items()}, options


def exported(name, symbolic, tmp_path):
    """Exports an operator, and writes the arguments and the outputs of three sizes beside it."""
    model, config = model_of(name), CONFIGS[name]
    path = tmp_path / f"{name}-{len(symbolic)}.zip"
    shapes = ((8, 8), (12, 10), (5, 16)) if config.dim == 2 else ((80,), (81,), (96,))
    if "nodes" not in symbolic:
        shapes = shapes[:1] * 3
    grids = [domains.box(shape, rule="midpoint", upper=(2.0,) * config.dim) for shape in shapes]
    if isinstance(config, operators.LatentGridOperatorConfig):
        grids = [domains.box(shape, rule="trapezoid") for shape in shapes]
    operators.export(model, path, None if "nodes" in symbolic else grids[0], symbolic=symbolic)
    rng, cases = np.random.default_rng(0), {}
    call = jax.jit(lambda values, domain, options: model(values, domain, **options))
    for case, (batch, grid) in enumerate(zip((1, 3, 2), grids, strict=True)):
        given, options = arguments_of(config, batch, grid, rng, symbolic)
        options = {key: jnp.asarray(v, jnp.float32) if key == "initial" else v for key, v in options.items()}
        given["expected"] = np.asarray(call(jnp.asarray(given["values"]), grid, options))
        cases |= {f"{case}/{key}": array for key, array in given.items()}
    np.savez(f"{path}.npz", **cases)
    return path


BOTH, BATCH = ("batch", "nodes"), ("batch",)


@pytest.mark.parametrize(
    "cases",
    [
        [("decoder", BOTH), ("fno", BOTH), ("latent-grid", BOTH), ("fano", BATCH)],
        pytest.param([("tno", BOTH), ("flow", BOTH), ("latent", BOTH), ("lno", BOTH)], marks=pytest.mark.thorough),
        pytest.param(
            [("integral", BOTH), ("integral on grids", BOTH), ("sides", BOTH), ("turns", BATCH), ("members", BOTH)],
            marks=pytest.mark.thorough,
        ),
        pytest.param([("slices", BOTH), ("many modes", BOTH), ("momentum", BOTH)], marks=pytest.mark.thorough),
        pytest.param(
            [(name, BATCH) for name in ("vitno", "fno", "flow", "latent", "decoder", "latent-grid")],
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda cases: "-".join(name for name, _ in cases),
)
def test_a_program_equals_its_operator_at_three_sizes_without_the_library(cases, tmp_path):
    paths = [exported(name, symbolic, tmp_path) for name, symbolic in cases]
    command = [sys.executable, "-c", RUN, *map(str, paths)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = np.array(done.stdout.split(), float).reshape(len(cases), 3)
    assert (errors < 1e-6).all(), errors


@pytest.fixture(scope="module")
def fno_for_cuda(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "fno.zip"
    return operators.export(model_of("fno"), path, platforms=["cuda"])


def program_of(path):
    return jax.export.deserialize(bytearray(zipfile.ZipFile(path).read("operator.bin")))


def test_a_file_says_what_it_takes_and_where_it_runs(fno_for_cuda):
    about = json.loads(zipfile.ZipFile(fno_for_cuda).read("about.json"))
    assert (about["model"], about["symbolic"], about["platforms"]) == ("fno", ["batch", "nodes"], ["cuda"])
    assert about["arguments"] == {
        "values": {"shape": ["b", "n_0*n_1", 1], "dtype": "float32"},
        "axis_0": {"shape": ["n_0"], "dtype": "float32"},
        "axis_1": {"shape": ["n_1"], "dtype": "float32"},
    }
    assert about["outputs"]["shape"] == ["b", "n_0*n_1", 1]
    assert about["units"] == "of the data"
    program = program_of(fno_for_cuda)
    assert program.platforms == ("cuda",)
    given = {"values": jnp.ones((1, 64, 1)), "axis_0": jnp.arange(8.0) / 8, "axis_1": jnp.arange(8.0) / 8}
    with pytest.raises(ValueError, match=r"exported for platforms .*cuda.* but it is used on .*cpu"):
        program.call(**given)


def test_a_grid_that_is_too_coarse_for_the_modes_is_refused(tmp_path):
    program = program_of(operators.export(build(CONFIGS["fno"]), tmp_path / "fno.zip", platforms=["cpu"]))
    with pytest.raises(ValueError, match="Error refining shapes"):
        program.call(values=jnp.ones((1, 24, 1)), axis_0=jnp.arange(8.0) / 8, axis_1=jnp.arange(3.0) / 3)


@pytest.mark.parametrize("place", [0.2, 0.5, None])
def test_damage_is_noticed(fno_for_cuda, place, tmp_path):
    content = bytearray(fno_for_cuda.read_bytes())
    if place is None:
        content = content[: len(content) // 2]
    else:
        content[int(place * len(content))] ^= 1
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        program_of(tmp_path / "damaged.zip")


CHUNKED = dataclasses.replace(CONFIGS["tno"], attention=nn.IntegralAttentionConfig(implementation="chunked"))
SCHWARZ = dataclasses.replace(CONFIGS["tno"], schwarz=nn.SchwarzAttentionConfig(subdomains=2))
LOCAL = dataclasses.replace(CONFIGS["latent"], local=nn.LocalAverageConfig(radius=0.1))

PERIODIC = {name: dataclasses.replace(CONFIGS[name], coordinates="periodic") for name in ("tno", "fno")}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (CONFIGS["vitno"], "patches of a ViTNeuralOperator"),
        (CONFIGS["fano"], "patches of a FourierAttentionNeuralOperator"),
        (CHUNKED, "'chunked' of attention of a TransformerNeuralOperator .* 'dense' takes any number of nodes"),
        (SCHWARZ, "schwarz attention of a TransformerNeuralOperator"),
        (LOCAL, "the local integral of a LatentNeuralOperator"),
        (PERIODIC["tno"], "coordinates='periodic' of a TransformerNeuralOperator"),
        (PERIODIC["fno"], "coordinates='periodic' of a FourierNeuralOperator"),
        (operators.ConservativeOperatorConfig(PERIODIC["fno"], channels=(0,)), "coordinates='periodic' of a Fourier"),
        (operators.EquivariantOperatorConfig(FNO), "an EquivariantOperator needs to know the nodes"),
        (operators.BoundaryOperatorConfig(FNO), "with the sides of the box of a grid needs to know the nodes"),
    ],
)
def test_nodes_that_must_be_known_are_refused_with_the_reason(config, what, tmp_path):
    with pytest.raises(NotImplementedError, match=what):
        operators.export(build(config), tmp_path / "new.zip")
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class CountingConfig(operators.OperatorConfig):
    """Config of an operator that needs the value of the number of nodes."""


class Counting(nnx.Module):
    """u ↦ u / n, with n as a number of Python."""

    def __init__(self, config, *, rngs):
        self.config = config

    def __call__(self, values, domain, *, at=None, initial=None):
        return values / (2.0 if domain.size <= 16 else 1.0)


def test_an_operator_of_the_user_that_needs_a_size_is_named(tmp_path):
    with pytest.raises(NotImplementedError, match=r"Counting cannot be traced with symbolic batch and nodes.*domain"):
        operators.export(Counting(CountingConfig(1, 1), rngs=nnx.Rngs(0)), tmp_path / "new.zip")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"path": "new.bin"}, ValueError, r"path must be a file name that ends in \.zip, got 'new.bin'"),
        ({"symbolic": ["sides"]}, ValueError, "symbolic.*'sides'"),
        ({"platforms": ["gpu"]}, ValueError, "platforms.*'gpu'"),
        ({"platforms": []}, ValueError, "platforms must have at least one"),
        ({"domain": square(8)}, ValueError, r"domain and at must be None .* symbolic=\['batch'\]"),
        ({"symbolic": BATCH}, ValueError, "domain must be given unless the nodes are symbolic"),
        ({"symbolic": BATCH, "domain": 8}, TypeError, "domain must be a Domain, got int"),
        ({"symbolic": BATCH, "domain": domains.stack([square(8)] * 2)}, ValueError, "domain must be one domain"),
        ({"operator": 3}, TypeError, "operator must be a neural operator.*got int"),
        (
            {"operator": build(dynamics.StepperConfig(CONFIGS["fno"], 1))},
            TypeError,
            "got Stepper; export the operator inside",
        ),
    ],
)
def test_wrong_arguments_are_named(change, kind, message, tmp_path, unchecked):
    given = {"operator": build(CONFIGS["fno"]), "path": tmp_path / "new.zip"} | change
    with pytest.raises(kind, match=message):
        operators.export(given.pop("operator"), given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(fno_for_cuda):
    with pytest.raises(FileExistsError, match="exists already"):
        operators.export(build(CONFIGS["fno"]), fno_for_cuda, platforms=["cpu"])


def test_named_implementations_refuse_unknown_sizes():
    n = jax.export.symbolic_shape("n")[0]
    nodes = jax.ShapeDtypeStruct((n, 2, 4), jnp.float32)

    def attend(implementation):
        from jaxop.attention import integral_attention

        call = jax.jit(lambda q: integral_attention(q, q, q, implementation=implementation))
        return jax.export.export(call)(nodes)

    assert attend(None).out_avals[0].shape == (n, 2, 4)
    with pytest.raises(NotImplementedError, match="implementation='chunked' needs known numbers of nodes, got n"):
        attend("chunked")
