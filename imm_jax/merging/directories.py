"""Hugging Face directories to merge: what must agree in them, their files besides weights."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np

from imm_jax.formats import shards
from imm_jax.merging import checks

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_KNOWN = set(shards.DTYPES) - {'F64'}  # float64 would lose digits.
# Keys of config.json that say how a file was written.
_UNIMPORTANT = ('_name_or_path', 'transformers_version', 'torch_dtype', 'dtype', 'use_cache')


def check_out(out: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the absolute path of a directory to be written. Raises ValueError if it has content."""
  out = pathlib.Path(out).expanduser().absolute()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'{out}: exists and is not an empty directory; remove it or choose another')
  return out


def check_tensors(
  tensors: Mapping[str, Mapping[str, shards.Tensor]],
  dtype: str | None,
) -> Mapping[str, shards.Spec]:
  """Returns the dtype and shape of each tensor of the merge.

  Args:
    tensors: model -> name -> tensor.
    dtype: what floats are rounded to when they are read, so that models may differ in it; None:
      they are not.

  Raises:
    ValueError: a dtype is not supported, or models differ; every difference is named.
  """
  specs = {}
  for model, of_model in tensors.items():
    dtypes = {name: tensor.dtype_name for name, tensor in of_model.items()}
    unknown = [f'{name} is {found}' for name, found in dtypes.items() if found not in _KNOWN]
    if unknown:
      known = 'only float32, bfloat16, float16 and integers are supported'
      raise ValueError(f'{model}: {", ".join(unknown)}: {known}')
    specs[model] = cast({name: tensor.spec() for name, tensor in of_model.items()}, dtype)
  return checks.check_trees(specs)


def cast(specs: Mapping[str, shards.Spec], dtype: str | None) -> dict[str, shards.Spec]:
  """Returns the specs with floats of another dtype; None leaves them."""
  return {
    name: shards.Spec(np.dtype(dtype), spec.shape) if dtype and spec.dtype in FLOATS else spec
    for name, spec in specs.items()
  }


def check_vocabularies(models: Sequence[str]) -> None:
  """Raises ValueError when an id is another token in another model.

  Rows of the embeddings would then not go together.
  """
  (first, one), *others = ((model, _vocabulary(model)) for model in models)
  for other, two in others:
    if not one or not two:
      continue
    lines = []
    for id_ in sorted({*one, *two}):
      if one.get(id_) != two.get(id_):
        lines.append(f'{id_} is {one.get(id_)!r} in {first} and {two.get(id_)!r} in {other}')
    if lines:
      more = f'; and {len(lines) - 5} more' if len(lines) > 5 else ''
      some = '; '.join(lines[:5])
      raise ValueError(f'the vocabularies differ in {len(lines)} tokens: {some}{more}')


def _vocabulary(model: str) -> dict[int, str]:
  """Returns id -> token of the directory's tokenizer.json; nothing where there is none."""
  file = pathlib.Path(model).expanduser() / 'tokenizer.json'
  content = shards.read_json(file) if file.exists() else {}
  entries = content.get('model', {}).get('vocab', {})
  if isinstance(entries, dict):
    tokens = {id_: token for token, id_ in entries.items()}
  else:
    tokens = dict(enumerate(token for token, _ in entries))
  return tokens | {added['id']: added['content'] for added in content.get('added_tokens', [])}


def config_differences(models: Sequence[str]) -> list[str]:
  """Returns a line for each key of config.json that differs between the models.

  Keys that only say how a file was written are left out.
  """
  files = {model: pathlib.Path(model).expanduser() / 'config.json' for model in models}
  configs = {model: shards.read_json(file) for model, file in files.items() if file.exists()}
  if not configs:
    return []
  (first, config), *others = configs.items()
  lines = []
  for model, other in others:
    for key in sorted({*config, *other} - set(_UNIMPORTANT)):
      if config.get(key) != other.get(key):
        lines.append(f'{key} is {config.get(key)!r} in {first} and {other.get(key)!r} in {model}')
  return lines


def copy_files(model: str, target: pathlib.Path, dtype: str | None) -> None:
  """Copies what is not weights: config, tokenizer, generation config, licence.

  The config names dtype where it is given.
  """
  for file in sorted(pathlib.Path(model).expanduser().iterdir()):
    is_weights = file.suffix in (
      '.safetensors',
      '.bin',
      '.pt',
      '.pth',
      '.gguf',
    ) or file.name.endswith('.index.json')
    if file.is_file() and not is_weights and not file.name.startswith('.'):
      shutil.copyfile(file, target / file.name)
  config = target / 'config.json'
  if dtype and config.exists():
    content = shards.read_json(config)
    keys = [key for key in ('dtype', 'torch_dtype') if key in content] or ['torch_dtype']
    shards.write_json(config, content | dict.fromkeys(keys, dtype))
