"""Merging directories on disk, tensor by tensor: models may be larger than memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imm_jax.formats import shards
from imm_jax.merging import sparsify, trees
from imm_jax.merging.methods import METHODS
from imm_jax.merging.recipe import Recipe
from imm_jax.merging.sparsify import Whole

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_KNOWN = set(shards.DTYPES) - {'F64'}  # float64 would lose digits
_PIECE = (512, 1024)  # elements merged at once where a method allows it, in rows for XLA to share: they stay in cache
_NUM_THREADS = 2  # one reads or writes while the other merges; one more where they hold pieces only


class Report(NamedTuple):
  """What a merge did."""

  num_tensors: int
  num_changed: int  # elements of 16 bits in which some model differs from the first
  num_unmoved: int  # of those, elements that came out as the first has them; a method that drops elements is not asked
  config_differences: list[str]  # of config.json between the models, one a key


def merge_dirs(
  recipe: Recipe,
  out: str | os.PathLike[str],
  *,
  seed: int = 0,
  max_shard_bytes: float = 5e9,
  advance: Callable[[int], None] = lambda num_tensors: None,
) -> Report:
  """Writes the merge of Hugging Face directories to a new one, `out`; it appears whole or not at all.

  Tensors are read, merged and written one by one, _NUM_THREADS at the same time: about 2 (models + 1) of the largest are in
  memory, only pieces, and the masks that were drawn, where the method allows it. Tokenizer, config and other small files are
  those of the base (else the first model).

  Args:
    recipe: of the merge.
    out: the directory to write; it does not exist, or is empty.
    seed: of a random method's masks.
    max_shard_bytes: of a file of weights.
    advance: called with the number of tensors that have just been merged.

  Raises:
    FileNotFoundError: a model is not there.
    ValueError: a file is damaged, models differ in structure, shape or dtype (every tensor is named) or in vocabulary, or
      `out` is taken.
  """
  out = pathlib.Path(out).expanduser().absolute()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'{out}: exists and is not an empty directory; remove it or choose another')
  tensors = {model: open_model(model) for model in recipe.models}
  specs = _check(recipe, tensors)
  _check_vocabularies(recipe.models)
  num_layers = max((trees.locate(name)[1] or 0) + 1 for name in specs)
  recipe.check_layers(num_layers)
  target = recipe.out_dtype or recipe.dtype
  written = {
    name: shards.Spec(np.dtype(target) if target and spec.dtype in _FLOATS else spec.dtype, spec.shape)
    for name, spec in specs.items()
  }
  plans = {name: _plan(recipe, name, num_layers) for name in specs}
  key = jax.random.key(seed) if METHODS[recipe.method].random else None
  counts: list[tuple[Any, Any]] = []

  def fetch(name: str) -> Iterator[np.ndarray]:
    sources = [tensors[model][name] for model in plans[name].models]
    for x, count in _merged(
      recipe, name, [source.array() for source in sources], plans[name], key, written[name].dtype.name
    ):
      counts.extend([count] if count else [])
      yield x
    for source in sources:
      source.release()
    advance(1)

  temporary = out.with_name(f'{out.name}.tmp{os.getpid()}')
  temporary.mkdir(parents=True)
  try:
    num_threads = _NUM_THREADS + METHODS[recipe.method].in_pieces
    shards.write_tensors(temporary, written, fetch, max_shard_bytes=max_shard_bytes, num_threads=num_threads)
    _copy_files(pathlib.Path(recipe.models[0]).expanduser(), temporary, target)
    if out.exists():
      out.rmdir()
    temporary.rename(out)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  changed, unmoved = (sum(int(count[i]) for count in counts) for i in (0, 1))
  return Report(len(specs), changed, unmoved, _config_differences(recipe.models))


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


def open_model(model: str) -> dict[str, shards.Tensor]:
  """Returns the tensors of a directory by name. Raises FileNotFoundError, or ValueError when a file is damaged."""
  path = pathlib.Path(model).expanduser()
  if not path.is_dir():
    raise FileNotFoundError(
      f'{model}: no such directory; imm merge reads Hugging Face directories; a round becomes one by imm convert {model} DIR'
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


def _check_vocabularies(models: Sequence[str]) -> None:
  """Raises ValueError when an id is another token in another model: rows of the embeddings would not go together."""
  (first, one), *others = ((model, _vocabulary(model)) for model in models)
  for other, two in others:
    differing = [id_ for id_ in sorted({*one, *two}) if one.get(id_) != two.get(id_)] if one and two else []
    if differing:
      lines = [f'{id_} is {one.get(id_)!r} in {first} and {two.get(id_)!r} in {other}' for id_ in differing[:5]]
      more = f'; and {len(differing) - 5} more' if len(differing) > 5 else ''
      raise ValueError(f'the vocabularies differ in {len(differing)} tokens: {"; ".join(lines)}{more}')


def _vocabulary(model: str) -> dict[int, str]:
  """Returns id -> token of the directory's tokenizer.json; nothing where there is none."""
  file = pathlib.Path(model).expanduser() / 'tokenizer.json'
  content = shards.read_json(file) if file.exists() else {}
  entries = content.get('model', {}).get('vocab', {})
  tokens = (
    {id_: token for token, id_ in entries.items()} if isinstance(entries, dict) else dict(enumerate(t for t, _ in entries))
  )
  return tokens | {added['id']: added['content'] for added in content.get('added_tokens', [])}


