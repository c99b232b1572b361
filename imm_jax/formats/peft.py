"""Reads LoRA adapters (arXiv 2106.09685) of PEFT and TRL, and merges them into their base.

The result is W + scale * B A, in float32.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
import pathlib
import re
from typing import Any

import numpy as np

from imm_jax.formats import shards, table

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'

# The fields of adapter_config.json that must have one of these values.
_FIXED = {
  'peft_type': ('LORA',),
  'bias': ('none',),
  'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),  # others change the base
}
# The fields that are read, describe the training, or repeat the tensors' names.
_KNOWN = {
  'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'ensure_weight_tying', 'eva_config',
  'exclude_modules',
  'inference_mode', 'layers_pattern', 'layers_to_transform', 'lora_alpha', 'lora_dropout',
  'megatron_core',
  'modules_to_save', 'peft_version', 'qalora_group_size', 'r', 'rank_pattern', 'revision',
  'target_modules', 'task_type',
  'use_rslora',
}  # fmt: skip
_TENSOR = re.compile(
  r'base_model\.model\.(?P<module>.+?)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<lookup>[AB])|(?:base_layer\.)?weight)'
)
_WHOLE = ('model.embed_tokens.weight', 'lm_head.weight')  # An adapter may replace these entirely.


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter, and the directory of its base. Tensors are named as in the base's files."""

  path: pathlib.Path
  base: str
  # Name -> (scale, left [out, r], right [r, in]).
  products: Mapping[str, tuple[float, np.ndarray, np.ndarray]]
  whole: Mapping[str, np.ndarray]  # Name -> the tensor that replaces the base's.

  def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
    """Checks that the adapter fits a base with tensors of these shapes.

    Raises ValueError for the first tensor that the base lacks or has in another shape.
    """
    own = {name: x.shape for name, x in self.whole.items()}
    for name, (_, left, right) in self.products.items():
      if left.shape[1] != right.shape[0]:
        raise ValueError(
          f'{self.path}: A {right.shape} and B {left.shape} of {name} do not fit each other'
        )
      own[name] = left.shape[0], right.shape[1]
    for name, shape in own.items():
      if tied and name in _WHOLE:
        raise ValueError(
          f'{self.path}: changes {name}, which {self.base} ties (tie_word_embeddings); untie it'
          ' there first'
        )
      if shape != shapes.get(name):
        raise ValueError(
          f'{self.path}: {name} is {shape} in the adapter, and {shapes.get(name, "not")} in'
          f' {self.base}'
        )

  def apply(self, read: table.Read) -> table.Read:
    """Returns a function that reads parts of the base's tensors with the adapter merged in."""

    def read_merged(name: str, index: table.Index) -> np.ndarray:
      x = self.whole[name][index].astype(np.float32) if name in self.whole else read(name, index)
      if name not in self.products:
        return x
      scale, left, right = self.products[name]
      return x + np.float32(scale) * (left[index[0]] @ right[:, index[1]])

    return read_merged


def is_adapter(path: str | os.PathLike[str]) -> bool:
  """Returns whether a directory holds an adapter."""
  return (pathlib.Path(path) / CONFIG).is_file()


def open_adapter(path: str | os.PathLike[str], base: str | None = None) -> Adapter:
  """Returns the adapter in a directory, with `base` or else the directory it names as its base.

  Raises ValueError naming the field or tensor that is not supported, FileNotFoundError when a file
  or the base is missing.
  """
  path = pathlib.Path(path)
  config = shards.read_json(path / CONFIG)
  if not isinstance(config.get('lora_alpha'), int | float):
    raise ValueError(f'{path / CONFIG}: lora_alpha = {config.get("lora_alpha")!r} is not a number')
  for key, value in config.items():
    if key in _FIXED and value not in _FIXED[key]:
      raise ValueError(
        f'{path / CONFIG}: {key} = {value!r} is not supported (only'
        f' {", ".join(map(str, _FIXED[key]))})'
      )
    # PEFT writes features that this adapter does not use as null, false or empty.
    if value and key not in _FIXED.keys() | _KNOWN:
      raise ValueError(
        f'{path / CONFIG}: {key} = {value!r} is not supported, and may change what the model'
        ' computes'
      )
  base = base or str(config.get('base_model_name_or_path') or '')
  if not os.path.isdir(base):
    raise FileNotFoundError(f'{path}: its base {base!r} is no directory here; give --base=DIR')
  products, whole = _tensors(path, config)
  return Adapter(path, base, products, whole)


def _tensors(
  path: pathlib.Path, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the products and the whole tensors of an adapter."""
  factors, whole = {}, {}
  for name, tensor in shards.open_file(path / WEIGHTS).items():
    found = _TENSOR.fullmatch(name)
    if found is None:
      raise ValueError(
        f'{path / WEIGHTS}: {name} is not supported (only lora_A and lora_B, without bias or'
        ' magnitude)'
      )
    target, factor = f'{found["module"]}.weight', found['linear'] or found['lookup']
    if factor is None:
      if target not in _WHOLE:
        raise ValueError(
          f'{path / WEIGHTS}: {name} is not supported (modules_to_save: only embed_tokens and'
          ' lm_head)'
        )
      whole[target] = tensor.array()
    else:  # PEFT stores the factors of the transpose of an embedding [V, D].
      x = tensor.array().astype(np.float32)
      factors.setdefault(target, {})[factor] = x if found['linear'] else x.T
      factors[target]['transposed'] = found['linear'] is None
  products = {}
  for target, pair in factors.items():
    if not {'A', 'B'} <= pair.keys():
      raise ValueError(f'{path / WEIGHTS}: {target} has only one of lora_A and lora_B')
    left, right = (pair['A'], pair['B']) if pair['transposed'] else (pair['B'], pair['A'])
    products[target] = _scale(config, target.removesuffix('.weight'), left.shape[1]), left, right
  return products, whole


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
  """Returns alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732)."""
  patterns = config.get('alpha_pattern') or {}
  alpha = next(
    (patterns[key] for key in patterns if re.match(rf'(.*\.)?({key})$', module)),
    config['lora_alpha'],
  )
  return alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
