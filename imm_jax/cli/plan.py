"""`imm plan`: compiles a run's programs for TPUs that are not there."""

import dataclasses
import json
import os

from imm_jax import console
from imm_jax.cli import tables
from imm_jax.cli.flags import Flags


def main(flags: Flags) -> None:
  """Runs the command. The programs that were compiled before an error are printed all the same."""
  topology = flags.string('topology', 'v5e:4x4', 'CHIP:SHAPE of a slice: v5e, v5p or v6e.')
  num_slices = flags.integer(
    'num_slices',
    1,
    'Slices of that shape, joined by the data-centre network.',
    at_least=1,
  )
  program = flags.string('program', 'all', 'train, prefill, decode, merge or score.')
  prompt_tokens = flags.integer(
    'prompt_tokens',
    512,
    'Of a prompt, when sampling and scoring.',
    at_least=1,
  )
  new_tokens = flags.integer('new_tokens', 512, 'Of a completion at most.', at_least=1)
  as_json = flags.boolean('json', False, 'Print JSON in place of a table.')
  # Nothing runs; a TPU beside this program stays free.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  config = flags.parse_config()
  from imm_jax.planning import plan

  if program.value not in ('all', *plan.PROGRAMS):
    raise ValueError(f'--program: {program.value!r} is not one of all, {", ".join(plan.PROGRAMS)}')
  programs = plan.PROGRAMS if program.value == 'all' else (program.value,)
  lengths = (prompt_tokens.value, new_tokens.value)
  reports: dict[str, plan.Report] = {}
  try:
    for report in plan.plan(config, topology.value, num_slices.value, programs, *lengths):
      reports[report.program] = report
      took = f'compiled in {report.compile_secs:.0f} s'
      console.note(f'{report.program}: {took}; {report.peak_gib:.2f} GiB a device')
  finally:
    if reports and as_json.value:
      rows = {name: dataclasses.asdict(report) for name, report in reports.items()}
      print(json.dumps(rows, indent=2))
    elif reports:
      tables.plan(reports, config, topology.value, num_slices.value)
  questions = config['synthesize']['num_questions']
  if {'train', 'decode'} <= reports.keys() and questions and not as_json.value:
    samples = questions * config['sampler']['num_samples_per_prompt']
    total = plan.hours(reports['train'], reports['decode'], config, samples, new_tokens.value)
    print(f'at most {total:.1f} h for {config["num_rounds"]} rounds of {samples} samples')
