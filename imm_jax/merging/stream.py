"""Merging directories on disk, tensor by tensor: models may be larger than memory."""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import functools
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imm_jax import shards
from imm_jax.merging import trees
from imm_jax.merging.methods import METHODS
from imm_jax.merging.recipe import Recipe

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_KNOWN = set(shards.DTYPES) - {'F64'}  # float64 would lose digits


class Report(NamedTuple):
  """What a merge did."""

  num_tensors: int
  num_changed: int  # elements of 16 bits in which some model differs from the first
  num_unmoved: int  # of those, elements that came out as the first has them


def merge_dirs(
  recipe: Recipe,
  out: str | os.PathLike[str],
  *,
  seed: int = 0,
  max_shard_bytes: float = 5e9,
  advance: Callable[[int], None] = lambda num_tensors: None,
) -> Report:
  """Writes the merge of Hugging Face directories to a new one, `out`; it appears whole or not at all.

  Tensors are read, merged and written one after the other, all three at the same time: about 2 (models + 1) of the largest
  are in memory. Tokenizer, config and other small files are those of the base (else the first model).

  Args:
    recipe: of the merge.
    out: the directory to write; it does not exist, or is empty.
    seed: of a random method's masks.
    max_shard_bytes: of a file of weights.
    advance: called with the number of tensors that have just been merged.

  Raises:
    FileNotFoundError: a model is not there.
    ValueError: a file is damaged, models differ in structure, shape or dtype (every tensor is named), or `out` is taken.
  """
  out = pathlib.Path(out).expanduser().absolute()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'{out}: exists and is not an empty directory; remove it or choose another')
  tensors = {model: _open(model) for model in recipe.models}
  specs = _check(recipe, tensors)
  num_layers = max((trees.locate(name)[1] or 0) + 1 for name in specs)
  recipe.check_layers(num_layers)
  target = recipe.out_dtype or recipe.dtype
  written = {
    name: shards.Spec(np.dtype(target) if target and spec.dtype in _FLOATS else spec.dtype, spec.shape)
    for name, spec in specs.items()
  }
  plans = {name: _plan(recipe, name, num_layers) for name in specs}
  counts: list[tuple[Any, Any]] = []
  merged = _merged(recipe, tensors, plans, {name: spec.dtype for name, spec in written.items()}, seed, counts)
  temporary = out.with_name(f'{out.name}.tmp{os.getpid()}')
  temporary.mkdir(parents=True)
  try:

    def fetch(name: str) -> np.ndarray:
      done, x = next(merged)
      assert done == name
      advance(1)
      return x

    shards.write_tensors(temporary, written, fetch, max_shard_bytes=max_shard_bytes)
    _copy_files(pathlib.Path(recipe.models[0]).expanduser(), temporary, target)
    if out.exists():
      out.rmdir()
    temporary.rename(out)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  changed, unmoved = (sum(int(count[i]) for count in counts) for i in (0, 1))
  return Report(len(specs), changed, unmoved)


class _Plan(NamedTuple):
  """How one tensor is merged."""

  models: list[str]  # the base first, where there is one
  has_base: bool
  traced: Mapping[str, Any]
  static: tuple[tuple[str, bool], ...]


def _plan(recipe: Recipe, name: str, num_layers: int) -> _Plan:
  models, values = recipe.of(name, num_layers)
  base = recipe.theta_0()
  traced, static = trees.split_parameters(values, lambda value: value, len(models))
  if recipe.alpha is not None:
    traced['alpha'] = recipe.alpha
  # jit sees arrays: a new number must not compile again.
  traced = jax.tree.map(lambda value: np.float32(value), traced)
  return _Plan([base, *models] if base else models, base is not None, traced, tuple(static.items()))


def _open(model: str) -> dict[str, Any]:
  path = pathlib.Path(model).expanduser()
  if not path.is_dir():
    raise FileNotFoundError(
      f'{model}: no such directory; imm merge reads Hugging Face directories (imm convert writes them)'
    )
  return shards.open_tensors(path)


def _check(recipe: Recipe, tensors: Mapping[str, Mapping[str, Any]]) -> Mapping[str, shards.Spec]:
  """Returns what the result's tensors are. Raises ValueError with every difference between the models."""
  specs = {}
  for model, of_model in tensors.items():
    unknown = [f'{name} is {tensor.dtype_name}' for name, tensor in of_model.items() if tensor.dtype_name not in _KNOWN]
    if unknown:
      raise ValueError(f'{model}: {", ".join(unknown)}: only float32, bfloat16, float16 and integers are supported')
    specs[model] = {name: tensor.spec() for name, tensor in of_model.items()}
    if recipe.dtype:  # inputs may then differ in it
      cast = np.dtype(recipe.dtype)
      specs[model] = {n: shards.Spec(cast, s.shape) if s.dtype in _FLOATS else s for n, s in specs[model].items()}
  return trees.check_trees(specs)


def _merged(recipe, tensors, plans, dtypes, seed, counts) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the merged tensors in order. The next one is read, and this one merged, while the last is written."""
  key = jax.random.key(seed) if METHODS[recipe.method].random else None

  def read(name):
    sources = [tensors[model][name] for model in plans[name].models]
    arrays = [source.array() for source in sources]
    if arrays[0].dtype in _FLOATS:
      arrays = jax.block_until_ready([jnp.array(x) for x in arrays])  # copies, from the file
      for source in sources:
        source.release()
    return arrays

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    names = list(plans)
    coming = pool.submit(read, names[0])
    merged = []
    for name, following in zip(names, [*names[1:], None], strict=True):
      arrays, plan = coming.result(), plans[name]
      if following:
        coming = pool.submit(read, following)
      if arrays[0].dtype in _FLOATS:
        x, count = _merge(
          arrays, plan.traced, trees.leaf_key(key, name), method=recipe.method, static=plan.static,
          has_base=plan.has_base, dtype=recipe.dtype, out_dtype=dtypes[name].name,
        )  # fmt: skip
        counts += [count] if count else []
      else:
        trees.check_equal(name, arrays)
        x = arrays[0]
      del arrays
      merged.append((name, x))
      if len(merged) == 2:
        name, x = merged.pop(0)
        yield name, np.asarray(x)
    name, x = merged.pop()
    yield name, np.asarray(x)


@functools.partial(jax.jit, static_argnames=('method', 'static', 'has_base', 'dtype', 'out_dtype'))
def _merge(arrays, traced, key, *, method, static, has_base, dtype, out_dtype):
  """Returns the merged tensor, and for a narrow dtype the counts of Report; compiled once a shape."""
  if dtype:
    arrays = [x.astype(dtype) for x in arrays]
  merged = trees.merge_tensor(method, arrays, traced, dict(static), key, has_base=has_base).astype(out_dtype)
  if out_dtype == 'float32':
    return merged, None
  return merged, trees.count_unmoved(arrays[0], arrays[1:], merged.astype(arrays[0].dtype))


def _copy_files(source: pathlib.Path, target: pathlib.Path, dtype: str | None) -> None:
  """Copies what is not weights: config, tokenizer, generation config, licence."""
  for file in sorted(source.iterdir()):
    weights = file.suffix in ('.safetensors', '.bin', '.pt', '.pth', '.gguf') or file.name.endswith('.index.json')
    if file.is_file() and not weights and not file.name.startswith('.'):
      shutil.copyfile(file, target / file.name)
  config = target / 'config.json'
  if dtype and config.exists():
    content = shards.read_json(config)
    names = [name for name in ('dtype', 'torch_dtype') if name in content] or ['torch_dtype']
    shards.write_json(config, content | dict.fromkeys(names, dtype))
