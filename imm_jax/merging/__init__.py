"""Model merging as algebra on pytrees of parameters."""

from imm_jax.merging.methods import METHODS
from imm_jax.merging.trees import drift_norm, make_merge, merge, MergeConfig

__all__ = ['METHODS', 'MergeConfig', 'drift_norm', 'make_merge', 'merge']
