"""Models on disk: Hugging Face directories (both ways) and GGUF files (in)."""

import os
import pathlib
import types

import jax

from imm_jax import extras, sharding
from imm_jax.formats import hf
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
  """Returns the architecture of the model in a Hugging Face directory or a .gguf file."""
  return _module(path).read_config(path)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """Returns the tokenizer that comes with it."""
  return _module(path).load_tokenizer(path)


def read_license(path: str | os.PathLike[str]) -> str:
  """Returns the license that the model's card or metadata name, '' where they name none."""
  return _module(path).read_license(path)


def load_params(
  path: str | os.PathLike[str], config: ModelConfig, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> transformer.Params:
  """Returns its weights, float32, sharded over `mesh` by `rules`."""
  return _module(path).load_params(path, config, mesh, rules)


def _module(path: str | os.PathLike[str]) -> types.ModuleType:
  path = pathlib.Path(path)
  if path.is_dir():
    return hf
  if path.is_file() and path.suffix == '.gguf':
    extras.require(str(path), 'gguf', 'gguf')
    from imm_jax.formats import gguf

    return gguf
  found = 'a file of another kind' if path.exists() else 'nothing'
  wanted = 'a directory with config.json and *.safetensors, or a .gguf file'
  hub = (
    '; a model of the hub is fetched with: hf download OWNER/NAME --local-dir DIR'
    if not path.exists()
    else ''
  )
  raise FileNotFoundError(f'{path}: looked for {wanted}; found {found}{hub}')
