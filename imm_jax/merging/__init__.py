"""Model merging as algebra on pytrees of parameters."""

from imm_jax.merging.methods import METHODS
from imm_jax.merging.trees import make_merge, merge, MergeConfig

__all__ = ['METHODS', 'MergeConfig', 'make_merge', 'merge']
