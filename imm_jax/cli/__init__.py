"""The `imm` command."""

import atexit
from collections.abc import Sequence
import ctypes
import dataclasses
import gc
import importlib.util
import json
import os
import signal
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imm_jax import console
from imm_jax.tasks import catalog, Task
from imm_jax.text import nearest

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h

RESTART = 42  # exit code of a run that was told to stop: the same command goes on; xpk restarts on it

OVERVIEW = """imm: Iterative Model Merging of self-improving language models.

  imm run --config=FILE --workdir=DIR      run the rounds, or go on with them
  imm doctor --config=FILE --workdir=DIR   look whether a run would start, fit and write; nothing runs
  imm evaluate --config=FILE               measure config.model.path on the config's tasks
  imm convert SOURCE TARGET                write a Hugging Face directory that transformers loads
  imm analyze --workdir=DIR                layers that matter and that changed, diversity of samples, what is forgotten
  imm merge --base=A --tuned=B --out=DIR   merge models on disk, or --recipe=FILE.yml, mergekit's
  imm report WORKDIR [WORKDIR ...]         one HTML page of a run, or of several side by side
  imm plan --config=FILE --topology=v5e:4x4   compile a run's programs for TPUs that are not there: memory, FLOPs, time
  imm tasks [NAME --show=3]                list the known data sets, or print prompts and golds of one

A model is a Hugging Face directory, a .gguf file, or WORKDIR@ROUND. `imm COMMAND --help` lists a command's flags. Every
config key is a flag: --config.merge.alpha=0.3. Errors are one line; --traceback shows where they come from.
"""


