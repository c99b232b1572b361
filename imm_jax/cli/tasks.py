"""`imm tasks`: lists the known data sets, or prints prompts and golds of a task."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from imm_jax.cli import tables
from imm_jax.cli.flags import Flags
from imm_jax.tasks import catalog, Task
from imm_jax.text import nearest


def main(flags: Flags) -> None:
  """Runs the command."""
  source = flags.string(
    'source',
    None,
    "Of NAME's questions, in place of the hub's: see docs/tasks.md.",
  )
  show = flags.integer('show', 0, 'Questions of NAME to print, with prompts and golds.', at_least=0)
  usage = '[NAME]: a data set, or a task of the --config; without NAME the data sets are listed'
  config, names = flags.parse_optional_config(num_positional=None, usage=usage)
  if len(names) > 1:
    raise ValueError(f'imm tasks: takes one NAME and got {len(names)}: {" ".join(names)}')
  if config is None and not names:
    if source.value or show.value:
      raise ValueError(
        'imm tasks: --source and --show are about one data set; name it first: imm tasks NAME'
        ' --show=3'
      )
    tables.terminal().print(_catalog())
    print(
      'Beside these: any data set of reasoning_gym, rows of your own (custom) and what is made in'
      ' code (synthetic).'
    )
    return
  spec = _find(names, _specs(config, show.value))
  if source.value:
    spec = spec | {'train_source': source.value, 'test_source': ''}
  from imm_jax.rounds import experiment

  _print_task(experiment.make_task(names[0], spec), show.value)


def _specs(config: dict[str, Any] | None, num_questions: int) -> dict[str, dict[str, Any]]:
  """Returns what makes each task, by name: the config's, or the known data sets."""
  if config is None:
    return {name: catalog.spec(name, test_size=num_questions or 1) for name in catalog.DATASETS}
  specs = {}
  for domain in config['tasks'].values():
    specs |= domain
  return specs


def _find(names: Sequence[str], specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
  if names and names[0] in specs:
    return specs[names[0]]
  hint = nearest(names[0] if names else '', specs) or f'; the tasks are {", ".join(specs)}'
  raise ValueError(f'imm tasks: {names[0] if names else "no NAME"}: no such task{hint}')


def _catalog() -> Table:
  """Returns a table of the known data sets; the example is made up."""
  table = Table(
    title='data sets: rows of train / test, how they are asked and verified, and an example',
  )
  for name in ('name', 'train', 'test', 'licence', 'verifier', 'scoring', 'example'):
    justify = 'right' if name in ('train', 'test') else 'left'
    table.add_column(name, justify=justify, no_wrap=name == 'name')
  for name, row in catalog.DATASETS.items():
    parsed = row.parse([row.sample], 'sample')[0]
    text = ' '.join(f'{parsed.question} -> {parsed.answer}'.split())
    table.add_row(name, *map(str, row.sizes), row.licence, row.verifier, row.scoring, escape(text))
  return table


def _print_task(task: Task, num_questions: int) -> None:
  """Prints how large a task is, and the prompts, options and golds of its first test questions."""
  sizes = f'{len(task.train)} train and {len(task.test)} test questions, {len(task.shots)} shots'
  print(f'{task.name}: {sizes}')
  for example in task.test[:num_questions]:
    prompt = task.prompt(example, task.shots)
    print(f'--- {example.id}')
    if isinstance(prompt, str):
      print(prompt)
    else:
      print('\n'.join('{role}: {content}'.format(**turn) for turn in prompt))
    for option in example.options if task.scoring == 'likelihood' else ():
      print(f'  {option}')
    print(f'--- gold {example.answer!r}, stop {list(task.stop)}')
