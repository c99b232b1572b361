"""Recipes: what is merged with what, from mergekit's YAML files or from the command's flags."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

import yaml

from imm_jax.merging import coefficients, names
from imm_jax.merging.checks import check_method, check_parameters
from imm_jax.merging.methods import FLAGS, METHODS, RANGES
from imm_jax.merging.pieces import PER_MODEL
from imm_jax.text import nearest

_KEYS = {
  'recipe': (
    'merge_method',
    'base_model',
    'models',
    'slices',
    'parameters',
    'dtype',
    'out_dtype',
    'tokenizer_source',
  ),
  'model': ('model', 'parameters'),
  'slice': ('sources', 'parameters'),
  'source': ('model', 'layer_range', 'parameters'),
}
_DTYPES = ('float32', 'bfloat16', 'float16')
_EXPONENT = re.compile(r'[-+]?\d+[eE][-+]?\d+')  # a number without a point
_NO_EFFECT = ('int8_mask',)  # how mergekit stores masks; the result is the same


@dataclasses.dataclass(frozen=True)
class Source:
  """A model and the parameters that are given for it."""

  model: str  # its directory
  parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Slice:
  """Layers start .. end - 1 of all its sources; end is None for all layers of the model."""

  sources: tuple[Source, ...]
  parameters: Mapping[str, Any]
  start: int = 0
  end: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A merge of models on disk."""

  method: str
  base: str | None  # theta_0, whose tokenizer and config are taken; None: the first model's are
  slices: tuple[Slice, ...]
  parameters: Mapping[str, Any]
  alpha: Any = None  # of `merge`, from the command's flags
  dtype: str | None = None  # inputs are rounded to it; None: as they are
  out_dtype: str | None = None  # of what is written; None: dtype, or as the base is

  @property
  def models(self) -> list[str]:
    """All directories, the one that gives tokenizer and config first."""
    named = [source.model for slice_ in self.slices for source in slice_.sources]
    return list(dict.fromkeys([self.base, *named] if self.base else named))

  def theta_0(self) -> str | None:
    """Returns the base where the method (with this alpha) has one."""
    return None if METHODS[self.method].base == 'none' and self.alpha is None else self.base

  def check_layers(self, num_layers: int) -> None:
    """Raises ValueError when the slices do not tile a model of so many layers."""
    end = self.slices[-1].end
    if end is not None and end != num_layers:
      raise ValueError(
        f'slices: end at layer {end}, and the models have {num_layers}: they must tile the model',
      )

  def of(self, name: str, num_layers: int) -> tuple[list[str], dict[str, Any]]:
    """Returns how a tensor is merged.

    Args:
      name: of the tensor.
      num_layers: of the models.

    Returns:
      the models (without the base), and the parameters: numbers and flags, for those in PER_MODEL
      tuples of a number for each model.

    Raises:
      ValueError: a parameter is missing.
    """
    slice_, place, length = self._locate(name, num_layers)
    sources = [source for source in slice_.sources if source.model != self.theta_0()]
    row, shared = METHODS[self.method], (slice_.parameters, self.parameters)

    def find(parameter, *levels):
      for level in (*levels, row.parameters):
        found = coefficients.find(level.get(parameter), name, place, length)
        if found is not None:
          return found
      return None

    values = {}
    for parameter in row.parameters:
      if self.alpha is not None and parameter in (row.alpha, 'weight'):
        continue
      if parameter in PER_MODEL:
        of_models = [find(parameter, source.parameters, *shared) for source in sources]
        self._check_given(name, parameter, sources, of_models)
        values[parameter] = tuple(of_models)
      elif find(parameter, *shared) is not None:
        values[parameter] = find(parameter, *shared)
    values = check_parameters(self.method, values, has_alpha=self.alpha is not None)
    return [source.model for source in sources], values

  def _locate(self, name: str, num_layers: int) -> tuple[Slice, int | None, int]:
    """Returns the slice of a tensor, the place of its layer in it, and the slice's length."""
    layer = names.locate(name)[1]
    if layer is None:
      # The embedding goes with the first slice, what follows the layers with the last.
      slice_ = self.slices[0 if 'embed' in name else -1]
    else:
      slice_ = next(s for s in self.slices if s.end is None or layer < s.end)
    length = num_layers if slice_.end is None else slice_.end - slice_.start
    return slice_, None if layer is None else layer - slice_.start, length

  def _check_given(
    self,
    name: str,
    parameter: str,
    sources: Sequence[Source],
    values: Sequence[Any],
  ) -> None:
    """Raises ValueError when a parameter of a tensor has no value for one of the sources."""
    for source, value in zip(sources, values, strict=True):
      if value is None:
        model = source.model
        raise ValueError(f'{self.method}: parameter {parameter!r} is missing for {model} in {name}')


