"""`merge`: a method applied to pytrees, leaf by leaf and layer by layer."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from imm_jax.merging import checks, coefficients, names, rules
from imm_jax.merging.methods import METHODS
from imm_jax.merging.tensors import flags_of, Inputs, leaf_key, numbers_of, TensorMerge
from imm_jax.text import nearest

Params = Any


@dataclasses.dataclass(frozen=True)
class MergeConfig:
  """How a round's tuned params are merged, and with what."""

  method: str  # a key of METHODS that has an alpha
  # Weight of tuned, 0 is the anchor, 1 is tuned: a coefficient (coefficients.py), or a schedule of
  # it (rules.py).
  alpha: Any
  drop_rate: float  # fraction dropped: dare
  density: float  # fraction kept: the other methods that sparsify
  # The original, the round's start, or the mean of all rounds' starts.
  anchor: Literal['base', 'previous', 'all_previous']
  # alpha itself, one a layer, its control, or the best found.
  rule: Literal['fixed', 'layer_adaptive', 'layer_adaptive_shuffled', 'search']
  search_eps: float  # accuracy in tasks.probe that the alpha of 'search' may lose

  def __post_init__(self):
    known = [name for name, row in METHODS.items() if row.alpha]
    if self.method not in known:
      hint = nearest(self.method, known)
      raise ValueError(f'merge.method: {self.method!r} is not one of {", ".join(known)}{hint}')
    rules.check_alpha('merge.alpha', self.alpha)
    is_number = not coefficients.varies(rules.schedule(self.alpha, 1))
    if self.rule.startswith('layer_adaptive') and not is_number:
      form = f'a number or a schedule of it, as merge.rule {self.rule!r} needs'
      raise ValueError(f'merge.alpha: {self.alpha} is not {form}')
    if not 0 <= self.search_eps <= 1:
      raise ValueError(f'merge.search_eps: {self.search_eps} is not in [0, 1]')
    if not 0 <= self.drop_rate < 1:
      raise ValueError(f'merge.drop_rate: {self.drop_rate} is not in [0, 1)')
    if not 0 < self.density <= 1:
      raise ValueError(f'merge.density: {self.density} is not in (0, 1]')

  def parameters(self) -> dict[str, float]:
    """Returns those of the method that the config sets."""
    own = METHODS[self.method].parameters
    return {name: getattr(self, name) for name in ('drop_rate', 'density') if name in own}


def merge(
  method: str,
  base: Params | None,
  models: Sequence[Params],
  *,
  alpha: Any = None,
  key: jax.Array | None = None,
  **parameters: Any,
) -> Params:
  """Returns the merge of models, with base where the method has one, leaf by leaf.

  merge('linear', base, [tuned], alpha=0.5) is IMM's. Leaves under 'layers/' are stacked [L, ...]; a
  tree with a leaf for each layer ('layers/3/mlp', 'model.layers.3.mlp') gives the same numbers. All
  is computed in float32, and rounded once to the leaf's dtype.

  Args:
    method: a key of METHODS.
    base: theta_0; None for a method without.
    models: theta_1 .. theta_n, of base's structure, shapes and dtypes.
    alpha: the weight of the models against base, which is then always given: 0 is base, 1 the (mean
      of the) models. It sets the method's own parameter, Method.alpha. A coefficient
      (coefficients.py), maybe traced.
    key: of a random method: f(seed, round). A mask is f(key, name of the leaf, layer, model), the
      same on every mesh.
    **parameters: of the method, by name: a coefficient, or for those in PER_MODEL a tuple of n of
      them. All but those in FLAGS may be traced.

  Raises:
    ValueError: the method, a parameter or the number of models is wrong, or trees differ: every
      difference is named.
  """
  has_base, has_alpha = base is not None, alpha is not None
  row = checks.check_method(method, has_base=has_base, num_models=len(models), has_alpha=has_alpha)
  if row.random and key is None:
    raise ValueError(f'{method}: draws masks; give a key')
  parameters = checks.check_parameters(method, parameters, has_alpha=has_alpha)
  trees = [base, *models] if has_base else list(models)
  checks.check_trees({f'model {i}': names.by_name(tree) for i, tree in enumerate(trees)})
  alphas = coefficients.resolve(alpha, trees[0]) if has_alpha else None
  how = TensorMerge(method, has_base, flags_of(parameters))
  return _merge_leaves(how, trees, parameters, alphas, key)


