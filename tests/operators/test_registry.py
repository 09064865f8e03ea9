"""Configs of earlier versions: read where they mean what they meant, refused with a remedy where they do not."""

import dataclasses

import pytest

from jaxop import nn, operators

FANO, TNO = operators.FourierAttentionNeuralOperatorConfig, operators.TransformerNeuralOperatorConfig
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
