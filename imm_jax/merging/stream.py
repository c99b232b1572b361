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
import numpy as np

from imm_jax.formats import shards
from imm_jax.merging import checks, directories, names, pieces
from imm_jax.merging.methods import METHODS
from imm_jax.merging.recipe import Recipe
from imm_jax.merging.tensors import flags_of, Inputs, leaf_key, numbers_of, TensorMerge

# Elements merged at once where a method allows it, in rows for XLA to share: they stay in cache.
PIECE = (512, 1024)
_NUM_THREADS = 2  # One reads or writes while the other merges; one more where they hold pieces.


class Report(NamedTuple):
  """What a merge did."""

  num_tensors: int
  num_changed: int  # elements of 16 bits in which some model differs from the first
  num_unmoved: int  # of those, elements that came out as in the first; 0 if the method drops some
  config_differences: list[str]  # of config.json between the models, one a key


class Program(NamedTuple):
  """What a program that merges pieces is compiled for, besides their shape."""

  how: TensorMerge
  dtype: str | None  # what the inputs are rounded to; None: they are not
  out_dtype: str  # of what is written


class Task(NamedTuple):
  """How one tensor is merged."""

  name: str
  models: list[str]  # in the order of Inputs.arrays
  program: Program
  numbers: Mapping[str, Any]  # of Inputs
  key: Any  # of Inputs


def merge_dirs(
  recipe: Recipe,
  out: str | os.PathLike[str],
  *,
  seed: int = 0,
  max_shard_bytes: float = 5e9,
  advance: Callable[[int], None] = lambda num_tensors: None,
) -> Report:
  """Writes the merge of Hugging Face directories to a new one, which appears whole or not at all.

  Tensors are read, merged and written one by one, _NUM_THREADS at the same time. About twice the
  largest tensor of all models and of the merge is in memory; where the method allows it only pieces
  are, and the masks that were drawn. Tokenizer, config and other small files are those of the base
  (else the first model).

  Args:
    recipe: of the merge.
    out: the directory to write; it does not exist, or is empty.
    seed: of a random method's masks.
    max_shard_bytes: of a file of weights.
    advance: called with the number of tensors that have just been merged.

  Raises:
    FileNotFoundError: a model is not there.
    ValueError: a file is damaged, models differ in structure, shape or dtype (every tensor is
      named) or in vocabulary, or `out` is taken.
  """
  out = directories.check_out(out)
  tensors = {model: open_model(model) for model in recipe.models}
  specs = directories.check_tensors(tensors, recipe.dtype)
  directories.check_vocabularies(recipe.models)
  written = directories.cast(specs, recipe.out_dtype or recipe.dtype)
  tasks = _tasks(recipe, written, seed)
  counts: list[tuple[Any, Any]] = []

  def fetch(name: str) -> Iterator[np.ndarray]:
    for merged, count in _read_and_merge(tasks[name], tensors):
      counts.append(count or (0, 0))
      yield merged
    advance(1)

  _write(recipe, out, written, fetch, max_shard_bytes)
  num_changed, num_unmoved = (sum(int(count[i]) for count in counts) for i in (0, 1))
  differences = directories.config_differences(recipe.models)
  return Report(len(specs), num_changed, num_unmoved, differences)


def open_model(model: str) -> dict[str, shards.Tensor]:
  """Returns the tensors of a directory by name.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: a file is damaged.
  """
  path = pathlib.Path(model).expanduser()
  if not path.is_dir():
    hint = f'a round becomes one by imm convert {model} DIR'
    reads = 'imm merge reads Hugging Face directories'
    raise FileNotFoundError(f'{model}: no such directory; {reads}; {hint}')
  return shards.open_tensors(path)


