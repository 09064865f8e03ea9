"""Darcy flow with a transformer neural operator of two-level Schwarz attention, trained at 32².

Source: Köhler, Rheinbach, arXiv:2606.18525, for the two levels. Entries that depend on the input are our addition. All
    grids have the same 4 × 4 overlapping subdomains and 16 coarse tokens.
Hardware: 2 CPU cores. Time: five minutes, without generating the data.
Expected: relative L2 of 4.0 ± 0.1 % at 32², 64² and 128² after 1300 steps, two seeds; 4.4 and 4.6 % after 1109.
Command: jaxop train darcy_schwarz
"""

import dataclasses

from jaxop.experiments.configs.darcy_tno import CONFIG as GLOBAL
from jaxop.nn import SchwarzAttentionConfig

CONFIG = dataclasses.replace(
    GLOBAL, model=dataclasses.replace(GLOBAL.model, schwarz=SchwarzAttentionConfig(subdomains=4, overlap=0.25))
)
