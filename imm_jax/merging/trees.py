"""`merge`: a method applied to pytrees, leaf by leaf and layer by layer."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any, Literal
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.merging import coefficients, sparsify
from imm_jax.merging.methods import METHODS, PER_MODEL, STATIC
from imm_jax.text import nearest

Params = Any

STACKED = 'layers/'  # Leaves under this key are stacked [L, ...].
_LAYER = re.compile(r'(?:^|(?<=[./]))(?:layers|h|blocks)([./](\d+))(?=[./])')  # a layer by itself: model.layers.3.mlp


@dataclasses.dataclass(frozen=True)
class MergeConfig:
  """How a round's tuned params are merged, and with what."""

  method: str  # a key of METHODS that has an alpha
  alpha: Any  # weight of tuned, 0 is the anchor, 1 is tuned: a coefficient, or its schedule over rounds (coefficients.py)
  drop_rate: float  # fraction dropped: dare
  density: float  # fraction kept: the other methods that sparsify
  anchor: Literal['base', 'previous', 'all_previous']  # the original, the round's start, or the mean of all rounds' starts
  rule: Literal[
    'fixed', 'layer_adaptive', 'layer_adaptive_shuffled', 'search'
  ]  # alpha itself, one a layer, or the best found
  search_eps: float  # accuracy in tasks.probe that the alpha of 'search' may lose

  def __post_init__(self):
    known = [name for name, row in METHODS.items() if row.alpha]
    if self.method not in known:
      raise ValueError(f'merge.method: {self.method!r} is not one of {", ".join(known)}{nearest(self.method, known)}')
    coefficients.check('merge.alpha', self.alpha, 0, 1, whole=True)
    if self.rule.startswith('layer_adaptive') and coefficients.varies(coefficients.schedule(self.alpha, 1)):
      raise ValueError(f'merge.alpha: {self.alpha} is not a number or a schedule of it, as merge.rule {self.rule!r} needs')
    if not 0 <= self.search_eps <= 1:
      raise ValueError(f'merge.search_eps: {self.search_eps} is not in [0, 1]')
    for name, good in (('drop_rate', 0 <= self.drop_rate < 1), ('density', 0 < self.density <= 1)):
      if not good:
        raise ValueError(f'merge.{name}: {getattr(self, name)} is not in {"[0, 1)" if name == "drop_rate" else "(0, 1]"}')

  def parameters(self) -> dict[str, float]:
    """Returns those of the method that the config sets."""
    return {name: getattr(self, name) for name in ('drop_rate', 'density') if name in METHODS[self.method].parameters}


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

  merge('linear', base, [tuned], alpha=0.5) is IMM's. Leaves under 'layers/' are stacked [L, ...]; a tree with a leaf for
  each layer ('layers/3/mlp', 'model.layers.3.mlp') gives the same numbers. All is computed in float32, and rounded once to
  the leaf's dtype.

  Args:
    method: a key of METHODS.
    base: theta_0; None for a method without.
    models: theta_1 .. theta_n, of base's structure, shapes and dtypes.
    alpha: the weight of the models against base, which is then always given: 0 is base, 1 the (mean of the) models. It sets
      the method's own parameter, Method.alpha. A coefficient (coefficients.py), maybe traced.
    key: of a random method: f(seed, round). A mask is f(key, name of the leaf, layer, model), the same on every mesh.
    **parameters: of the method, by name: a coefficient, or for those in PER_MODEL a tuple of n of them. All but those in
      STATIC may be traced.

  Raises:
    ValueError: the method, a parameter or the number of models is wrong, or trees differ: every difference is named.
  """
  row = check_method(method, has_base=base is not None, num_models=len(models), has_alpha=alpha is not None)
  if row.random and key is None:
    raise ValueError(f'{method}: draws masks; give a key')
  values = check_parameters(method, parameters, has_alpha=alpha is not None)
  trees = ([] if base is None else [base]) + list(models)
  names = check_trees({f'model {i}': by_name(tree) for i, tree in enumerate(trees)})
  num_layers = max((x.shape[0] if _is_stacked(name) else (locate(name)[1] or 0) + 1 for name, x in names.items()), default=1)

  def leaf(path, *arrays):
    name = _name(path)
    if not jnp.issubdtype(arrays[0].dtype, jnp.floating):
      check_equal(name, arrays)
      return arrays[0]
    layer, stacked = locate(name)[1], _is_stacked(name)
    layers = range(num_layers) if stacked else [layer]

    def at(coefficient):
      if not coefficients.varies(coefficient):
        return coefficient
      found = [coefficients.at(coefficient, name, layer, num_layers) for layer in layers]
      return jnp.stack([jnp.asarray(value, jnp.float32) for value in found]) if stacked else found[0]

    traced, static = split_parameters(values, at, len(models))
    if alpha is not None:
      traced['alpha'] = at(alpha)

    def one(arrays, traced, key):
      return merge_tensor(method, arrays, traced, static, key, has_base=base is not None).astype(arrays[0].dtype)

    if not stacked:
      return one(arrays, traced, leaf_key(key, name))
    apply = _one_by_one if row.drops and not row.elementwise else _all_at_once
    return apply(one, arrays, traced, leaf_key(key, name))

  return jax.tree.map_with_path(leaf, *trees)


def make_merge(config: MergeConfig, shardings: Any, *, donates: bool) -> Any:
  """Returns the jitted merge(anchor, tuned, alpha, key) -> params of the run loop: in place where tuned is donated.

  alpha is traced, so that a schedule compiles once: [] f32; or [L + 1] f32, one a layer, the last for what is in no layer;
  None where config.alpha is a rule by name.
  """
  row = METHODS[config.method]

  def merge_trees(anchor, tuned, alpha, key):
    key = key if row.random else None
    if alpha is None:
      alpha = config.alpha
    elif alpha.ndim:
      alpha = [{'filter': STACKED, 'value': alpha[:-1]}, {'value': alpha[-1]}]
    return merge(config.method, anchor, [tuned], alpha=alpha, key=key, **config.parameters())

  return jax.jit(merge_trees, donate_argnames=('tuned',) if donates else (), out_shardings=shardings)


def _all_at_once(one: Callable[..., jax.Array], arrays: Sequence[jax.Array], traced: Any, key: Any) -> jax.Array:
  """Returns one(tensors, traced, key) of each layer of stacked arrays [L, ...]: a single pass over the memory."""
  axes = jax.tree.map(lambda value: 0 if getattr(value, 'ndim', 0) else None, traced)
  keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(arrays[0].shape[0]))
  return jax.vmap(one, in_axes=(0, axes, 0))(arrays, traced, keys)


def _one_by_one(one: Callable[..., jax.Array], arrays: Sequence[jax.Array], traced: Any, key: Any) -> jax.Array:
  """Returns the same, written into the last of the arrays: masks and their like are never larger than a layer."""

  def write_layer(layer, merged):
    at_layer = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
    p = jax.tree.map(lambda value: at_layer(value) if getattr(value, 'ndim', 0) else value, traced)
    layer_key = None if key is None else jax.random.fold_in(key, layer)
    new = one([at_layer(x) for x in (*arrays[:-1], merged)], p, layer_key)
    return jax.lax.dynamic_update_index_in_dim(merged, new, layer, axis=0)

  return jax.lax.fori_loop(0, arrays[0].shape[0], write_layer, arrays[-1])


def merge_tensor(
  method: str,
  arrays: Sequence[jax.Array],
  traced: Mapping[str, Any],
  static: Mapping[str, bool],
  key: jax.Array | None,
  *,
  has_base: bool,
  first: Any = 0,
  whole: sparsify.Whole | None = None,
) -> jax.Array:
  """Returns the merge of one tensor, float32: arrays are that of the base, if there is one, and those of the models.

  They may be a piece of it, from the element `first` on; `whole` then tells of all of it.
  """
  tensors, p = [x.astype(jnp.float32) for x in arrays], {**traced, **static}
  base, models = (tensors[0], tensors[1:]) if has_base else (None, tensors)
  if 'alpha' in p:
    base, models, own = METHODS[method].with_alpha(base, models, p.pop('alpha'))
    p |= own
  drawn = None
  if key is not None:
    drawn = [sparsify.uniform(jax.random.fold_in(key, i), x.shape, first) for i, x in enumerate(models)]
  return METHODS[method].function(base, models, p, drawn, whole or sparsify.Whole(arrays[0].size))


def split_parameters(values: Mapping[str, Any], at: Any, num_models: int) -> tuple[dict[str, Any], dict[str, bool]]:
  """Returns a tensor's parameters, at(coefficient) of each, those in PER_MODEL as lists; and the STATIC ones."""
  traced = {}
  for name, value in values.items():
    if name in PER_MODEL:
      traced[name] = [at(v) for v in (value if isinstance(value, tuple) else (value,) * num_models)]
    elif name not in STATIC:
      traced[name] = at(value)
  return traced, {name: value for name, value in values.items() if name in STATIC}


