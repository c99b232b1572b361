"""Cloud TPU slices by name, and the flags of every launcher: the slice, the code, and the run."""

from collections.abc import Sequence
import dataclasses
import math
import shlex

from absl import flags


@dataclasses.dataclass(frozen=True)
class Generation:
  """What the slices of a generation have in common."""

  gke_accelerator: str  # the node selector cloud.google.com/gke-tpu-accelerator
  accelerator_type: str  # in the names of Cloud TPU VMs
  runtime_version: str  # of Cloud TPU VMs
  units_a_chip: int  # what the number in a slice's name counts: 2 are TensorCores, 1 chips
  topologies: tuple[str, ...]


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  '2x2x1',
  '2x2x2',
  '2x2x4',
  '2x4x4',
  '4x4x4',
  '4x4x8',
  '4x8x8',
  '8x8x8',
  '8x8x16',
  '8x16x16',
)

# https://cloud.google.com/kubernetes-engine/docs/concepts/tpus and
# https://cloud.google.com/tpu/docs/runtimes
GENERATIONS = {
  'v5e': Generation('tpu-v5-lite-podslice', 'v5litepod', 'v2-alpha-tpuv5-lite', 1, _FLAT),
  'v5p': Generation('tpu-v5p-slice', 'v5p', 'v2-alpha-tpuv5', 2, _CUBES),
  'v6e': Generation('tpu-v6e-slice', 'v6e', 'v2-alpha-tpuv6e', 1, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice: v5e-16 is 16 chips on 4 hosts, v5p-128 64 chips on 16."""

  generation: Generation
  accelerator_type: str
  topology: str
  num_chips: int
  num_hosts: int


def find(name: str) -> Slice:
  """Returns the slice of a name such as v5e-16. Raises ValueError that lists the names."""
  slices = {}
  for prefix, generation in GENERATIONS.items():
    for topology in generation.topologies:
      num_chips = math.prod(map(int, topology.split('x')))
      size = num_chips * generation.units_a_chip
      num_hosts = 1 if num_chips <= 8 and generation.units_a_chip == 1 else num_chips // 4
      slices[f'{prefix}-{size}'] = Slice(
        generation, f'{generation.accelerator_type}-{size}', topology, num_chips, num_hosts
      )
  if name not in slices:
    raise ValueError(f'--tpu: {name!r} is no slice; there are {", ".join(slices)}')
  return slices[name]


def define_flags() -> None:
  """Defines what every launcher takes; overrides of the config stand behind `--`."""
  flags.DEFINE_string('name', 'imm', 'Of the job: lower-case letters, digits and dashes.')
  flags.DEFINE_string('tpu', None, 'A slice, such as v5e-16, v5p-128 or v6e-256.', required=True)
  flags.DEFINE_integer(
    'num_slices',
    1,
    'Slices, joined by the data-centre network: mesh.data is a multiple.',
    lower_bound=1,
  )
  flags.DEFINE_string('image', None, 'Container with imm and the configs.')
  flags.DEFINE_string(
    'source',
    None,
    'In place of an image: the git URL of this repository, cloned and installed at the start.',
  )
  flags.DEFINE_string('workdir', None, 'Of the run: gs://BUCKET/DIRECTORY.', required=True)
  flags.DEFINE_string(
    'config', None, "The run's config file, as the image or the source has it.", required=True
  )
  flags.DEFINE_bool('spot', False, 'Take spot capacity, which may be preempted at any time.')
  flags.DEFINE_bool('execute', False, 'Do it. Without, it is printed and nothing runs.')


def command(values: flags.FlagValues, overrides: Sequence[str]) -> str:
  """Returns the shell command that every host runs.

  Raises ValueError unless there is one of --image and --source.
  """
  if bool(values.image) == bool(values.source):
    raise ValueError('--image: give it, or --source, and not both')
  run = shlex.join(
    ['imm', 'run', f'--config={values.config}', f'--workdir={values.workdir}', *overrides]
  )
  if values.image:
    return f'exec {run}'  # imm, not the shell, gets the signals
  clone = f'git clone --depth=1 {shlex.quote(values.source)} imm && cd imm'
  return f"{clone} && pip install --quiet '.[tpu]' && exec {run}"