def main() -> None:
  """Runs the command that sys.argv names; exit code 0 is done, 1 a user's error in one line, RESTART go on with me."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: temporary files are removed
  atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # Or one that comes now would take the exit code's place.
  commands = {
      'run': _run, 'doctor': _doctor, 'evaluate': _evaluate, 'analyze': _analyze, 'convert': _convert, 'merge': _merge,
      'report': _report, 'plan': _plan, 'tasks': _tasks,
  }  # fmt: skip
  name, arguments = (sys.argv[1:2] or ['--help'])[0], sys.argv[2:]
  if name in ('-h', '--help', 'help'):
    print(OVERVIEW, end='')
    return
  values = flags.FlagValues()
  flags.DEFINE_bool('traceback', False, 'Show where an error comes from.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this.', short_name='h', flag_values=values)
  try:
    if name not in commands:
      raise ValueError(f'{name!r} is no command; the commands are {", ".join(commands)}')
    commands[name](values, [f'imm {name}', *arguments])
  # What a user can cause is a ValueError or an OSError with one clear line; anything else is ours, and shows its traceback.
  except (ValueError, OSError, flags.Error) as error:
    if values.traceback if values.is_parsed() else '--traceback' in arguments:
      raise
    print(f'imm: {_one_line(error)}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('imm: stopped; a run goes on with the same command', file=sys.stderr, flush=True)
    os._exit(130)  # An orderly exit would wait for, or crash in, a computation that is still running.


def _one_line(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    return f'{error.filename}: {error.strerror}' if error.filename else error.strerror
  if isinstance(error, SyntaxError):
    return f'{error.filename}, line {error.lineno}: {error.msg}'
  # ml_collections puts the whole traceback of a config's own error into its message: the last line is the error.
  text = ': '.join(map(str, error.args)) if len(error.args) > 1 else str(error)
  if 'Traceback (most recent call last)' in text:
    text = text.strip().splitlines()[-1].partition('Error: ')[2] or text
  return ' '.join(text.split())


def _parse(
  values: flags.FlagValues,
  arguments: Sequence[str],
  num_positional: int | None = 0,
  usage: str = '',
  epilog: str = '',
) -> list[str]:
  """Parses the flags; returns the positional arguments, None being any number. Help is usage, the flags and the epilog."""
  if {'-h', '--help'} & set(arguments):
    print('\n'.join([f'{arguments[0]} {usage}'.rstrip(), values.main_module_help() or values.get_help(), epilog]).rstrip())
    sys.exit(0)
  # A config is a program of the user's: whatever it raises, as ml_collections does about an override, is a mistake in it.
  try:
    positional = values(arguments)[1:]
  except (ValueError, OSError, flags.Error):
    raise
  except Exception as error:
    hint = '; a config imports what stands beside it or on PYTHONPATH' if isinstance(error, ImportError) else ''
    raise ValueError(f'--config: {_one_line(error)}{hint}') from error
  if num_positional is not None and len(positional) != num_positional:
    raise ValueError(f'{arguments[0]}: takes {num_positional} arguments and got {len(positional)}: {" ".join(positional)}')
  return positional


def _parse_config(values: flags.FlagValues, arguments: list[str]) -> Any:
  given = [argument.lstrip('-') for argument in arguments]
  source = next((text.partition('=')[2] for text in given if text.startswith('config=')), '')
  if 'config' in given[:-1]:
    source = arguments[given.index('config') + 1]
  path = source.partition(':')[0]
  if source:
    if not os.path.isfile(path):
      raise ValueError(f'--config: {path}: no such file; give the file of an experiment, such as configs/quickstart.py')
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # A config imports what stands beside it, as a script does.
    probe = flags.FlagValues()
    plain = [arguments[0], f'--config={source}']
    config = config_flags.DEFINE_config_file('config', None, '', flag_values=probe, sys_argv=plain)
    _parse(probe, plain)
    for argument in arguments:
      if argument.startswith('-'):
        _check_key(config.value, argument.lstrip('-').partition('=')[0])
  config = config_flags.DEFINE_config_file(
    'config', None, 'File of the experiment, and FILE:ARGUMENT for its get_config. Each of its keys is a flag --config.KEY.',
    flag_values=values, sys_argv=arguments,
  )  # fmt: skip
  _parse(values, arguments)
  if config.value is None:
    raise ValueError('--config: is missing; give the file of an experiment, such as configs/quickstart.py')
  return config.value.to_dict()


def _check_key(config: Any, name: str) -> None:
  """Raises ValueError when `name`, a flag without its dashes, is meant for the config and is no key of it."""
  first, *keys = name.removeprefix('no' if name.startswith('noconfig.') else '').split('.')
  if first != 'config' and keys and first in config:
    raise ValueError(f'--{name}: no such flag; a key of the config is --config.{name}')
  where, section = 'config', config
  for key in keys if first == 'config' else ():
    if not hasattr(section, 'keys') or key not in section:
      known = list(section) if hasattr(section, 'keys') else []
      hint = nearest(key, known) or f'; {where} has {", ".join(known) or "none"}'
      raise ValueError(f'{where}.{key}: no such key{hint}')
    where, section = f'{where}.{key}', section[key]


def _parse_run(values: flags.FlagValues, arguments: list[str]) -> Any:
  flags.DEFINE_string('workdir', None, 'Directory of the run; the same command goes on with it.', flag_values=values)
  config = _parse_config(values, arguments)
  if not values.workdir:
    raise ValueError('--workdir: is missing; give the directory of the run')
  return config


def _run(values: flags.FlagValues, arguments: list[str]) -> None:
  config = _parse_run(values, arguments)
  from imm_jax import processes
  from imm_jax.reports import report
  from imm_jax.rounds import loop

  processes.join()
  if not processes.is_first():
    console.mute()
  try:
    rows = loop.run(config, values.workdir, after_round=report.write)
  except processes.Stopped:
    console.note('imm: stopped as asked to, and saved; the same command goes on')
    sys.exit(RESTART)
  if processes.is_first():
    _print_table(rows)
    _print_files(values.workdir)


def _print_files(workdir: str) -> None:
  for name in ('summary.json', 'report.html'):
    print(f'{name.partition(".")[0]}: {os.path.join(workdir, name)}')


def _doctor(values: flags.FlagValues, arguments: list[str]) -> None:
  config = _parse_run(values, arguments)
  from imm_jax import processes
  from imm_jax.planning import doctor

  processes.join()
  for name, found in doctor.examine(config, values.workdir):
    if processes.is_first():
      print(f'{name:>12}  {found}')


def _evaluate(values: flags.FlagValues, arguments: list[str]) -> None:
  flags.DEFINE_string('out', None, 'JSON file to write the results to.', flag_values=values)
  flags.DEFINE_list('lm_eval_tasks', [], "Tasks of lm-eval's, in place of the config's.", flag_values=values)
  flags.DEFINE_string('lm_eval_include', '', "Directory with more of lm-eval's task files.", flag_values=values)
  config = _parse_config(values, arguments)
  from imm_jax.rounds import loading, loop

  if not values.lm_eval_tasks:
    results = loop.evaluate_only(config)
    _print_table([results], config['model']['path'] or 'base')
  else:
    if importlib.util.find_spec('lm_eval') is None:
      raise ValueError("--lm_eval_tasks: lm-eval is not installed; pip install 'imm_jax[eval]'")
    from imm_jax import harness

    lm, rows = loading.load_to_sample(config), config['sampler']['num_slots']
    results = harness.evaluate(lm, values.lm_eval_tasks, values.lm_eval_include, rows)
    print(harness.table(results))
  if values.out:
    with open(values.out, 'w', encoding='utf-8') as file:
      json.dump(results, file, indent=2, default=str)


def _analyze(values: flags.FlagValues, arguments: list[str]) -> None:
  flags.DEFINE_string('workdir', None, 'Directory of a run that has a round done.', flag_values=values)
  flags.DEFINE_integer('num_completions', 64, 'To measure the importance of layers on.', 1, flag_values=values)
  _parse(values, arguments)
  if not values.workdir:
    raise ValueError('--workdir: is missing; give the directory of the run')
  from imm_jax import processes
  from imm_jax.reports import analysis, report

  processes.join()
  try:
    analyses = analysis.analyze(values.workdir, values.num_completions)
  except processes.Stopped:
    console.note('imm: stopped as asked to; the same command begins again')
    sys.exit(RESTART)
  if processes.is_first():
    terminal = Console(width=None if sys.stdout.isatty() else 160)
    for table in analysis.tables(analyses):
      terminal.print(table)
    report.write(values.workdir)
    _print_files(values.workdir)


def _convert(values: flags.FlagValues, arguments: list[str]) -> None:
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the weights in TARGET.', flag_values=values)
  flags.DEFINE_string('base', None, 'Of a LoRA adapter, in place of the one it names.', flag_values=values)
  usage = (
    'SOURCE TARGET: a model (HF directory, .gguf, WORKDIR@ROUND) or a LoRA adapter of PEFT or TRL, which is merged into its'
    ' base, and the Hugging Face directory to write'
  )
  source, target = _parse(values, arguments, num_positional=2, usage=usage)
  from imm_jax import lm
  from imm_jax.formats import peft
  from imm_jax.reports import card

  lm.check_target(target)
  if peft.is_adapter(source):
    model = lm.load_adapter(source, values.base)
  elif values.base:
    raise ValueError(f'--base: {source} is no LoRA adapter: it has no {peft.CONFIG}')
  else:
    model = lm.load(source)
  model.save(target, values.dtype, card.render(model.source))
  print(f'wrote {target}')


def _report(values: flags.FlagValues, arguments: list[str]) -> None:
  flags.DEFINE_string('out', '', 'File to write; default: report.html in the one WORKDIR.', flag_values=values)
  flags.DEFINE_string('figures', '', 'Directory to write the figures to as well, an SVG file each.', flag_values=values)
  usage = 'WORKDIR [WORKDIR ...]: of one run, or of several; those with configs equal but for the seed are one arm'
  paths = _parse(values, arguments, num_positional=None, usage=usage)
  if not paths:
    raise ValueError('imm report: takes at least one WORKDIR')
  if len(paths) > 1 and not values.out:
    raise ValueError('--out: is missing; give the HTML file for a page of several runs')
  from imm_jax.reports import report

  if values.out:
    page = report.page(paths)
    with open(values.out, 'w', encoding='utf-8') as file:
      file.write(page)
  else:
    report.write(paths[0])
  if values.figures:
    os.makedirs(values.figures, exist_ok=True)
    for name, svg in report.figures(paths).items():
      with open(os.path.join(values.figures, f'{name}.svg'), 'w', encoding='utf-8') as file:
        file.write(svg)
  print(f'report: {values.out or os.path.join(paths[0], "report.html")}')


def _plan(values: flags.FlagValues, arguments: list[str]) -> None:
  flags.DEFINE_string('topology', 'v5e:4x4', 'CHIP:SHAPE of a slice: v5e, v5p or v6e.', flag_values=values)
  flags.DEFINE_integer('num_slices', 1, 'Slices of that shape, joined by the data-centre network.', 1, flag_values=values)
  flags.DEFINE_string('program', 'all', 'train, prefill, decode, merge or score.', flag_values=values)
  flags.DEFINE_integer('prompt_tokens', 512, 'Of a prompt, when sampling and scoring.', 1, flag_values=values)
  flags.DEFINE_integer('new_tokens', 512, 'Of a completion at most.', 1, flag_values=values)
  flags.DEFINE_bool('json', False, 'Print JSON in place of a table.', flag_values=values)
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing runs; a TPU beside this program stays free
  config = _parse_config(values, arguments)
  from imm_jax.planning import plan

  if values.program not in ('all', *plan.PROGRAMS):
    raise ValueError(f'--program: {values.program!r} is not one of all, {", ".join(plan.PROGRAMS)}')
  programs = plan.PROGRAMS if values.program == 'all' else (values.program,)
  reports = {}
  for report in plan.plan(config, values.topology, values.num_slices, programs, values.prompt_tokens, values.new_tokens):
    reports[report.program] = report
    console.note(f'{report.program}: compiled in {report.compile_secs:.0f} s')
  if values.json:
    print(json.dumps({name: dataclasses.asdict(report) for name, report in reports.items()}, indent=2))
    return
  chip = plan.chip_of(values.topology)
  table = Table(title=f'{values.num_slices} x {values.topology}: a device, by estimates that no hardware has confirmed')
  for name in ('program', 'peak GiB', 'of it temporary', 'TFLOP', 'needed', 'compute ms', 'links ms', 'MFU', 'tokens/s'):
    table.add_column(name, justify='left' if name == 'program' else 'right')
  for name, r in reports.items():
    peak = f'{r.peak_gib:.2f}' if r.fits else f'{r.peak_gib:.2f} of {r.limit_gib}!'
    table.add_row(
        name, peak, f'{r.temporaries_gib:.2f}', f'{r.flops / 1e12:.2f}', f'{r.model_flops / 1e12:.2f}',
        f'{1e3 * r.compute_secs:.1f}', f'{1e3 * r.collective_secs:.1f}', f'{r.mfu(chip):.0%}', f'{r.tokens / r.secs:,.0f}',
    )  # fmt: skip
  terminal = Console(width=None if Console().is_terminal else 160)
  terminal.print(table)
  for name, r in reports.items():
    moved = ', '.join(f'{kind} {size / 1e9:.2f} GB' for kind, size in r.collective_bytes.items())
    how = f' (remat {r.remat})' if name == 'train' else ''
    terminal.print(f'{name}{how}: {moved or "no collective"}', highlight=False)
    if not r.fits:
      terminal.print(f'{name} does not fit: try {plan.advice(r, config)}', highlight=False)
  questions = config['synthesize']['num_questions']
  if {'train', 'decode'} <= set(reports) and questions:
    samples = questions * config['sampler']['num_samples_per_prompt']
    total = plan.hours(reports['train'], reports['decode'], config, samples, values.new_tokens)
    terminal.print(f'at most {total:.1f} h for {config["num_rounds"]} rounds of {samples} samples', highlight=False)


def _tasks(values: flags.FlagValues, arguments: list[str]) -> None:
  flags.DEFINE_string('source', None, "Of NAME's questions, in place of the hub's: see docs/tasks.md.", flag_values=values)
  flags.DEFINE_integer('show', 0, 'Questions of NAME to print, with prompts and golds.', 0, flag_values=values)
  names = [argument for argument in arguments[1:2] if not argument.startswith('-')]
  arguments = [arguments[0], *arguments[1 + len(names) :]]
  configured = any(argument.lstrip('-').startswith('config') for argument in arguments)
  if configured:
    config = _parse_config(values, arguments)
    specs = {name: spec for domain in config['tasks'].values() for name, spec in domain.items()}
  else:
    _parse(values, arguments, usage='[NAME]: a data set, or a task of the --config; without NAME the data sets are listed')
    specs = {name: catalog.spec(name, test_size=values.show or 1) for name in catalog.DATASETS}
  if not names and not configured:
    if values.source or values.show:
      raise ValueError('imm tasks: --source and --show are about one data set; name it first: imm tasks NAME --show=3')
    Console(width=None if sys.stdout.isatty() else 160).print(_catalog())
    print('Beside these: any data set of reasoning_gym, rows of your own (custom) and what is made in code (synthetic).')
    return
  if not names or names[0] not in specs:
    hint = nearest(names[0] if names else '', specs) or f'; the tasks are {", ".join(specs)}'
    raise ValueError(f'imm tasks: {names[0] if names else "no NAME"}: no such task{hint}')
  from imm_jax.rounds import experiment

  source = {'train_source': values.source, 'test_source': ''} if values.source else {}
  _show(experiment.make_task(names[0], specs[names[0]] | source), values.show)


def _catalog() -> Table:
  """Returns a table of the known data sets; the example is made up."""
  table = Table(title='data sets: rows of train / test, how they are asked and verified, and an example')
  for name in ('name', 'train', 'test', 'licence', 'verifier', 'scoring', 'example'):
    table.add_column(name, justify='right' if name in ('train', 'test') else 'left', no_wrap=name == 'name')
  for name, row in catalog.DATASETS.items():
    parsed = row.parse([row.sample], 'sample')[0]
    text = ' '.join(f'{parsed.question} -> {parsed.answer}'.split())
    table.add_row(name, *map(str, row.sizes), row.licence, row.verifier, row.scoring, escape(text))
  return table


def _show(task: Task, num_questions: int) -> None:
  """Prints how many questions a task has, and the prompts, options and golds of the first test questions."""
  print(f'{task.name}: {len(task.train)} train and {len(task.test)} test questions, {len(task.shots)} shots')
  for example in task.test[:num_questions]:
    prompt = task.prompt(example, task.shots)
    print(f'--- {example.id}')
    print(prompt if isinstance(prompt, str) else '\n'.join('{role}: {content}'.format(**turn) for turn in prompt))
    for option in example.options if task.scoring == 'likelihood' else ():
      print(f'  {option}')
    print(f'--- gold {example.answer!r}, stop {list(task.stop)}')


def _keep_freed_memory() -> None:
  """Has the C library keep large blocks that are freed: a new page costs more than what a merge computes with it."""
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc's
  if mallopt:
    for parameter, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
      mallopt(parameter, value)


def _merge(values: flags.FlagValues, arguments: list[str]) -> None:
  _keep_freed_memory()
  gc.disable()  # nothing to collect in a process of seconds, and 0.07 s of them
  from imm_jax import merging
  from imm_jax.merging import recipe as recipe_lib
  from imm_jax.merging import stream

  flags.DEFINE_string('recipe', None, "A merge in mergekit's YAML format, in place of the flags below.", flag_values=values)
  flags.DEFINE_string('base', None, 'The original model, a Hugging Face directory.', flag_values=values)
  flags.DEFINE_multi_string('tuned', [], 'A fine-tuned model; may be given several times.', flag_values=values)
  flags.DEFINE_string('method', 'linear', 'One of those below.', flag_values=values)
  flags.DEFINE_float('alpha', 0.5, 'Weight of tuned: 0 is base, 1 is tuned.', flag_values=values)
  flags.DEFINE_multi_string('param', [], "NAME=VALUE of the method's; may be given several times.", flag_values=values)
  flags.DEFINE_integer('seed', 0, "Of a random method's masks.", flag_values=values)
  flags.DEFINE_enum('dtype', '', ['', 'float32', 'bfloat16'], 'To round all models to first; of --out.', flag_values=values)
  flags.DEFINE_string('out', None, 'Hugging Face directory to write.', flag_values=values)
  _parse(values, arguments, epilog=_methods(merging.METHODS))
  if not values.out:
    raise ValueError('--out: is missing; give the directory to write')
  if values.recipe:
    given = [name for name in ('base', 'tuned', 'param', 'method', 'alpha', 'dtype') if values[name].present]
    if given:
      raise ValueError(f'--{given[0]}: the recipe says that; give --recipe or the other flags')
    recipe = recipe_lib.read(values.recipe)
  else:
    for name in ('base', 'tuned'):
      if not values[name].value:
        raise ValueError(f'--{name}: is missing; give a directory, or a --recipe')
    row = merging.METHODS.get(values.method)
    alpha = values.alpha if row is None or row.alpha or values['alpha'].present else None
    recipe = recipe_lib.from_flags(
      values.method, values.base, values.tuned, alpha, _parameters(values.param), values.dtype or None
    )
  num_tensors = len(stream.open_model(recipe.models[0]))
  with console.progress('merge', num_tensors, 'tensors') as advance:
    report = stream.merge_dirs(recipe, values.out, seed=values.seed, advance=advance)
  share = report.num_unmoved / max(1, report.num_changed)
  print(f'wrote {values.out}: {report.num_tensors} tensors')
  if recipe.method == 'slerp':
    print('note: slerp is linear interpolation where directions are nearly the same, as those of fine-tuned neighbours are')
  for difference in report.config_differences:
    print(f'warning: config.json is that of {recipe.models[0]}: {difference}')
  if share > 0.1 and recipe.alpha != 0:
    print(f'warning: {share:.0%} of the changed elements came out as in the base: the dtype is too coarse for this merge')


def _methods(methods: Any) -> str:
  """Returns the methods, a line each with its parameters and a line with its reference."""
  lines = ['Methods (parameters with their defaults; --alpha sets the one named):', '']
  for name, row in methods.items():
    parameters = ', '.join(key if value is None else f'{key}={value}' for key, value in row.parameters.items())
    lines.append(f'  {name}({parameters})' + (f', alpha: {row.alpha}' if row.alpha else ''))
    lines.append(f'      {row.reference}')
  return '\n'.join(lines)


def _parameters(texts: Sequence[str]) -> dict[str, Any]:
  """Returns {name: number, bool or list} of 'NAME=VALUE's; the values are JSON."""
  parameters = {}
  for text in texts:
    name, sign, value = text.partition('=')
    try:
      parameters[name] = json.loads(value)
    except ValueError:
      raise ValueError(f'--param: {text!r} is not NAME=VALUE with a number, true, false or a [list]') from None
    if not sign:
      raise ValueError(f'--param: {text!r} is not NAME=VALUE')
  return parameters


def _print_table(rows: Sequence[dict[str, Any]], first: str = 'base') -> None:
  """Prints a row for each set of params: accuracy [95 % interval] and the change from base, in points."""
  from imm_jax.reports import compare
  from imm_jax.rounds import records

  columns, results = compare.results(rows)
  tasks = [(domain, task) for domain in compare.DOMAINS for task in rows[0][domain]]
  table = Table('params', title='accuracy in % [95 % interval]' + (', change from base in points' if len(rows) > 1 else ''))
  for name in (*columns, 'drift'):  # drift: of the params from the original ones, relative to their norm
    table.add_column(name, justify='right')
  table.add_row('guess', *(f'{100 * rows[0][domain][task]["guess"]:.1f}' for domain, task in tasks), '')
  for state, cells in results.items():
    has_drift = state.round_ and state.which == 'merged'
    drift = f'{rows[state.round_]["merge"]["drift_norm"]:.1e}' if has_drift else ''
    table.add_row(first if state == records.BASE else state.name, *cells, drift)
  terminal = Console(width=None if sys.stdout.isatty() else 160)
  terminal.print(table)
  for domain, task in tasks:
    result = rows[-1][domain][task].items()
    sampled = [f'{key} {100 * value:.1f} %' for key, value in result if '@' in key or key == 'accuracy_flexible']
    if sampled:
      terminal.print(f'{task}: {", ".join(sampled)}', highlight=False)