def locate(name: str) -> tuple[str, int | None]:
  """Returns the name without its layer's number, and the number: ('model.layers.mlp', 3); None where there is none."""
  match = _LAYER.search(name)
  return (name, None) if match is None else (name[: match.start(1)] + name[match.end(1) :], int(match[2]))


def leaf_key(key: jax.Array | None, name: str) -> jax.Array | None:
  """Returns the key of a leaf's masks; of a layer by itself, that of this layer of the stacked leaf."""
  if key is None:
    return None
  plain, layer = locate(name)
  key = jax.random.fold_in(key, zlib.crc32(plain.encode()))
  return key if layer is None else jax.random.fold_in(key, layer)


def check_method(method: str, *, has_base: bool, num_models: int, has_alpha: bool = False) -> Any:
  """Returns the method's row. Raises ValueError when there is none, or it does not take these models, or an alpha."""
  if method not in METHODS:
    raise ValueError(f'{method!r} is no merge method{nearest(method, METHODS)}; there are {", ".join(METHODS)}')
  row = METHODS[method]
  if has_alpha:
    if not row.alpha:
      raise ValueError(f'{method}: has no alpha; its parameters are {", ".join(row.parameters) or "none"}')
    if not has_base:
      raise ValueError(f'{method}: alpha weighs the models against a base; give it')
    if row.alpha == 'weight':  # the base becomes one of the models
      num_models, has_base = num_models + has_base, False
  if row.base == 'required' and not has_base:
    raise ValueError(f'{method}: needs a base model')
  if row.base == 'none' and has_base:
    raise ValueError(f'{method}: takes no base model; make it one of the models')
  least, most = row.num_models
  if num_models < least or (most is not None and num_models > most):
    wanted = f'{least}' if least == most else f'at least {least}'
    raise ValueError(f'{method}: takes {wanted} models{" beside the base" if has_base else ""} and got {num_models}')
  return row