def from_flags(
  method: str,
  base: str,
  tuned: Sequence[str],
  alpha: float | None,
  parameters: Mapping[str, Any],
  dtype: str | None = None,
) -> Recipe:
  """Returns the recipe that merges tuned models with base.

  Args:
    method: a key of METHODS.
    base: directory of theta_0.
    tuned: directories of the models.
    alpha: weight of the models against base, in [0, 1]; None: parameters say it.
    parameters: of the method.
    dtype: see Recipe.

  Raises:
    ValueError: the method does not take the models or a parameter, which is named.
  """
  models = list(tuned)
  if alpha is not None:
    coefficients.check('alpha', alpha, 0, 1)
  elif method in METHODS and METHODS[method].base == 'none':
    models = [base, *tuned]
  has_base = len(models) == len(tuned)
  row = check_method(
    method,
    has_base=has_base,
    num_models=len(models),
    has_alpha=alpha is not None,
  )
  _check_parameters(method, 'the command', parameters, row.parameters)
  if alpha is not None:
    check_parameters(method, parameters, has_alpha=True)
  return Recipe(
    method,
    base,
    (Slice(tuple(Source(model, {}) for model in models), {}),),
    dict(parameters),
    alpha,
    dtype,
  )


def read(path: str) -> Recipe:
  """Returns the recipe in a file of mergekit's format.

  Model paths in it are relative to the working directory.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: it is no YAML, a key is unknown or misplaced, or a value is wrong; the key is named.
  """
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise FileNotFoundError(f'{path}: no such recipe')
  try:
    content = yaml.safe_load(file.read_text(encoding='utf-8'))
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: not YAML ({" ".join(str(error).split())})') from None
  try:
    return from_dict(content)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def from_dict(content: Any) -> Recipe:
  """Returns the recipe of a YAML file's content. Raises ValueError naming the key that is wrong."""
  _check_keys('recipe', 'the recipe', content)
  method, base = content.get('merge_method'), content.get('base_model')
  if not isinstance(base, str | None):
    raise ValueError(f'base_model: {base!r} is not a directory')
  if not isinstance(method, str) or method not in METHODS:
    hint = nearest(method, METHODS) if isinstance(method, str) else ''
    raise ValueError(f'merge_method: {method!r} is unknown{hint}; there are {", ".join(METHODS)}')
  if ('models' in content) == ('slices' in content):
    raise ValueError('models or slices: give one of them')
  for key in ('dtype', 'out_dtype'):
    if content.get(key) not in (None, *_DTYPES):
      raise ValueError(f'{key}: {content[key]!r} is not one of {", ".join(_DTYPES)}')
  if content.get('tokenizer_source', 'base') != 'base':
    source = content['tokenizer_source']
    raise ValueError(f"tokenizer_source: {source!r} is not supported, only 'base'")
  slices = _slices(method, base, content)
  recipe = Recipe(
    method, base, slices, _parameters(method, 'parameters', content, for_each_model=False),
    dtype=content.get('dtype'), out_dtype=content.get('out_dtype'),
  )  # fmt: skip
  for slice_ in slices:
    models = [source.model for source in slice_.sources if source.model != recipe.theta_0()]
    check_method(method, has_base=recipe.theta_0() is not None, num_models=len(models))
  return recipe


