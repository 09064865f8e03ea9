"""Members that one program trains are the operators that runs of their own train; a run of several is resumed."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxop import data, domains, dynamics, operators, training
from jaxop.data.groups import draw_batch
from jaxop.training import memory
from jaxop.training.members import check_members
from tests.training.cases import assert_same_bits, interruption, rows, tiny

pytestmark = pytest.mark.optax

GRID = domains.interval(8, rule="periodic")
FNO = operators.FourierNeuralOperatorConfig(1, 1, 1, width=4, layers=1, modes=2, reference=8, projection=4)
TNO = operators.TransformerNeuralOperatorConfig(1, 1, width=4, heads=2, layers=1, feedforward=4, dropout=0.3)
SETTINGS = {"operator": "fno", "model": FNO}
CONFIG = training.TrainingConfig(
    steps=7,
    batch_size=4,
    accumulate=2,
    learning_rate=1e-2,
    warmup_steps=2,
    weight_decay=1e-2,
    clip_norm=0.5,
    ema_decay=0.9,
    eval_every=3,
    checkpoint_every=2,
    seed=3,
    members=2,
)


def functions(count=11, seed=0):
    u = np.random.default_rng(seed).normal(size=(count, 8, 1)).astype(np.float32)
    return data.Samples(u, 3 * np.roll(u, 1, axis=1) + 1, GRID)


def ragged():
    random = np.random.default_rng(0)
    clouds = [domains.monte_carlo(random.random((n, 1), np.float32)) for n in (5, 9, 5, 9, 5, 9)]
    return data.RaggedSamples([data.Sample(c.points, 2 * c.points, c) for c in clouds])


def new(config, seed=0):
    """An operator on grids in the units of its data, and any other bare."""
    operator = operators.build(config, rngs=nnx.Rngs(seed))
    return operators.Standardized(operator, **data.standardization(functions())) if config is FNO else operator


def fit(directory, *, model=None, train=None, valid=None, config=CONFIG, **options):
    valid = {"valid": functions(5, 1)} if valid is None else valid
    model, train = new(FNO) if model is None else model, functions() if train is None else train
    return training.fit(model, train, valid, config, run_dir=directory, **({"progress": False} | options))


def absolute_loss(model, batch):
    errors = jnp.abs(model(batch.inputs, batch.domain) - batch.targets)
    return jnp.mean(errors, axis=(1, 2)), {"largest": jnp.max(errors, axis=(1, 2))}


# without Adam's division: the derivative of a key's bias is zero up to rounding
SGD = optax.sgd(1e-2, momentum=0.9)
PLAIN = dataclasses.replace(CONFIG, ema_decay=0.0, accumulate=1, members=2, steps=4)
CASES = {
    "clipped, averaged, in micro-batches": (FNO, functions, CONFIG, {}),
    "dropout and random nodes": (TNO, lambda: data.RandomNodes(functions(), 5), PLAIN, {"optimizer": SGD}),
    "a loss and a schedule-free optimiser of the user": (
        FNO,
        functions,
        PLAIN,
        {"loss": absolute_loss, "optimizer": optax.contrib.schedule_free_adamw(1e-2)},
    ),
    "parameters that move every second step": (
        FNO,
        functions,
        PLAIN,
        {"optimizer": optax.MultiSteps(optax.adam(1e-2), 2)},
    ),
    "half precision and layers that are computed again": (
        TNO,
        functions,
        dataclasses.replace(PLAIN, precision="bf16", remat="layers", steps=2),
        {"optimizer": SGD},
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directory and result of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, fit(directory, settings=SETTINGS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "clipped" in name else pytest.mark.thorough) for name in CASES]
)
def test_each_member_is_a_run_of_its_own(name, whole, tmp_path):
    operator, make, config, options = CASES[name]
    train, options = make(), {"valid": {}} | options
    directory, together = whole
    if "clipped" not in name:
        directory = tmp_path / "all"
        together = fit(directory, model=new(operator), train=train, config=config, **options)
    assert together.model.config.members == config.members
    losses = []
    for number, seed in enumerate(training.member_seeds(config)):
        alone = dataclasses.replace(config, members=1, seed=seed)
        model = new(operator, seed) if number else new(operator)
        one = fit(tmp_path / str(number), model=model, train=train, config=alone, **options)
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if config.precision is None else {"rtol": 0.02, "atol": 2e-3}
        jax.tree.map(
            lambda a, b, tolerance=tolerance: np.testing.assert_allclose(a, b, **tolerance),
            nnx.to_pure_dict(nnx.state(together.model.member(number), nnx.Param)),
            nnx.to_pure_dict(nnx.state(one.model, nnx.Param)),
        )
        losses.append([[row[key] for key in ("loss", "grad_norm")] for row in rows(tmp_path / str(number))])
    found = [[row[key] for key in ("loss", "grad_norm")] for row in rows(directory) if "loss" in row]
    np.testing.assert_allclose(found, np.mean(losses, axis=0), rtol=1e-3 if config.precision is None else 0.02)
    assert not np.allclose(losses[0], losses[1], rtol=1e-2)


def test_a_run_is_resumed_bit_for_bit_and_opened_without_its_model(whole, tmp_path):
    directory, whole = whole
    with interruption(5) as loggers:
        fit(tmp_path / "resumed", settings=SETTINGS, loggers=loggers)
    with pytest.raises(ValueError, match=r"training\.members: 2 -> 3"):
        fit(tmp_path / "resumed", settings=SETTINGS, resume=True, config=dataclasses.replace(CONFIG, members=3))
    resumed = fit(tmp_path / "resumed", settings=SETTINGS, resume=True)
    assert_same_bits(resumed.state, whole.state)
    assert rows(tmp_path / "resumed") == rows(directory)
    run = training.load_run(tmp_path / "resumed")
    assert run.training.members == 2
    for model in (
        run.model(checkpoint="last"),
        run.restore(new(FNO), checkpoint="last"),  # a member
        run.restore(whole.model, checkpoint="last"),
    ):
        assert type(model) is operators.Ensemble
        assert_same_bits(nnx.state(model), nnx.state(whole.model))
    assert whole.errors["valid/l2"] == np.mean(
        training.evaluate(whole.model, functions(5, 1), batch_size=4).l2, dtype=float
    )
    last = run.restore(new(FNO), checkpoint="last", average=False)
    assert_same_bits(nnx.to_pure_dict(nnx.state(last, nnx.Param))["operator"], whole.state.params)


def test_the_first_member_starts_from_the_model_and_the_others_from_their_seeds():
    model = new(FNO, 7)
    _, state = training.init_state(model, training.make_optimizer(CONFIG), CONFIG)
    expected = [model, *(new(FNO, seed) for seed in training.member_seeds(CONFIG)[1:])]
    for number, one in enumerate(expected):
        member = jax.tree.map(lambda leaf, number=number: leaf[number], state.params)
        assert_same_bits(member, nnx.to_pure_dict(nnx.state(one, nnx.Param)))
    assert state.step.shape == ()
    assert training.member_seeds(CONFIG)[0] == CONFIG.seed
    assert training.member_seeds(dataclasses.replace(CONFIG, members=5))[:2] == training.member_seeds(CONFIG)


def test_members_take_one_sequence_of_groups_and_items_of_their_own():
    sizes, seeds = (6, 4), (3, 8)
    drawn = [[draw_batch(sizes, 2, seed=3, step=t, items_seed=seed) for t in range(5)] for seed in seeds]
    assert [group for group, _ in drawn[0]] == [group for group, _ in drawn[1]]
    for of_member in drawn:  # an epoch
        assert sorted((group, int(i)) for group, items in of_member for i in items) == [
            (group, i) for group, size in enumerate(sizes) for i in range(size)
        ]
    orders = [np.concatenate([items for _, items in of_member]).tolist() for of_member in drawn]
    assert orders[0] != orders[1]
    alone = [draw_batch(sizes, 2, seed=3, step=t) for t in range(5)]
    assert [items.tolist() for _, items in alone] == [items.tolist() for _, items in drawn[0]]


@pytest.mark.thorough
def test_samples_with_nodes_of_their_own(tmp_path):
    config = dataclasses.replace(PLAIN, batch_size=2, steps=5)
    result = fit(tmp_path, model=new(TNO), train=ragged(), valid={"same": ragged()}, config=config, optimizer=SGD)
    assert np.isfinite(result.errors["same/l2"])
    alone = dataclasses.replace(config, members=1)
    first = fit(tmp_path / "alone", model=new(TNO), train=ragged(), valid={}, config=alone, optimizer=SGD)
    ours, theirs = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (result.model.member(0), first.model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_a_message_names_the_member_whose_loss_is_not_finite(tmp_path):
    train, config = functions(), dataclasses.replace(CONFIG, accumulate=1)
    orders = [
        [data.batch_indices(11, 4, seed=seed, step=t).tolist() for t in range(config.steps)]
        for seed in training.member_seeds(config)
    ]
    spoiled = next(i for i in orders[1][0] if i not in orders[0][0])
    whole = train[np.arange(11)]

    class Spoiled:
        def __len__(self):
            return 11

        def __getitem__(self, indices):
            batch = jax.tree.map(lambda x: x, train[indices])
            bad = jnp.asarray(np.asarray(indices) == spoiled)[:, None, None]
            return dataclasses.replace(batch, inputs=jnp.where(bad, jnp.nan, batch.inputs))

    assert np.isfinite(whole.inputs).all()
    expected = (
        rf"step 1: the loss of member 1 is nan .*on samples \[{', '.join(map(str, orders[1][0]))}\].*batch.inputs"
    )
    with pytest.raises(FloatingPointError, match=expected):
        fit(tmp_path, train=Spoiled(), valid={}, config=config)


@pytest.mark.thorough
def test_a_plan_counts_all_members():
    mesh, batch = training.MeshConfig(data=1).make(4), functions()[np.arange(4)]
    one, three = (
        training.plan_step(new(FNO), batch, dataclasses.replace(CONFIG, members=members), mesh=mesh)
        for members in (1, 3)
    )
    assert three.parameters == 3 * one.parameters
    shared = sum(leaf.nbytes for leaf in jax.tree.leaves(GRID))
    assert three.batch - shared == 3 * (one.batch - shared)
    assert three.products == 3 * one.products


def test_the_memory_counts_all_members(tmp_path, monkeypatch):
    _, state = training.init_state(new(FNO), SGD, dataclasses.replace(CONFIG, members=1))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state, functions()[:4])))
    monkeypatch.setattr(memory, "device_memory", lambda: 2.0 * size)
    with pytest.raises(MemoryError, match="on 4 samples for each of 3 members needs at least"):
        fit(tmp_path, valid={}, optimizer=SGD, config=dataclasses.replace(CONFIG, members=3))


@pytest.mark.thorough
def test_all_members_are_traced_once():
    def traces(members):
        found, config = [], dataclasses.replace(PLAIN, members=members)

        def counted(model, batch):
            found.append(model)
            return training.relative_l2_loss(model, batch)

        graphdef, state = training.init_state(new(FNO), SGD, config)
        batch = functions()[np.arange(4)]
        batch = batch if members == 1 else training.MemberBatch.of([batch] * members)
        training.make_step(graphdef, SGD, config, loss=counted).lower(state, batch)
        return len(found)

    assert traces(1) == traces(3) > 0


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(tmp_path):
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"members={wrong!r} must be"):
            training.TrainingConfig(members=wrong)
    with pytest.raises(TypeError, match=r"model must be a neural operator.*members=2.*got Tiny; train several"):
        fit(tmp_path, model=tiny())
    stepper = operators.build(dynamics.StepperConfig(FNO, 1), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"members=2.*got Stepper; train several of them one by"):
        fit(tmp_path, model=stepper, loss=absolute_loss)
    with pytest.raises(NotImplementedError, match=r"members=2: .*of one process.*operators\.Ensemble\.of"):
        check_members(new(FNO), CONFIG, types.SimpleNamespace(is_multi_process=True))
    changed = new(FNO)
    changed.operator.lift.bias = None
    with pytest.raises(ValueError, match=r"model must have the same arrays as a new one of its config.*lift\.bias"):
        fit(tmp_path, model=changed, valid={})
    graphdef, state = training.init_state(new(FNO), training.make_optimizer(CONFIG), CONFIG)
    step = training.make_step(graphdef, training.make_optimizer(CONFIG), CONFIG)
    with pytest.raises(
        TypeError, match=r"batch must be a training\.MemberBatch of the batches of 2 members, got Batch"
    ):
        step(state, functions()[np.arange(4)])
    assert functools.reduce(lambda found, path: found or path.name, tmp_path.glob("*/checkpoints"), "") == ""
