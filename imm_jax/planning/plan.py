"""`imm plan`: compiles a run's programs ahead of time for a TPU topology, on any machine.

It reports memory, FLOPs, collectives and time. The programs are those that a run jits, with
abstract arrays in place of params and data. Estimates come from the compiler's cycles for each op.
For attention kernels and collectives, which those leave out, they come from FLOPs at the chip's
peak and bytes at the rate of its links. They compare programs under one compiler; no hardware has
confirmed them.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib.util
import math
import os
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from imm_jax import console
from imm_jax.models.config import mesh_advice, ModelConfig
from imm_jax.planning import abstract, hlo
from imm_jax.rounds import experiment, loading
from imm_jax.rounds.experiment import Experiment

PROGRAMS = tuple(abstract.ABSTRACT)
REMATS = ('none', 'dots', 'full')  # from the most memory to the most computation


class Chip(NamedTuple):
  """A TPU chip. Sources: cloud.google.com/tpu/docs, jax-ml.github.io/scaling-book."""

  memory_gib: float
  flops: float  # a second, bfloat16
  clock: float  # Hz
  link_rate: float  # bytes a second over both links of a ring


CHIPS = {
  'v5e': Chip(15.75, 197e12, 1.5e9, 90e9),
  'v5p': Chip(95.74, 459e12, 1.75e9, 180e9),
  'v6e': Chip(31.25, 918e12, 1.75e9, 180e9),
}


@dataclasses.dataclass(frozen=True)
class Report:
  """A program on one device of the topology."""

  program: str
  remat: str
  peak_gib: float  # arguments + outputs - what they share + temporaries
  limit_gib: float
  arguments_gib: float
  temporaries_gib: float
  flops: float  # of matrix products, as compiled; kernels by their formula
  model_flops: float  # what the algorithm needs: 6 N D, or 2 N D, and attention
  compute_secs: float  # the compiler's cycles over the clock, and kernels at the chip's peak
  collective_bytes: Mapping[str, int]
  collective_secs: float  # at the rate of the links, if nothing ran beside them
  compile_secs: float
  tokens: int  # that the program handles, on all devices

  @property
  def fits(self) -> bool:
    """Whether a chip has the memory."""
    return self.peak_gib <= self.limit_gib

  def mfu(self, chip: Chip) -> float:
    """Returns the algorithm's FLOPs as a fraction of the chip's peak, with collectives hidden."""
    return self.model_flops / chip.flops / self.secs

  @property
  def secs(self) -> float:
    """The seconds of one execution, with collectives overlapping computation where possible."""
    return max(self.compute_secs, self.collective_secs)


def plan(
  config: Mapping[str, Any], topology: str, num_slices: int, programs: Sequence[str],
  prompt_tokens: int, new_tokens: int,
) -> Iterator[Report]:  # fmt: skip
  """Yields a report for each program of an experiment's config.

  Args:
    config: the config of `imm run`; only the config.json of the model is read. `model.remat` may be
      'auto': all policies are tried, and the fastest train step that fits is reported.
    topology: the name of a topology, such as 'v5e:4x4'.
    num_slices: the number of slices of the topology, joined by the data-centre network; `mesh.data`
      runs over them.
    programs: some of PROGRAMS.
    prompt_tokens: the length of a prompt, when sampling and scoring.
    new_tokens: the most tokens of a completion.

  Raises:
    ValueError: the topology is unknown, the tpu extra is missing, or the mesh does not fit.
  """
  chip_of(topology)  # Raises for an unknown one.
  devices = topology_devices(topology, num_slices)
  remat = config['model']['remat']
  exp = experiment.resolve(
    {**config, 'model': {**config['model'], 'remat': 'none' if remat == 'auto' else remat}}
  )
  mesh = exp.mesh.make(devices)
  model_config = loading.model_config(exp.model, mesh)
  if advice := mesh_advice(model_config, mesh):
    console.note(advice)
  lengths = prompt_tokens, new_tokens
  # Set up all programs first, so that errors appear before minutes go into compiling the first.
  for program in programs:
    abstract.ABSTRACT[program](exp, model_config, mesh, *lengths)
  for program in programs:
    policies = REMATS if program == 'train' and remat == 'auto' else (model_config.remat,)
    configs = [dataclasses.replace(model_config, remat=policy) for policy in policies]
    yield _best(exp, configs, mesh, topology, program, lengths)


def _best(
  exp: Experiment,
  configs: Sequence[ModelConfig],
  mesh: jax.sharding.Mesh,
  topology: str,
  program: str,
  lengths: tuple[int, int],
) -> Report:
  """Returns the report of the config that serves a program best.

  Raises ValueError when the program does not even compile with any of them.
  """
  reports = []
  reason = ''
  for config in configs:
    try:
      reports.append(compile_program(exp, config, mesh, chip_of(topology), program, lengths))
    # A program that is far too large does not even compile.
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      reason = str(error).splitlines()[0]
  if not reports:
    raise ValueError(
      f'{program}: does not fit {topology}: {reason}; try a smaller batch, model.remat=full or a'
      ' larger slice'
    )
  return min(reports, key=_rank)


def _rank(report: Report) -> tuple[bool, float]:
  """Returns a key that is smallest for the best report: the fastest that fits, or the smallest."""
  return (False, report.secs) if report.fits else (True, report.peak_gib)


def chip_of(topology: str) -> Chip:
  """Returns the chip of a topology's name. Raises ValueError."""
  name = topology.partition(':')[0]
  if name not in CHIPS:
    raise ValueError(
      f'--topology: {topology!r} is not CHIP:SHAPE with one of the chips {", ".join(CHIPS)}, such'
      ' as v5e:4x4'
    )
  return CHIPS[name]