def _config_differences(models: Sequence[str]) -> list[str]:
  """Returns what config.json says otherwise in another model, but for how the file was written."""
  unimportant = ('_name_or_path', 'transformers_version', 'torch_dtype', 'dtype', 'use_cache')
  files = {model: pathlib.Path(model).expanduser() / 'config.json' for model in models}
  configs = {model: shards.read_json(file) for model, file in files.items() if file.exists()}
  if not configs:
    return []
  (first, config), *others = configs.items()
  return [
    f'{key} is {config.get(key)!r} in {first} and {other.get(key)!r} in {model}'
    for model, other in others
    for key in sorted({*config, *other} - set(unimportant))
    if config.get(key) != other.get(key)
  ]


def _merged(
  recipe: Recipe, name: str, views: Sequence[np.ndarray], plan: _Plan, key: Any, out_dtype: str
) -> Iterator[tuple[np.ndarray, Any]]:
  """Yields the merged tensor, piece by piece where the method allows it, with the counts of Report where it has any."""
  if views[0].dtype not in _FLOATS:
    trees.check_equal(name, views)
    yield views[0], None
    return
  row = METHODS[recipe.method]
  size, width = views[0].size, (views[0].shape or (1,))[-1] if row.by_row else _PIECE[1]
  num_rows = max(1, math.prod(_PIECE) // width)
  options = {'method': recipe.method, 'static': plan.static, 'has_base': plan.has_base, 'dtype': recipe.dtype}
  starts = range(0, size, num_rows * width if row.in_pieces else size)
  key = trees.leaf_key(key, name)

  def inputs(start):
    arrays = [_rows(x, start // width, num_rows, width) if row.in_pieces else jnp.array(x) for x in views]
    return arrays, plan.traced, key, np.uint32(start % 2**32), np.float32(size)

  totals, cuts, masks = [], [], [()] * len(starts)
  if row.by_whole:
    parts, choices, masks = zip(*(_ask(*inputs(start), **options) for start in starts), strict=True)
    totals = [np.float32(np.sum(part, dtype=np.float64)) for part in zip(*parts, strict=True)]
    cuts = [
      _cut([np.asarray(scores) for scores, _ in choice], size, int(choice[0][1])) for choice in zip(*choices, strict=True)
    ]
  for start, mask in zip(starts, masks, strict=True):
    at = [(threshold, np.int32(np.clip(last - start, -1, 2**31 - 1))) for threshold, last in cuts]
    merged, count = _merge(*inputs(start), totals, at, mask, **options, out_dtype=out_dtype)
    yield np.asarray(merged).reshape(-1)[: size - start], count


def _cut(scores: Sequence[np.ndarray], size: int, k: int) -> tuple[np.int32, int]:
  """Returns for sparsify.at_least what the k largest of the tensor's scores are, of equal ones the first."""
  if k == 0:
    return np.int32(2**31 - 1), -1
  bits = np.concatenate([x.reshape(-1) for x in scores])[:size].view(np.int32)
  threshold = _kth_largest(bits, k)
  return threshold, int(np.flatnonzero(bits == threshold)[k - 1 - np.count_nonzero(bits > threshold)])


def _kth_largest(bits: np.ndarray, k: int) -> np.int32:
  """Returns it. A sample tells between which two it lies, so that few are sorted; where many are equal sorting is slow."""
  sample = np.sort(bits[::127])  # odd: whatever the width is, all columns are in it
  rank, margin = (1 - k / bits.size) * sample.size, 3 * np.sqrt(sample.size)
  low, high = (sample[int(np.clip(rank + side, 0, sample.size - 1))] for side in (-margin, margin))
  num_above = np.count_nonzero(bits > high)
  between = bits[(bits >= low) & (bits <= high)]
  if not num_above < k <= num_above + between.size:
    num_above, between = 0, bits
  elif low == high:
    return low
  place = between.size - (k - num_above)
  return np.partition(between, place)[place]


def _rows(x: np.ndarray, first: int, num: int, width: int) -> jax.Array:
  """Returns x as rows [num, width] from `first` on, with zeros behind its end: one shape to compile."""
  part = x.reshape(-1)[first * width : (first + num) * width]
  whole = part if part.size == num * width else np.pad(part, (0, num * width - part.size))
  return jnp.array(whole.reshape(num, width))


@functools.partial(jax.jit, static_argnames=('method', 'static', 'has_base', 'dtype'))
def _ask(arrays, traced, key, first, size, *, method, static, has_base, dtype):
  """Returns a piece's part of what its method asks of the whole tensor: of each sum, (scores, k) of each choice; masks."""
  parts, choices, masks = [], [], []

  def total(part):
    parts.append(part)
    return part

  def largest(scores, k):
    choices.append((scores, k))
    return jnp.ones(scores.shape, bool)

  def drawn(mask):
    masks.append(mask)
    return mask

  arrays = [x.astype(dtype or x.dtype) for x in arrays]
  whole = Whole(size, total, largest, drawn)
  trees.merge_tensor(method, arrays, traced, dict(static), key, has_base=has_base, first=first, whole=whole)
  return parts, choices, masks


@functools.partial(jax.jit, static_argnames=('method', 'static', 'has_base', 'dtype', 'out_dtype'))
def _merge(arrays, traced, key, first, size, totals, cuts, masks, *, method, static, has_base, dtype, out_dtype):
  """Returns the merged tensor or piece, and for a narrow dtype the counts of Report if any; compiled once a shape.

  totals, cuts and masks are what was asked of the whole tensor, if anything was, in the order in which it is asked again.
  """
  arrays = [x.astype(dtype or x.dtype) for x in arrays]
  sums, choices, drawn, whole = iter(totals), iter(cuts), iter(masks), None
  if METHODS[method].by_whole:
    whole = Whole(
      size, lambda _: next(sums), lambda scores, _: sparsify.at_least(scores, *next(choices)), lambda _: next(drawn)
    )
  merged = trees.merge_tensor(method, arrays, traced, dict(static), key, has_base=has_base, first=first, whole=whole).astype(
    out_dtype
  )
  if out_dtype == 'float32' or METHODS[method].drops:
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
