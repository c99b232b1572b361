"""Compares merging with mergekit on disk, and with a plain streaming triad in memory.

The results are ratios, pair by pair.

  python -m venv kit
  kit/bin/pip install torch==2.13.0 && kit/bin/pip install mergekit==0.1.5
  python benchmarks/merge.py --mergekit=kit/bin/mergekit-yaml --out=benchmarks/merge.json

Both merge the same random models (517M parameters, float32 and bfloat16) by the same recipes, as
whole processes in turn, measured in wall and CPU seconds. Peak memory is VmHWM, the most that was
resident at once, mapped files included; anonymous memory excludes them.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from imm_jax import merging
from imm_jax.formats import shards

SHAPE = {
  'vocab_size': 32000,
  'hidden_size': 1280,
  'intermediate_size': 3456,
  'num_hidden_layers': 24,
}
TINY = {'vocab_size': 64, 'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 2}
PARAMETERS = {
  'linear': {'weight': 0.5},
  'task_arithmetic': {'weight': 0.5},
  'slerp': {'t': 0.5},
  'ties': {'weight': 1.0, 'density': 0.3},
  'dare_linear': {'weight': 1.0, 'density': 0.5},
}


def write_models(path: pathlib.Path, shape: dict[str, int], dtype: str) -> None:
  """Writes base and tuned models that differ by a hundredth of the base's size."""
  d, f = shape['hidden_size'], shape['intermediate_size']
  shapes = {'model.embed_tokens.weight': (shape['vocab_size'], d), 'model.norm.weight': (d,)}
  for layer in range(shape['num_hidden_layers']):
    parts = dict.fromkeys(
      ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj'), (d, d)
    )
    parts |= {'mlp.gate_proj': (f, d), 'mlp.up_proj': (f, d), 'mlp.down_proj': (d, f)}
    parts |= {'input_layernorm': (d,), 'post_attention_layernorm': (d,)}
    shapes |= {f'model.layers.{layer}.{name}.weight': shape for name, shape in parts.items()}
  config = {
    'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'num_attention_heads': 16,
    'num_key_value_heads': 16,
    'head_dim': d // 16, 'max_position_embeddings': 2048, 'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0, 'hidden_act': 'silu',
    'tie_word_embeddings': True, 'torch_dtype': dtype, **shape,
  }  # fmt: skip
  specs = {name: shards.Spec(np.dtype(dtype), shape) for name, shape in shapes.items()}
  for model in ('base', 'tuned'):

    def fetch(name, model=model):
      x = np.random.default_rng(sum(name.encode())).normal(size=shapes[name]).astype(np.float32)
      if model == 'tuned':
        x += 0.01 * np.random.default_rng(1 + sum(name.encode())).normal(size=shapes[name]).astype(
          np.float32
        )
      return [x.astype(specs[name].dtype)]

    (path / model).mkdir(parents=True)
    shards.write_tensors(path / model, specs, fetch)
    shards.write_json(path / model / 'config.json', config)


def recipe(path: pathlib.Path, method: str, dtype: str) -> str:
  """Writes a recipe that both programs read; returns its path."""
  base, tuned = str(path / 'base'), str(path / 'tuned')
  content = {'merge_method': method, 'dtype': dtype}
  if method == 'linear':
    content['models'] = [
      {'model': model, 'parameters': PARAMETERS[method]} for model in (base, tuned)
    ]
  elif method == 'slerp':
    content |= {
      'base_model': base,
      'models': [{'model': base}, {'model': tuned}],
      'parameters': PARAMETERS[method],
    }
  else:
    content |= {'base_model': base, 'models': [{'model': tuned, 'parameters': PARAMETERS[method]}]}
  file = path / f'{method}.yml'
  file.write_text(json.dumps(content))  # JSON is YAML
  return str(file)


def measure(command: list[str], out: pathlib.Path) -> dict[str, float]:
  """Runs a command that writes `out`; returns wall and CPU seconds and peak GiB."""
  shutil.rmtree(out, ignore_errors=True)
  os.sync()  # what was written before is on its way to the disk no more
  start, peak, anonymous = time.monotonic(), 0, 0
  environment = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  with open(os.devnull, 'w') as nowhere:
    process = subprocess.Popen(
      [*command, str(out)], stdout=nowhere, stderr=nowhere, env=environment
    )
    while True:
      try:
        status = dict(
          line.split(':', 1)
          for line in pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines()
        )
        peak = max(peak, int(status.get('VmHWM', '0 kB').split()[0]))
        anonymous = max(anonymous, int(status.get('RssAnon', '0 kB').split()[0]))
      except (OSError, ValueError):
        pass
      pid, code, usage = os.wait4(process.pid, os.WNOHANG)
      if pid:
        break
      time.sleep(0.02)
  process.returncode = os.waitstatus_to_exitcode(code)
  if process.returncode:
    raise ValueError(f'{" ".join(command)}: exit code {process.returncode}')
  return {
    'wall_secs': time.monotonic() - start,
    'cpu_secs': usage.ru_utime + usage.ru_stime,
    'peak_gib': peak / 2**20,
    'anonymous_gib': anonymous / 2**20,
  }


def largest_difference(ours: pathlib.Path, theirs: pathlib.Path) -> float:
  """Returns the largest difference of an element, relative to its tensor's largest."""
  one, two = (shards.open_tensors(path) for path in (ours, theirs))
  worst = 0.0
  for name in one:
    a, b = (np.asarray(x[name].array(), np.float32) for x in (one, two))
    worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
  return worst


