"""`imm merge`: merges models on disk."""

from collections.abc import Sequence
import json
from typing import Any

from imm_jax import console, merging
from imm_jax.cli.flags import Flag, Flags
from imm_jax.merging import recipe as recipe_lib
from imm_jax.merging import stream
from imm_jax.merging.recipe import Recipe

_DTYPES = ['', 'float32', 'bfloat16']


def main(flags: Flags) -> None:
  """Runs the command."""
  recipe_file = flags.string(
    'recipe',
    None,
    "A merge in mergekit's YAML format, in place of the flags below.",
  )
  of_recipe = {
    'base': flags.string('base', None, 'The original model, a Hugging Face directory.'),
    'tuned': flags.repeated('tuned', 'A fine-tuned model; may be given several times.'),
    'param': flags.repeated('param', "NAME=VALUE of the method's; may be given several times."),
    'method': flags.string('method', 'linear', 'One of those below.'),
    'alpha': flags.number('alpha', 0.5, 'Weight of tuned: 0 is base, 1 is tuned.'),
    'dtype': flags.choice('dtype', '', _DTYPES, 'To round all models to first; of --out.'),
  }
  seed = flags.integer('seed', 0, "Of a random method's masks.")
  out = flags.string('out', None, 'Hugging Face directory to write.')
  flags.parse(epilog=_methods())
  if not out.value:
    raise ValueError('--out: is missing; give the directory to write')
  recipe = _read(recipe_file.value, of_recipe) if recipe_file.value else _of_flags(of_recipe)
  num_tensors = len(stream.open_model(recipe.models[0]))
  with console.progress('merge', num_tensors, 'tensors') as advance:
    report = stream.merge_dirs(recipe, out.value, seed=seed.value, advance=advance)
  print(f'wrote {out.value}: {report.num_tensors} tensors')
  if recipe.method == 'slerp':
    print(
      'note: slerp is linear interpolation where directions are nearly the same, as those of'
      ' fine-tuned neighbours are'
    )
  for difference in report.config_differences:
    print(f'warning: config.json is that of {recipe.models[0]}: {difference}')
  share = report.num_unmoved / max(1, report.num_changed)
  if share > 0.1 and recipe.alpha != 0:
    print(
      f'warning: {share:.0%} of the changed elements came out as in the base: the dtype is too'
      ' coarse for this merge'
    )


def _read(path: str, of_recipe: dict[str, Flag[Any]]) -> Recipe:
  given = [name for name, flag in of_recipe.items() if flag.present]
  if given:
    raise ValueError(f'--{given[0]}: the recipe says that; give --recipe or the other flags')
  return recipe_lib.read(path)


def _of_flags(of_recipe: dict[str, Flag[Any]]) -> Recipe:
  for name in ('base', 'tuned'):
    if not of_recipe[name].value:
      raise ValueError(f'--{name}: is missing; give a directory, or a --recipe')
  values = {name: flag.value for name, flag in of_recipe.items()}
  method = merging.METHODS.get(values['method'])
  # An unknown method is refused below.
  takes_alpha = method is None or method.alpha or of_recipe['alpha'].present
  return recipe_lib.from_flags(
    values['method'], values['base'], values['tuned'], values['alpha'] if takes_alpha else None,
    _parameters(values['param']), values['dtype'] or None,
  )  # fmt: skip


def _methods() -> str:
  """Returns the methods, a line each with its parameters and a line with its reference."""
  lines = ['Methods (parameters with their defaults; --alpha sets the one named):', '']
  for name, row in merging.METHODS.items():
    values = row.parameters.items()
    parameters = ', '.join(key if value is None else f'{key}={value}' for key, value in values)
    lines.append(f'  {name}({parameters})' + (f', alpha: {row.alpha}' if row.alpha else ''))
    lines.append(f'      {row.reference}')
  return '\n'.join(lines)


def _parameters(texts: Sequence[str]) -> dict[str, Any]:
  """Returns {name: number, bool or list} of 'NAME=VALUE's; the values are JSON."""
  parameters = {}
  for text in texts:
    name, sign, value = text.partition('=')
    try:
      parameters[name] = json.loads(value)
    except ValueError:
      problem = f'{text!r} is not NAME=VALUE with a number, true, false or a [list]'
      raise ValueError(f'--param: {problem}') from None
    if not sign:
      raise ValueError(f'--param: {text!r} is not NAME=VALUE')
  return parameters
