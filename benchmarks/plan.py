"""Compares a train step for TPUs with MaxText 0.2.5's: memory, cycles, traffic.

Both are compiled ahead of time by one libtpu. It needs the tpu extra, and a minute or more per
program.

  python benchmarks/plan.py --out=benchmarks/plan.json

The setting is 16 v5e chips, FSDP 16, a sequence of 2048 tokens per chip, float32 params and Adam's
moments, bfloat16 compute; with remat full everything is computed again in the backward pass.
MaxText's figures were taken once, from its own train step, with libtpu 0.0.42.1 and jax 0.10.2, and
with windowed einsum off, which is its faster setting and ours. Compute leaves out collectives and
attention kernels on both sides. The other remats are those that auto tries; with remat none
llama2-7b does not fit.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).parent.parent
# architecture: peak GiB, compute ms, GB over the links, compile seconds
MAXTEXT = {'qwen3-0.6b': (1.90, 97, 3.3, 121), 'llama2-7b': (9.9, 792, 37.6, 89)}


def main() -> None:
  """Compiles, prints a table and writes JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--architectures', nargs='+', default=['qwen3-0.6b', 'llama2-7b'])
  parser.add_argument(
    '--remats', nargs='+', default=['full', 'dots', 'none'], help='full is compared'
  )
  parser.add_argument('--out', default='plan.json')
  args = parser.parse_args()
  sys.path.insert(0, str(ROOT / 'configs'))
  import gsm8k_qwen25_0p5b

  from imm_jax import sharding
  from imm_jax.planning import plan
  from imm_jax.rounds import experiment, loading

  mesh, chip = (
    sharding.make_mesh(1, 16, 1, devices=plan.topology_devices('v5e:4x4', 1)),
    plan.chip_of('v5e:4x4'),
  )
  table = Table(
    title=f'a train step, libtpu {importlib.metadata.version("libtpu")}: this / MaxText 0.2.5'
  )
  for name in (
    'model',
    'remat',
    'peak GiB',
    'compute ms',
    'links GB',
    'compile s',
    'TFLOP',
    'kernels ms',
  ):
    table.add_column(name, justify='right')
  results = []
  for architecture in args.architectures:
    exp = experiment.resolve(gsm8k_qwen25_0p5b.get_config(architecture).to_dict())
    config = loading.model_config(exp.model, mesh)
    for remat in args.remats:
      one = dataclasses.replace(config, remat=remat)
      try:
        report = plan.compile_program(exp, one, mesh, chip, 'train', (0, 0))
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        print(architecture, remat, str(error).splitlines()[0], flush=True)
        continue
      kernels = (
        plan.kernel_flops(one, 'train', report.tokens, exp.finetune.max_length / 2)
        / 16
        / chip.flops
      )
      traffic = sum(report.collective_bytes.values()) / 1e9
      ours = report.peak_gib, 1e3 * (report.compute_secs - kernels), traffic, report.compile_secs
      theirs = MAXTEXT[architecture] if remat == 'full' else ('', '', '', '')
      cells = [f'{a:.4g} / {b}' if b else f'{a:.4g}' for a, b in zip(ours, theirs, strict=True)]
      table.add_row(
        architecture, remat, *cells, f'{report.flops / 1e12:.2f}', f'{1e3 * kernels:.1f}'
      )
      results.append(
        {
          'architecture': architecture,
          **dataclasses.asdict(report),
          'kernel_secs': kernels,
          'maxtext': theirs,
        }
      )
      print(architecture, remat, *cells, flush=True)
  Console(width=150).print(table)
  pathlib.Path(args.out).write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
