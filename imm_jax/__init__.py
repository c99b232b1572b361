"""Iterative Model Merging in JAX: self-improvement on verified samples that keeps its generality.

lm = imm_jax.load('path/to/model')
lm.generate(['The capital of France is'], max_new_tokens=8, stop=['.'])
"""

from typing import Any

__version__ = '0.2.0'
__all__ = ['LM', 'load']


def __getattr__(name: str) -> Any:
  # Loaded on first use: importing the package must not import jax.
  if name in __all__:
    from imm_jax import lm

    return getattr(lm, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
