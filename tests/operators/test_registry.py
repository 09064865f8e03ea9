"""Every model by its name; configs that data decide; configs of earlier versions."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from jaxop import domains, nn, operators, transformers

FANO, TNO = operators.FourierAttentionNeuralOperatorConfig, operators.TransformerNeuralOperatorConfig
LATENT_GRID = operators.LatentGridOperatorConfig
EARLIER = {"momentum": {"block": "Y", "initial": "zero", "method": "kick_damp_drift"}, "norm": "pre"}


def test_fields_that_changed_nothing_are_dropped():
    sizes = {"in_channels": 1, "out_channels": 1}
    momentum = nn.MomentumConfig("Y", "zero")
    assert operators.from_dict(FANO, sizes | EARLIER | {"schwarz": None}) == FANO(1, 1, norm="pre", momentum=momentum)
    assert operators.from_dict(TNO, sizes | EARLIER) == TNO(1, 1, norm="pre", momentum=momentum)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (FANO, {"schwarz": dataclasses.asdict(nn.SchwarzAttentionConfig(2))}, "has no schwarz any more.*Transformer"),
        (TNO, {"momentum": {"block": "exact"}}, "has no block='exact' any more.*FlowNeuralOperator"),
        (TNO, {"momentum": {"block": "exact", "method": "tao"}}, "has no method any more.*'tao'.*FlowNeuralOperator"),
    ],
)
def test_what_has_moved_is_named(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        operators.from_dict(kind, {"in_channels": 1, "out_channels": 1} | fields)


class TestRegistry:
    def test_has_every_model_of_the_package(self):
        models = operators.models()
        assert set(operators.CONFIGS) == {"tno", "latent", "latent_grid", "vitno", "fano", "fno", "flow"}
        assert set(operators.CONFIGS) | {"sequence", "classifier", "translation", "image"} <= set(models)
        for name, model in models.items():
            assert model.name == name
            assert model.config is operators.CONFIGS.get(name, model.config)
            assert model.description

    def test_builds_transformers_too(self):
        config = transformers.VisionTransformerConfig(4, width=8, heads=2, layers=1)
        assert operators.model_of(config).name == "image"
        model = nnx.eval_shape(lambda: operators.build(config, rngs=nnx.Rngs(0)))
        assert isinstance(model, transformers.VisionTransformer)

    def test_a_subclass_of_a_config_is_its_own_model(self):
        assert operators.model_of(transformers.SequenceTransformerConfig(3)).name == "sequence"
        assert operators.model_of(transformers.SequenceClassifierConfig(3)).name == "classifier"

    def test_finds_the_transformers_before_anyone_imports_them(self):
        code = "from jaxop import operators; print(*operators.models())"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "translation" in result.stdout.split()

    def test_a_name_is_given_once(self):
        with pytest.raises(ValueError, match="name='tno' is taken by TransformerNeuralOperatorConfig"):
            operators.register("tno", FANO)(operators.FourierAttentionNeuralOperator)


def box(*shape, **options):
    return domains.box(shape, rule="midpoint", **options)


class TestForData:
    """The config that data decide, against the rule: 4 patches (8 in 1-D) of at least 8 nodes where the grids allow."""

    @pytest.mark.parametrize(
        ("name", "shapes", "choices", "expected"),
        [
            ("fano", [(64, 64), (32, 32)], {}, {"patches": 4, "modes": 4, "reference": 64, "smoothing_modes": None}),
            ("fano", [(64, 64)], {"patches": 2}, {"patches": 2, "modes": 8, "reference": 64}),
            ("fano", [(16,)], {}, {"patches": 2, "modes": 4, "reference": 16, "dim": 1}),
            ("fano", [(128,)], {}, {"patches": 8, "modes": 8, "reference": 128, "dim": 1}),
            ("vitno", [(48, 64)], {"smoothing_modes": None}, {"patches": 4, "modes": 6, "smoothing_modes": 16}),
            ("vitno", [(24, 24)], {"smoothing_modes": 3}, {"patches": 3, "modes": 4, "smoothing_modes": 3}),
            ("vitno", [(9, 9), (7, 7)], {}, {"patches": 1, "modes": 3, "reference": 9, "smoothing_modes": 3}),
            ("fno", [(64, 64)], {"modes": None}, {"modes": 12, "reference": 64}),
            ("fno", [(64, 64), (16, 16)], {}, {"modes": 8, "reference": 64}),
            ("fno", [(64, 64)], {"modes": 5, "reference": 32}, {"modes": 5, "reference": 32}),
            ("tno", [(9, 9)], {"width": 16}, {"dim": 2, "width": 16, "initial_channels": 0}),
        ],
    )
    def test_grids(self, name, shapes, choices, expected):
        kind = operators.CONFIGS[name]
        first, *others = (box(*shape) for shape in shapes)
        config = kind.for_data(first, in_channels=1, out_channels=2, others=others, **choices)
        assert (config.in_channels, config.out_channels, config.dim) == (1, 2, len(shapes[0]))
        assert {field: getattr(config, field) for field in expected} == expected

    def test_scattered_nodes_leave_the_defaults(self):
        cloud = domains.monte_carlo(np.ones((30, 3), np.float32))
        for kind in operators.CONFIGS.values():
            config = kind.for_data(cloud, in_channels=1, out_channels=1, initial_channels=4)
            decided = {TNO: {"initial_channels": 4}, LATENT_GRID: {"lower": (0.5,) * 3, "upper": (1.5,) * 3}}
            assert config == kind(1, 1, 3, **decided.get(kind, {}))

    def test_the_data_decide_what_the_config_has(self):
        for kind in operators.CONFIGS.values():
            fields = {field.name for field in dataclasses.fields(kind)}
            assert {*kind.FROM_DATA, *kind.FROM_GRID} <= fields

    def test_choices_may_be_configs_or_dicts(self):
        for momentum in (nn.MomentumConfig("Y"), {"block": "Y"}):
            config = TNO.for_data(box(8), in_channels=1, out_channels=1, norm="pre", momentum=momentum)
            assert config.momentum == nn.MomentumConfig("Y")

    def test_what_does_not_fit_is_named(self):
        with pytest.raises(ValueError, match="has no field 'widht': did you mean 'width'"):
            TNO.for_data(box(8), in_channels=1, out_channels=1, widht=3)
        with pytest.raises(ValueError, match=r"patches must divide reference = 16, got 5; valid numbers: \[1, 2, 4, 8"):
            FANO.for_data(box(16), in_channels=1, out_channels=1, patches=5)
        with pytest.raises(ValueError, match="patches must be at least 1, got 0"):
            FANO.for_data(box(16), in_channels=1, out_channels=1, patches=0)