def check_parameters(method: str, parameters: Mapping[str, Any], *, has_alpha: bool = False) -> dict[str, Any]:
  """Returns the parameters with the defaults. Raises ValueError naming one that is unknown, missing or of a wrong type."""
  row = METHODS[method]
  for name in parameters:
    if name not in row.parameters:
      hint = nearest(name, row.parameters)
      raise ValueError(f'{method}: has no parameter {name!r}{hint}; it has {", ".join(row.parameters) or "none"}')
  for name in (row.alpha, 'weight') if has_alpha else ():
    if name in parameters:
      raise ValueError(f'{method}: alpha sets {name!r}; give one of the two')
  values = {**row.parameters, **parameters}
  for name in [name for name, value in values.items() if value is None]:
    if not has_alpha or name not in (row.alpha, 'weight'):
      raise ValueError(f'{method}: parameter {name!r} is missing')
    del values[name]
  for name in STATIC:
    if name in values and not isinstance(values[name], bool):
      raise ValueError(f'{method}: {name} is true or false for the whole model, not {values[name]!r}')
  return values


def check_trees(trees: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
  """Returns the first of {model: {name: what has dtype and shape}}. Raises ValueError with every tensor that differs."""
  (first, tree), *others = trees.items()
  lines = []
  for second, other in others:
    for name in dict.fromkeys([*tree, *other]):
      sides = [f'{x[name].dtype} {list(x[name].shape)}' if name in x else 'missing' for x in (tree, other)]
      if sides[0] != sides[1]:
        lines.append(f'{name} is {sides[0]} in {first} and {sides[1]} in {second}')
  if lines:
    raise ValueError(f'the models differ in {len(lines)} tensors (a given dtype makes dtypes equal): {"; ".join(lines)}')
  return tree


def check_equal(name: str, arrays: Sequence[Any]) -> None:
  """Raises ValueError when tensors that cannot be merged are not equal."""
  if any((np.asarray(x) != np.asarray(arrays[0])).any() for x in arrays[1:]):
    raise ValueError(f'{name}: is {arrays[0].dtype}, which cannot be merged, and differs between the models')


def count_unmoved(base: jax.Array, models: Sequence[jax.Array], merged: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (elements in which a model is not base, those of them where merged is base), [] uint32: what rounding ate."""
  changed = functools.reduce(jnp.logical_or, [model != base for model in models], jnp.zeros((), bool))
  return jnp.sum(changed, dtype=jnp.uint32), jnp.sum(changed & (merged == base), dtype=jnp.uint32)


@jax.jit
def drift_norm(base: Params, params: Params) -> jax.Array:
  """Returns ‖params - base‖ / ‖base‖ over all parameters, [] f32."""
  squares = jax.tree.map(lambda b, p: (jnp.sum((p - b) ** 2), jnp.sum(b**2)), base, params)
  moved, size = zip(*jax.tree.leaves(squares, is_leaf=lambda leaf: isinstance(leaf, tuple)), strict=True)
  return jnp.sqrt(sum(moved) / sum(size))


def by_name(tree: Params) -> dict[str, Any]:
  """Returns the leaves by their path, 'layers/attn/q/kernel'."""
  return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_stacked(name: str) -> bool:
  return name.startswith(STACKED) and locate(name)[1] is None