def _write(
  recipe: Recipe,
  out: pathlib.Path,
  written: Mapping[str, shards.Spec],
  fetch: Callable[[str], Iterator[np.ndarray]],
  max_shard_bytes: float,
) -> None:
  """Makes the directory `out`, or leaves nothing.

  fetch: gives a tensor in pieces, by its name.
  """
  temporary = out.with_name(f'{out.name}.tmp{os.getpid()}')
  temporary.mkdir(parents=True)
  try:
    shards.write_tensors(
      temporary,
      written,
      fetch,
      max_shard_bytes=max_shard_bytes,
      num_threads=_NUM_THREADS + METHODS[recipe.method].in_pieces,
    )
    directories.copy_files(recipe.models[0], temporary, recipe.out_dtype or recipe.dtype)
    if out.exists():
      out.rmdir()
    temporary.rename(out)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _tasks(recipe: Recipe, written: Mapping[str, shards.Spec], seed: int) -> dict[str, Task]:
  """Returns how each tensor is merged. Raises ValueError if the recipe does not fit the models."""
  num_layers = names.count_layers(written)
  recipe.check_layers(num_layers)
  base, key = recipe.theta_0(), jax.random.key(seed) if METHODS[recipe.method].random else None
  tasks = {}
  for name, spec in written.items():
    models, parameters = recipe.of(name, num_layers)
    how = TensorMerge(recipe.method, base is not None, flags_of(parameters))
    # Arrays, as a new number must not compile again.
    numbers = numbers_of(parameters, len(models), np.float32)
    checks.check_weights(name, recipe.method, numbers, dict(how.flags))
    if recipe.alpha is not None:
      numbers['alpha'] = np.float32(recipe.alpha)
    program = Program(how, recipe.dtype, spec.dtype.name)
    models = [base, *models] if base else models
    tasks[name] = Task(name, models, program, numbers, leaf_key(key, name))
  return tasks


def _read_and_merge(
  task: Task,
  tensors: Mapping[str, Mapping[str, shards.Tensor]],
) -> Iterator[tuple[np.ndarray, Any]]:
  """Yields what _merged does, from tensors on disk, which are released when all is merged."""
  sources = [tensors[model][task.name] for model in task.models]
  yield from _merged(task, [source.array() for source in sources])
  for source in sources:
    source.release()


def _merged(task: Task, views: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Any]]:
  """Yields the merged tensor, piece by piece where the method allows it, with counts for Report."""
  if views[0].dtype not in directories.FLOATS:
    checks.check_equal(task.name, views)
    yield views[0], None
    return
  row, size = task.program.how.row, views[0].size
  width = (views[0].shape or (1,))[-1] if row.pieces == 'rows' else PIECE[1]
  num_rows = max(1, math.prod(PIECE) // width)
  starts = range(0, size, num_rows * width if row.in_pieces else size)

  def read(x, start):
    if row.in_pieces:
      return _rows(x, start // width, num_rows, width)
    return jnp.array(x)

  def inputs(start):
    arrays = [read(x, start) for x in views]
    return Inputs(arrays, task.numbers, task.key, np.uint32(start % 2**32), np.float32(size))

  stats: Sequence[Any] = [None] * len(starts)
  if row.reduce:
    asked = [_reduce(inputs(start), task.program) for start in starts]
    stats = pieces.answer_pieces(asked, starts, size)
  for start, of_piece in zip(starts, stats, strict=True):
    merged, count = _apply(inputs(start), of_piece, task.program)
    yield np.asarray(merged).reshape(-1)[: size - start], count


def _rows(x: np.ndarray, first: int, num: int, width: int) -> jax.Array:
  """Returns x as rows [num, width] from `first` on, padded with zeros: one shape to compile."""
  part = x.reshape(-1)[first * width : (first + num) * width]
  whole = part if part.size == num * width else np.pad(part, (0, num * width - part.size))
  return jnp.array(whole.reshape(num, width))


@functools.partial(jax.jit, static_argnames='program')
def _reduce(inputs: Inputs, program: Program) -> Any:
  """Returns what a method asks of the whole tensor, from a piece."""
  return program.how.ask(program.how.piece(_rounded(inputs, program)))


@functools.partial(jax.jit, static_argnames='program')
def _apply(inputs: Inputs, stats: Any, program: Program) -> tuple[jax.Array, Any]:
  """Returns the merged tensor or piece, and for a narrow dtype the counts of Report if any."""
  inputs, row = _rounded(inputs, program), program.how.row
  merged = row.apply(program.how.piece(inputs), stats).astype(program.out_dtype)
  if program.out_dtype == 'float32' or row.drops:
    return merged, None
  first, *others = inputs.arrays
  return merged, count_unmoved(first, others, merged.astype(first.dtype))


def _rounded(inputs: Inputs, program: Program) -> Inputs:
  return inputs._replace(arrays=[x.astype(program.dtype or x.dtype) for x in inputs.arrays])


def count_unmoved(
  first: jax.Array,
  others: Sequence[jax.Array],
  merged: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns what rounding lost, two counts, [] uint32.

  They are the elements in which another model differs from the first, and those of them in which
  merged does not.
  """
  differ = jnp.zeros(first.shape, bool)
  for other in others:
    differ |= other != first
  return jnp.sum(differ, dtype=jnp.uint32), jnp.sum(differ & (merged == first), dtype=jnp.uint32)
