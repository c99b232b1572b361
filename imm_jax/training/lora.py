"""LoRA (arXiv 2106.09685): a small product A B beside each kernel of attention and MLP.

The product is trained in place of the kernel.
"""

import functools
from typing import Any
import zlib

import jax
import jax.numpy as jnp

from imm_jax.models.config import ModelConfig
from imm_jax.models.transformer import abstract_params, param_shardings, Params

# The tree of the params, with {'lora_a': [L, inputs, rank], 'lora_b': [L, rank, outputs]} in place
# of each kernel.
Adapters = dict[str, Any]


@functools.partial(jax.jit, static_argnames=('config', 'rank'))
def init(key: jax.Array, config: ModelConfig, rank: int) -> Adapters:
  """Returns adapters that change nothing.

  A is normal with variance 1 / inputs, f(key, path), and B is zero.
  """
  abstract = abstract_params(config)[0]['layers']
  adapters: Adapters = {'layers': {}}
  for part in ('attn', 'mlp'):
    adapters['layers'][part] = {}
    for name, module in abstract[part].items():
      if 'kernel' in module:  # Modules without a kernel are norms.
        L, inputs, outputs = module['kernel'].shape
        own = jax.random.fold_in(key, zlib.crc32(f'{part}/{name}'.encode()))
        a = jax.random.normal(own, (L, inputs, rank)) * inputs**-0.5
        adapters['layers'][part][name] = {'lora_a': a, 'lora_b': jnp.zeros((L, rank, outputs))}
  return adapters


def abstract(config: ModelConfig, rank: int) -> Adapters:
  """Returns the adapters as ShapeDtypeStructs."""
  return jax.eval_shape(lambda: init(jax.random.key(0), config, rank))


def attach(params: Params, adapters: Adapters, scale: float) -> Params:
  """Returns params of the model with its adapters.

  Each adapter lies beside its kernel, where layers.Projection finds it.
  """
  if 'lora_a' in adapters:
    return params | {'lora_a': scale * adapters['lora_a'], 'lora_b': adapters['lora_b']}
  return params | {name: attach(params[name], part, scale) for name, part in adapters.items()}


def merge(params: Params, adapters: Adapters, scale: float) -> Params:
  """Returns params of the same model without adapters: W + scale A B."""
  if 'lora_a' in adapters:
    product = jnp.einsum('LIR,LRO->LIO', adapters['lora_a'], adapters['lora_b'])
    return params | {'kernel': params['kernel'] + scale * product}
  return params | {name: merge(params[name], part, scale) for name, part in adapters.items()}


@functools.lru_cache
def make_merge(model: Any, mesh: jax.sharding.Mesh, scale: float) -> Any:
  """Returns the jitted merge(params, adapters) -> params, which donates params.

  The params are sharded as the model is.
  """
  out = param_shardings(model.config, mesh, model.rules)
  return jax.jit(functools.partial(merge, scale=scale), out_shardings=out, donate_argnums=0)
