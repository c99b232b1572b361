"""Model merging as algebra on pytrees of parameters."""

from imm_jax.merging.methods import METHODS

__all__ = ['METHODS']