def topology_devices(topology: str, num_slices: int) -> list[Any]:
  """Returns the devices of a topology that is not attached. Raises ValueError."""
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError("imm plan: the TPU compiler is missing: pip install 'imm_jax[tpu]'")
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # There is no metadata server to ask.
  try:
    found = topologies.get_topology_desc(
      topology_name=topology, platform='tpu', num_slices=num_slices
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(f'--topology={topology}: {str(error).splitlines()[0]}') from None
  return found.devices


def compile_program(
  exp: Experiment,
  config: ModelConfig,
  mesh: jax.sharding.Mesh,
  chip: Chip,
  program: str,
  lengths: tuple[int, int],
) -> Report:
  """Compiles a program of the run, and reports."""
  jitted, arguments, tokens, keys = abstract.ABSTRACT[program](exp, config, mesh, *lengths)
  start = time.monotonic()
  with jax.set_mesh(mesh):
    compiled = jitted.lower(*arguments).compile()
  compile_secs = time.monotonic() - start
  memory = compiled.memory_analysis()
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  cost = hlo.cost(compiled.as_text(), unknown_trips=1)
  num_devices = math.prod(mesh.shape.values())
  kernels = kernel_flops(config, program, tokens, keys) / num_devices if cost.kernels else 0.0
  return Report(
    program=program,
    remat=config.remat,
    peak_gib=(memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes) / 2**30,
    limit_gib=chip.memory_gib,
    arguments_gib=memory.argument_size_in_bytes / 2**30,
    temporaries_gib=memory.temp_size_in_bytes / 2**30,
    flops=cost.flops + kernels,
    model_flops=needed_flops(config, program, tokens, keys) / num_devices,
    compute_secs=cost.cycles / chip.clock + kernels / chip.flops,
    collective_bytes=cost.collective_bytes,
    collective_secs=sum(cost.collective_bytes.values()) / chip.link_rate,
    compile_secs=compile_secs,
    tokens=tokens,
  )


def num_weights(config: ModelConfig) -> int:
  """Returns the number of weights that multiply each token.

  Norms, biases and an embedding that is only looked up do not count.
  """
  per_layer = config.embed_dim * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
  per_layer += 3 * config.embed_dim * config.mlp_dim
  return config.num_layers * per_layer + config.vocab_size * config.embed_dim


def attention_flops(config: ModelConfig, tokens: int, keys: float) -> float:
  """Returns the FLOPs of scores and mixing in the forward pass.

  Each of the tokens attends to `keys` keys on average.
  """
  return 4.0 * config.num_layers * config.num_heads * config.head_dim * tokens * keys


def needed_flops(config: ModelConfig, program: str, tokens: int, keys: float) -> float:
  """Returns the FLOPs that the algorithm needs, without recomputation.

  They are 2 N D forward, three times that with the backward pass, and attention.
  """
  if program == 'merge':
    return 0.0
  forward = 2.0 * num_weights(config) * tokens + attention_flops(config, tokens, keys)
  return 3 * forward if program == 'train' else forward


def kernel_flops(config: ModelConfig, program: str, tokens: int, keys: float) -> float:
  """Returns the FLOPs of the attention kernels.

  They compute 2 products forward, 7 in the two backward kernels, and those that remat repeats.
  """
  forward = attention_flops(config, tokens, keys)
  if program != 'train':
    return forward
  return forward * (4.5 if config.remat == 'none' else 5.5)


def advice(report: Report, config: Mapping[str, Any]) -> str:
  """Returns advice on how to make a program fit that does not."""
  if report.program == 'train' and report.remat != 'full':
    return '--config.model.remat=full, or auto'
  if (
    report.program == 'train'
    and config['finetune']['accumulation_steps'] < config['finetune']['batch_size']
  ):
    return f'--config.finetune.accumulation_steps={2 * config["finetune"]["accumulation_steps"]}'
  if (
    report.program in ('decode', 'prefill', 'score')
    and report.arguments_gib > report.temporaries_gib
  ):
    num_slots = config['sampler']['num_slots'] // 2
    return f'--config.sampler.num_slots={num_slots}, or a larger --config.mesh.tensor'
  if report.program in ('prefill', 'score'):
    return f'--config.sampler.num_slots={config["sampler"]["num_slots"] // 2}'
  return 'more chips, or a larger --config.mesh.fsdp'


def hours(
  train: Report, decode: Report, config: Mapping[str, Any], num_samples: int, new_tokens: int
) -> float:
  """Returns the most hours that the rounds' sampling and fine-tuning can take.

  It assumes completions of full length, and a row for each.
  """
  sampling = num_samples * new_tokens / decode.tokens * decode.secs
  learning = (
    num_samples
    * config['finetune']['num_epochs']
    * config['finetune']['max_length']
    / train.tokens
    * train.secs
  )
  return config['num_rounds'] * (sampling + learning) / 3600