def make_merge(config: MergeConfig, shardings: Any, *, donates: bool) -> Any:
  """Returns the jitted merge(anchor, tuned, alpha, key) -> params of the run loop.

  Args:
    config: how to merge; its alpha is not read.
    shardings: of the result, as out_shardings of jit.
    donates: whether nobody needs tuned any more: the result then takes its memory.

  Returns:
    a function that is compiled once for all rounds: alpha is the tree of float32 arrays that
    coefficients.resolve makes, and the key is f(seed, round).
  """
  row = METHODS[config.method]
  parameters = checks.check_parameters(config.method, config.parameters(), has_alpha=True)
  how = TensorMerge(config.method, True, flags_of(parameters))

  def merge_trees(anchor, tuned, alpha, key):
    return _merge_leaves(how, [anchor, tuned], parameters, alpha, key if row.random else None)

  donated = ('tuned',) if donates else ()
  return jax.jit(merge_trees, donate_argnames=donated, out_shardings=shardings)


def _merge_leaves(
  how: TensorMerge,
  trees: Sequence[Params],
  parameters: Mapping[str, Any],
  alphas: Params | None,
  key: Any,
) -> Params:
  """Returns the merge of trees, the base first where there is one; parameters were checked."""
  num_layers = names.count_layers(names.by_name(trees[0]))
  num_models = len(trees) - how.has_base
  alpha_of = {} if alphas is None else names.by_name(alphas)

  def leaf(path, *arrays):
    name = names.of_path(path)
    if not jnp.issubdtype(arrays[0].dtype, jnp.floating):
      checks.check_equal(name, arrays)
      return arrays[0]
    resolve = functools.partial(coefficients.in_leaf, name=name, num_layers=num_layers)
    numbers = numbers_of(parameters, num_models, resolve)
    checks.check_weights(name, how.method, numbers, dict(how.flags))
    if alpha_of:
      numbers['alpha'] = alpha_of[name]
    inputs = Inputs(arrays, numbers, leaf_key(key, name))
    if not names.is_stacked(name):
      return how(inputs).astype(arrays[0].dtype)
    if how.row.drops and not how.row.elementwise:
      return _layer_by_layer(how, inputs)
    return _all_layers(how, inputs)

  return jax.tree.map_with_path(leaf, *trees)


def _all_layers(how: TensorMerge, inputs: Inputs) -> jax.Array:
  """Returns the merge of stacked tensors [L, ...] with numbers [L], in one pass over the memory."""
  dtype, num_layers = inputs.arrays[0].dtype, len(inputs.arrays[0])
  keys = None
  if inputs.key is not None:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(inputs.key, jnp.arange(num_layers))

  def merge_layer(arrays, numbers, key):
    return how(Inputs(arrays, numbers, key)).astype(dtype)

  return jax.vmap(merge_layer)(inputs.arrays, inputs.numbers, keys)


def _layer_by_layer(how: TensorMerge, inputs: Inputs) -> jax.Array:
  """Returns the same, written into the last of the arrays.

  Masks and other temporaries are never larger than a layer.
  """

  def write_layer(layer, merged):
    at_layer = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
    arrays, numbers = jax.tree.map(at_layer, ([*inputs.arrays[:-1], merged], inputs.numbers))
    key = None if inputs.key is None else jax.random.fold_in(inputs.key, layer)
    new = how(Inputs(arrays, numbers, key)).astype(merged.dtype)
    return jax.lax.dynamic_update_index_in_dim(merged, new, layer, axis=0)

  return jax.lax.fori_loop(0, len(inputs.arrays[-1]), write_layer, inputs.arrays[-1])


@jax.jit
def drift_norm(base: Params, params: Params) -> jax.Array:
  """Returns ‖params - base‖ / ‖base‖ over all parameters, [] f32."""
  moved = jax.tree.map(lambda b, p: jnp.sum((p - b) ** 2), base, params)
  size = jax.tree.map(lambda b: jnp.sum(b**2), base)
  return jnp.sqrt(sum(jax.tree.leaves(moved)) / sum(jax.tree.leaves(size)))