def on_disk(mergekit: str, repeats: int, scratch: pathlib.Path) -> list[dict]:
  """Returns a row per method and dtype: both programs' figures and their ratios."""
  rows = []
  for label, shape, dtype, methods in (
    ('start-up', TINY, 'float32', ['linear']),
    ('517M', SHAPE, 'float32', list(PARAMETERS)),
    ('517M', SHAPE, 'bfloat16', list(PARAMETERS)),
  ):
    path = scratch / f'{label}-{dtype}'
    write_models(path, shape, dtype)
    for method in methods:
      file, ours, theirs = recipe(path, method, dtype), scratch / 'ours', scratch / 'theirs'
      runs = []
      commands = [
        ([sys.executable, '-m', 'imm_jax', 'merge', f'--recipe={file}', '--out'], ours),
        ([mergekit, file], theirs),
      ]
      for i in range(repeats):  # each is first in turn
        order = commands if i % 2 == 0 else commands[::-1]
        measured = {str(out): measure(command, out) for command, out in order}
        runs.append((measured[str(ours)], measured[str(theirs)]))
      row = {
        'model': label,
        'dtype': dtype,
        'method': method,
        'ours': [a for a, _ in runs],
        'mergekit': [b for _, b in runs],
      }
      row['ratios'] = {key: sorted(a[key] / b[key] for a, b in runs) for key in runs[0][0]}
      if method != 'dare_linear':  # random masks
        row['largest_difference'] = largest_difference(ours, theirs)
      rows.append(row)
      print(
        method,
        dtype,
        {key: round(statistics.median(value), 3) for key, value in row['ratios'].items()},
        flush=True,
      )
    shutil.rmtree(path)
  return rows


def in_memory(repeats: int) -> dict[str, list[float]]:
  """Returns GB/s of the donated linear merge, and of x + a y written in place.

  Both do two reads and a write of 4 bytes per element.
  """
  shapes = {
    'embedding': (32000, 1280),
    'layers': {'attn': (24, 4, 1280, 1280), 'mlp': (24, 3, 1280, 3456)},
  }
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  base = jax.tree.map(
    lambda shape: jax.random.normal(jax.random.key(0), shape), shapes, is_leaf=is_shape
  )
  tuned = jax.tree.map(lambda x: x + 0.01, base)

  @functools.partial(jax.jit, donate_argnames='tuned')
  def merge(base, tuned, alpha):
    return merging.merge('linear', base, [tuned], alpha=alpha)

  @functools.partial(jax.jit, donate_argnames='tuned')
  def triad(base, tuned, alpha):
    return jax.tree.map(lambda b, t: b + alpha * t, base, tuned)

  num_bytes = 12 * sum(x.size for x in jax.tree.leaves(base))
  rates = {'merge': [], 'triad': []}
  for i in range(1 + 5 * repeats):
    for name, function in (('merge', merge), ('triad', triad)):
      start = time.monotonic()
      tuned = jax.block_until_ready(function(base, tuned, jnp.float32(0.5)))
      if i:  # the first call compiles
        rates[name].append(num_bytes / (time.monotonic() - start) / 1e9)
  return rates


def main() -> None:
  """Measures, prints a table and writes JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--mergekit', required=True, help="mergekit's mergekit-yaml")
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--out', default='merge.json')
  parser.add_argument('--scratch', default=None, help='where the models go: 12 GB')
  args = parser.parse_args()
  rates = in_memory(args.repeats)
  with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
    rows = on_disk(args.mergekit, args.repeats, pathlib.Path(scratch))
  machine = {
    'cpus': os.cpu_count(),
    'machine': platform.machine(),
    'python': platform.python_version(),
    'jax': jax.__version__,
  }
  table = Table(title='imm_jax / mergekit 0.1.5: median [min, max]')
  for name in ('model', 'dtype', 'method', 'wall', 'CPU', 'peak', 'seconds', 'difference'):
    table.add_column(name, justify='left' if name in ('model', 'dtype', 'method') else 'right')
  for row in rows:
    ratios = [
      f'{statistics.median(row["ratios"][key]):.2f} [{row["ratios"][key][0]:.2f},'
      f' {row["ratios"][key][-1]:.2f}]'
      for key in ('wall_secs', 'cpu_secs', 'peak_gib')
    ]
    seconds = [
      statistics.median(run['wall_secs'] for run in row[which]) for which in ('ours', 'mergekit')
    ]
    difference = f'{row["largest_difference"]:.0e}' if 'largest_difference' in row else ''
    cells = [
      row['model'],
      row['dtype'],
      row['method'],
      *ratios,
      '{:.1f} / {:.1f}'.format(*seconds),
      difference,
    ]
    table.add_row(*[cell.replace('[', r'\[') for cell in cells])
  Console(width=130).print(table)
  ratio = sorted(m / t for m, t in zip(rates['merge'], rates['triad'], strict=True))
  print(
    f'in memory: {statistics.median(rates["merge"]):.1f} GB/s, triad'
    f' {statistics.median(rates["triad"]):.1f} GB/s, '
    f'ratio {statistics.median(ratio):.2f} [{ratio[0]:.2f}, {ratio[-1]:.2f}]'
  )
  pathlib.Path(args.out).write_text(
    json.dumps({'machine': machine, 'on_disk': rows, 'in_memory': rates}, indent=1) + '\n'
  )


if __name__ == '__main__':
  main()
