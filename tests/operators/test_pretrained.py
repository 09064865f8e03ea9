"""Models as folders: what is loaded is what was saved, in a process of its own too, and damage is named."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import jaxop
from jaxop import dynamics, nn, operators, transformers
from jaxop._files import json_checksum
from jaxop.operators import folder
from tests.scale.cases import configs, square

TOKENS = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8}
MODELS = configs() | {
    "latent-grid": operators.LatentGridOperatorConfig(1, 1, dim=2, width=4, layers=1, heads=2, feedforward=4, grid=8),
    "sequence": transformers.SequenceTransformerConfig(vocabulary=5, context=6, **TOKENS),
    "classifier": transformers.SequenceClassifierConfig(vocabulary=5, context=6, classes=3, **TOKENS),
    "image": transformers.VisionTransformerConfig(side=8, patch=4, channels=1, classes=3, **TOKENS),
    "translation": transformers.EncoderDecoderTransformerConfig(vocabulary=5, source=6, target=4, **TOKENS),
    "stepper": dynamics.StepperConfig(configs()["fno"], 1),
    "boundary": operators.BoundaryOperatorConfig(configs()["fno"]),
    "conservative": operators.ConservativeOperatorConfig(configs()["fno"], integrals=(1.0,)),
    "equivariant": operators.EquivariantOperatorConfig(configs()["tno"]),
    "ensemble": operators.EnsembleConfig(configs()["fno"], members=3, standardized=True),
    "calibrated": operators.CalibratedConfig(
        operator=configs()["fno"],
        spread=configs()["fno"],
        alpha=0.1,
        delta=0.05,
        factor=1 / 3,
        count=19,
        standardized=True,
    ),
}
TNO = MODELS["tno"]


def build(config, seed=1):
    return operators.build(config, rngs=nnx.Rngs(seed))


def numbers(model):
    return {name: np.asarray(leaf) for name, leaf in folder.named_weights(model).items()}


def standardized(config, seed=1):
    return operators.Standardized(
        build(config, seed), input_mean=[3.0], input_std=[0.1], output_mean=[1 / 3], output_std=[7.0]
    )


def reseal(path, **changes):
    """Changes a config as someone would who also mends its checksum."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    config.pop("seal")
    file.write_text(json.dumps(config | {"seal": json_checksum(config)}))


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_bit_for_bit(name, tmp_path):
    model = build(MODELS[name])
    loaded = jaxop.from_pretrained(model.save(tmp_path / name))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    ours, theirs = numbers(loaded), numbers(model)
    assert ours.keys() == theirs.keys()
    for leaf, array in theirs.items():
        assert ours[leaf].dtype == array.dtype
        np.testing.assert_array_equal(ours[leaf], array)


def test_all_models_are_tested():
    assert {type(config) for config in MODELS.values()} >= {
        model.config for model in operators.models().values() if model.module.__module__.startswith("jaxop.")
    }


def test_a_model_whose_config_is_that_of_another_is_not_saved(tmp_path):
    statistics = {"input_mean": [0.0], "input_std": [1.0], "output_mean": [0.0], "output_std": [1.0]}
    with pytest.raises(TypeError, match=r"must be a TransformerNeuralOperator.* got a Standardized"):
        operators.Standardized(standardized(TNO), **statistics).save(tmp_path / "nested")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["tno", "tno.zip"])
def test_an_operator_in_the_units_of_its_data(file, tmp_path):
    model = standardized(dataclasses.replace(TNO, dropout=0.5))
    path = model.save(tmp_path / "new" / file, card={"Data": "none"})
    loaded = jaxop.from_pretrained(path)
    domain, u = square(4), jax.random.normal(jax.random.key(0), (16, 1))
    model.eval()
    np.testing.assert_array_equal(loaded(u, domain), model(u, domain))
    np.testing.assert_array_equal(loaded(u, domain), loaded(u, domain))
    np.testing.assert_array_equal(loaded.output_mean[...], model.output_mean[...])
    assert [entry.name for entry in path.parent.iterdir()] == [file]


