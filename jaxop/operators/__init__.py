"""Neural operators, called as ``operator(values, domain)``; each has a config and a thin module.

The operators are `TransformerNeuralOperator`, `LatentNeuralOperator`, `LatentGridOperator`, `ViTNeuralOperator`,
`FourierAttentionNeuralOperator`, `FourierNeuralOperator` and `FlowNeuralOperator`. `Standardized` makes an operator act
in physical units, `Ensemble` is the mean of several, and `Calibrated` returns error bars too. `BoundaryOperator`,
`ConservativeOperator` and `EquivariantOperator` make an operator keep what is known: values, integrals and symmetries.
`models` lists them by name, with the transformers of `jaxop.transformers`.
"""

from jaxop._config import from_dict as from_dict
from jaxop._config import to_dict as to_dict
from jaxop._moved import moved
from jaxop.operators.boundary import BoundaryOperator as BoundaryOperator
from jaxop.operators.boundary import BoundaryOperatorConfig as BoundaryOperatorConfig
from jaxop.operators.boundary import BoxSidesConfig as BoxSidesConfig
from jaxop.operators.boundary import box_factor as box_factor
from jaxop.operators.boundary import prescribe as prescribe
from jaxop.operators.calibrated import Calibrated as Calibrated
from jaxop.operators.calibrated import CalibratedConfig as CalibratedConfig
from jaxop.operators.config import COORDINATES as COORDINATES
from jaxop.operators.config import CoordinatesConfig as CoordinatesConfig
from jaxop.operators.config import Operator as Operator
from jaxop.operators.config import OperatorConfig as OperatorConfig
from jaxop.operators.conservation import ConservativeOperator as ConservativeOperator
from jaxop.operators.conservation import ConservativeOperatorConfig as ConservativeOperatorConfig
from jaxop.operators.conservation import conserve as conserve
from jaxop.operators.constraint import AroundConfig as AroundConfig
from jaxop.operators.constraint import ConstrainedOperator as ConstrainedOperator
from jaxop.operators.constraint import ConstraintConfig as ConstraintConfig
from jaxop.operators.constraint import InputChannelsConfig as InputChannelsConfig
from jaxop.operators.ensemble import Ensemble as Ensemble
from jaxop.operators.ensemble import EnsembleConfig as EnsembleConfig
from jaxop.operators.equivariance import GROUPS as GROUPS
from jaxop.operators.equivariance import EquivariantOperator as EquivariantOperator
from jaxop.operators.equivariance import EquivariantOperatorConfig as EquivariantOperatorConfig
from jaxop.operators.equivariance import symmetrize as symmetrize
from jaxop.operators.fano import FourierAttentionNeuralOperator as FourierAttentionNeuralOperator
from jaxop.operators.fano import FourierAttentionNeuralOperatorConfig as FourierAttentionNeuralOperatorConfig
from jaxop.operators.flow import FlowNeuralOperator as FlowNeuralOperator
from jaxop.operators.flow import FlowNeuralOperatorConfig as FlowNeuralOperatorConfig
from jaxop.operators.fno import FourierNeuralOperator as FourierNeuralOperator
from jaxop.operators.fno import FourierNeuralOperatorConfig as FourierNeuralOperatorConfig
from jaxop.operators.grid import GridConfig as GridConfig
from jaxop.operators.grid import PatchConfig as PatchConfig
from jaxop.operators.latent import LatentNeuralOperator as LatentNeuralOperator
from jaxop.operators.latent import LatentNeuralOperatorConfig as LatentNeuralOperatorConfig
from jaxop.operators.latent_grid import LatentGridOperator as LatentGridOperator
from jaxop.operators.latent_grid import LatentGridOperatorConfig as LatentGridOperatorConfig
from jaxop.operators.pretrained import from_pretrained as from_pretrained
from jaxop.operators.program import PLATFORMS as PLATFORMS
from jaxop.operators.program import SYMBOLIC as SYMBOLIC
from jaxop.operators.program import export as export
from jaxop.operators.ready import ready_models as ready_models
from jaxop.operators.registry import CONFIGS as CONFIGS
from jaxop.operators.registry import Model as Model
from jaxop.operators.registry import build as build
from jaxop.operators.registry import model_of as model_of
from jaxop.operators.registry import models as models
from jaxop.operators.registry import register as register
from jaxop.operators.standardized import Standardized as Standardized
from jaxop.operators.standardized import Statistic as Statistic
from jaxop.operators.tno import TransformerNeuralOperator as TransformerNeuralOperator
from jaxop.operators.tno import TransformerNeuralOperatorConfig as TransformerNeuralOperatorConfig
from jaxop.operators.vitno import ViTNeuralOperator as ViTNeuralOperator
from jaxop.operators.vitno import ViTNeuralOperatorConfig as ViTNeuralOperatorConfig

__getattr__ = moved(
    __name__,
    {
        "EncoderDecoderTransformer": "jaxop.transformers.EncoderDecoderTransformer",
        "EncoderDecoderTransformerConfig": "jaxop.transformers.EncoderDecoderTransformerConfig",
        "SequenceClassifier": "jaxop.transformers.SequenceClassifier",
        "SequenceClassifierConfig": "jaxop.transformers.SequenceClassifierConfig",
        "SequenceTransformer": "jaxop.transformers.SequenceTransformer",
        "SequenceTransformerConfig": "jaxop.transformers.SequenceTransformerConfig",
        "VisionTransformer": "jaxop.transformers.VisionTransformer",
        "VisionTransformerConfig": "jaxop.transformers.VisionTransformerConfig",
    },
)