def _slices(method: str, base: str | None, content: Mapping[str, Any]) -> tuple[Slice, ...]:
  if 'models' in content:
    return (Slice(_sources(method, base, 'models', 'model', content['models']), {}),)
  slices, end = [], 0
  for i, slice_ in enumerate(_list('slices', content['slices'])):
    where = f'slices[{i}]'
    _check_keys('slice', where, slice_)
    sources = _list(f'{where}.sources', slice_.get('sources'))
    parts = _sources(method, base, f'{where}.sources', 'source', sources)
    start, stop = _layer_range(sources)
    if start != end or stop <= end:
      why = 'slices tile the model, layers keep their places'
      raise ValueError(f'{where}: the sources must have one layer_range, from {end} on: {why}')
    end = stop
    parameters = _parameters(method, f'{where}.parameters', slice_, for_each_model=False)
    slices.append(Slice(parts, parameters, start, stop))
  return tuple(slices)


def _layer_range(sources: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
  """Returns the range of layers that all sources have, (-1, -1) where they have none or several."""
  first = sources[0].get('layer_range')
  if any(source.get('layer_range') != first for source in sources):
    return -1, -1
  if not isinstance(first, list) or len(first) != 2 or not all(isinstance(x, int) for x in first):
    return -1, -1
  return first[0], first[1]


def _sources(
  method: str,
  base: str | None,
  where: str,
  kind: str,
  entries: Any,
) -> tuple[Source, ...]:
  sources = []
  for i, entry in enumerate(_list(where, entries)):
    _check_keys(kind, f'{where}[{i}]', entry)
    if not isinstance(entry.get('model'), str):
      raise ValueError(f'{where}[{i}].model: is missing; give a directory')
    parameters = _parameters(method, f'{where}[{i}].parameters', entry, for_each_model=True)
    if parameters and entry['model'] == base and METHODS[method].base == 'required':
      raise ValueError(f'{where}[{i}].parameters: the base has none in {method}; delete them')
    sources.append(Source(entry['model'], parameters))
  return tuple(sources)


def _parameters(
  method: str,
  where: str,
  entry: Mapping[str, Any],
  for_each_model: bool,
) -> dict[str, Any]:
  """Returns an entry's parameters; for_each_model: only those in PER_MODEL may stand there."""
  parameters = _numbers(entry.get('parameters') or {})
  known = METHODS[method].parameters
  allowed = [name for name in known if name in PER_MODEL] if for_each_model else list(known)
  _check_parameters(method, where, parameters, allowed)
  return {name: value for name, value in parameters.items() if name not in _NO_EFFECT}


def _numbers(value: Any) -> Any:
  """Returns a parameter as it is meant: 1e-5, which YAML 1.1 reads as text, is a number."""
  if isinstance(value, str) and _EXPONENT.fullmatch(value):
    return float(value)
  if isinstance(value, list):
    return [_numbers(part) for part in value]
  if isinstance(value, Mapping):
    return {key: part if key == 'filter' else _numbers(part) for key, part in value.items()}
  return value


def _check_parameters(method: str, where: str, parameters: Any, allowed: Any) -> None:
  if not isinstance(parameters, Mapping):
    raise ValueError(f'{where}: {parameters!r} is not a mapping')
  for name, value in parameters.items():
    if name in _NO_EFFECT:
      continue
    if name not in allowed:
      is_shared = name in METHODS[method].parameters
      place = '; it stands under the recipe' if is_shared else nearest(name, allowed)
      here = ', '.join(allowed) or 'none'
      raise ValueError(
        f'{where}.{name}: {method} has no such parameter here{place}; it has {here}',
      )
    if name not in FLAGS:
      coefficients.check(f'{where}.{name}', value, *RANGES.get(name, ()))
    elif not isinstance(value, bool):
      raise ValueError(f'{where}.{name}: {value!r} is not true or false')


def _check_keys(kind: str, where: str, content: Any) -> None:
  if not isinstance(content, Mapping):
    raise ValueError(f'{where}: is not a mapping with the keys {", ".join(_KEYS[kind])}')
  for key in content:
    if key not in _KEYS[kind]:
      name = key if kind == 'recipe' else f'{where}.{key}'
      is_parameter = any(key in row.parameters for row in METHODS.values())
      hint = '; it stands under parameters' if is_parameter else nearest(key, _KEYS[kind])
      raise ValueError(f'{name}: no such key{hint}; the keys are {", ".join(_KEYS[kind])}')


def _list(where: str, value: Any) -> list[Any]:
  if not isinstance(value, list) or not value:
    raise ValueError(f'{where}: is not a list with something in it')
  return value