def test_a_folder_needs_neither_training_nor_data(tmp_path):
    path = standardized(TNO).save(tmp_path / "tno")
    code = f"""
import sys, jax.numpy as jnp, jaxop
from jaxop import domains
model = jaxop.from_pretrained({str(path)!r})
print(model(jnp.ones((5, 1)), domains.monte_carlo(jnp.ones((5, 2)))).shape)
print({{"jaxop.training", "jaxop.data"}} & {{*sys.modules}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split("\n")[:2] == ["(5, 1)", "set()"], run.stderr


def test_the_card_says_what_the_model_is(tmp_path):
    text = (standardized(TNO).save(tmp_path / "tno", card={"Data": "Darcy flow, seed 7"}) / "card.md").read_text()
    assert text.startswith("# TransformerNeuralOperator\n")
    for part in (
        "1 channel to functions with 1 channel,",
        "## Data\n\nDarcy flow, seed 7",
        "arXiv:2406.06486",
        "jaxop 0",
    ):
        assert part in text


def test_other_precision_and_placement(tmp_path):
    path = build(TNO).save(tmp_path / "tno")
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    loaded = jaxop.from_pretrained(path, dtype=jnp.bfloat16, sharding=sharding)
    assert (loaded.config.dtype, loaded.config.param_dtype) == ("bfloat16", "bfloat16")
    leaves = jax.tree.leaves(nnx.state(loaded, nnx.Param))
    assert {leaf.sharding for leaf in leaves} == {sharding}
    assert jnp.dtype(jnp.bfloat16) in {leaf.dtype for leaf in leaves}
    again = jaxop.from_pretrained(loaded.save(tmp_path / "half"))
    for leaf, array in numbers(loaded).items():
        np.testing.assert_array_equal(numbers(again)[leaf], array)


def test_an_operator_inside_another_has_its_precision(tmp_path):
    config = dataclasses.replace(
        MODELS["latent-grid"], process=dataclasses.replace(MODELS["fno"], in_channels=4, out_channels=4)
    )
    loaded = jaxop.from_pretrained(build(config).save(tmp_path / "grid"), dtype="bfloat16")
    assert loaded.config.process.dtypes == {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    assert loaded.decoder[0].attention.process.config == loaded.config.process


@pytest.mark.usefixtures("unchecked")
def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path):
    model = build(TNO)
    path = model.save(tmp_path / "tno")
    with pytest.raises(FileExistsError, match="tno exists already; give a new name"):
        model.save(path)
    model.head.bias[...] = jnp.full_like(model.head.bias[...], np.nan)
    with pytest.raises(ValueError, match=r"head\.bias of the model is not finite"):
        model.save(tmp_path / "bad")
    with pytest.raises(TypeError, match="card must map titles to Markdown, got 'Data': 7"):
        build(TNO).save(tmp_path / "bad", card={"Data": 7})
    assert [entry.name for entry in tmp_path.iterdir()] == ["tno"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return standardized(TNO).save(tmp_path_factory.mktemp("models") / "tno")


@pytest.fixture
def copy(saved, tmp_path):
    path = tmp_path / "copy"
    path.mkdir()
    for file in saved.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "statistics.json", "card.md"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damage_is_named(file, damage, copy):
    path = copy / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        i = content.index(b"0") if file == "config.json" else len(content) // 2
        content[i] = ord("7")
        path.write_bytes(content)
    kind = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(kind, match=rf"copy(/| has no file ){file}"):
        jaxop.from_pretrained(copy)


def test_a_damaged_zip_file_is_named(tmp_path):
    path = build(TNO).save(tmp_path / "tno.zip")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"tno.zip is neither a folder nor a zip file"):
        jaxop.from_pretrained(path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(FileNotFoundError, match=r"empty.zip has no file config.json"):
        jaxop.from_pretrained(tmp_path / "empty.zip")


@pytest.mark.usefixtures("unchecked")
def test_other_versions_and_models_are_named(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        jaxop.from_pretrained(tmp_path / "nothing")
    with pytest.raises(TypeError, match="path must be"):
        jaxop.from_pretrained(7)
    reseal(copy, model="tnn")
    with pytest.raises(ValueError, match="names the model 'tnn', which is not registered: did you mean 'tno'"):
        jaxop.from_pretrained(copy)
    reseal(copy, model="tno", config={"in_channels": 1, "out_channels": 1, "widht": 8})
    with pytest.raises(ValueError, match=r"written by jaxop .*has no field 'widht': did you mean 'width'"):
        jaxop.from_pretrained(copy)
    reseal(copy, format=99, jaxop="9.0")
    with pytest.raises(ValueError, match=r"has format 99 of jaxop 9.0, .* reads formats up to 1; update jaxop"):
        jaxop.from_pretrained(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="does not describe a model"):
        jaxop.from_pretrained(copy)


def test_weights_of_another_config_are_listed(copy):
    config = json.loads((copy / "config.json").read_text())["config"]
    reseal(copy, config=config | {"feedforward": 6, "layers": 2})
    message = r"are not those of its config:\n  layers\.0\.[a-z.]+ is float32\[[\d, ]+\], expected float32"
    with pytest.raises(ValueError, match=message) as error:
        jaxop.from_pretrained(copy)
    assert "layers.1." in str(error.value)
    assert "is missing" in str(error.value)


def test_a_setting_of_an_earlier_version_is_converted(copy):
    config = json.loads((copy / "config.json").read_text())["config"]
    reseal(copy, config=config | {"momentum": config["momentum"] | {"method": "kick_damp_drift"}})
    assert jaxop.from_pretrained(copy).config == TNO


def test_what_is_stored_are_plain_arrays(saved):
    weights = safetensors.numpy.load_file(saved / "model.safetensors")
    expected = numbers(build(TNO))
    assert weights.keys() == expected.keys()
    assert json.loads((saved / "statistics.json").read_text())["input_mean"] == [3.0]
    assert os.path.getsize(saved / "card.md") > 200
    assert nn.ModelConfig in type(TNO).__mro__
