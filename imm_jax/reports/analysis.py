"""What a run did to the model: layers that matter and changed, diversity of samples, forgetting.

The paper's own formulas are not at hand: those of layer importance, change and superficiality are
ours.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from imm_jax import extras, processes, sharding
from imm_jax import lm as lm_lib
from imm_jax.evaluate import pass_at_k
from imm_jax.lm import LM
from imm_jax.reports.statistics import spearman
from imm_jax.rounds import experiment, layerwise, synthesize
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.records import Sample
from imm_jax.rounds.workdir import Workdir
from imm_jax.tasks import Example

Record = Mapping[str, Any]  # a line of samples.jsonl or evaluations.jsonl


def collapse(records: Sequence[Record], extract: Callable[[str], str]) -> dict[str, float | None]:
  """Measures how diverse a task's samples of a round are.

  records are lines of samples.jsonl, extract is the task's.

  distinct_1 .. distinct_3: see distinct_n, over all samples' tokens.
  self_bleu: see self_bleu.
  unique_answers: the mean number of different answers per question; an answer that cannot be read
    does not count.
  unique_solutions: the mean number of different texts that are right, per question.
  token_entropy_nats: the mean over sampled tokens of the entropy of the model's own distribution
    there (temperature 1, nothing cut off); None for samples of older programs, which did not
    measure it.
  pass@1 and pass@k: see evaluate.pass_at_k, where k is the number of samples per question.
  """
  groups = _by_question(records)
  k, num_tokens = min(map(len, groups)), sum(len(record['tokens']) for record in records)
  counts = [(len(group), sum(record['right'] for record in group)) for group in groups]

  def passes(k: int) -> float:
    return float(np.mean([pass_at_k(n, num_right, k) for n, num_right in counts]))

  entropies = [record['entropy'] for record in records if record.get('entropy') is not None]
  answers = [{extract(record['text']) for record in group} - {''} for group in groups]
  solutions = [{record['text'].strip() for record in group if record['right']} for group in groups]
  return {
    **{f'distinct_{n}': distinct_n([record['tokens'] for record in records], n) for n in (1, 2, 3)},
    'self_bleu': self_bleu([[record['text'] for record in group] for group in groups]),
    'unique_answers': float(np.mean([len(of_question) for of_question in answers])),
    'unique_solutions': float(np.mean([len(of_question) for of_question in solutions])),
    'token_entropy_nats': sum(entropies) / num_tokens if len(entropies) == len(records) else None,
    'pass@1': passes(1),
    f'pass@{k}': passes(k),
  }


def _by_question(records: Sequence[Record]) -> list[list[Record]]:
  groups: dict[str, list[Record]] = {}
  for record in records:
    groups.setdefault(record['question_id'], []).append(record)
  return list(groups.values())


def distinct_n(sequences: Sequence[Sequence[int]], n: int) -> float | None:
  """Returns the share of different ones among all n-grams (arXiv 1510.03055).

  None where no sequence is that long.
  """
  grams = [tuple(tokens[i : i + n]) for tokens in sequences for i in range(len(tokens) - n + 1)]
  return len(set(grams)) / len(grams) if grams else None


def self_bleu(groups: Sequence[Sequence[str]], num_texts: int = 200) -> float | None:
  """Returns how much a text is like the others of its group, in [0, 1] (arXiv 1802.01886).

  It is the mean BLEU of a text against the others of its group.

  Taken over num_texts texts, always the same ones, so that it takes bounded time. None where no
  group has two.
  """
  import sacrebleu

  choices = [(group, i) for group in groups if len(group) > 1 for i in range(len(group))]
  scores = []
  for index in np.random.default_rng(0).permutation(len(choices))[:num_texts]:
    group, i = choices[index]
    others = [*group[:i], *group[i + 1 :]]
    scores.append(sacrebleu.sentence_bleu(group[i], others).score / 100)
  return float(np.mean(scores)) if scores else None


def transitions(before: Sequence[Record], after: Sequence[Record]) -> dict[str, dict[str, int]]:
  """Counts by task how many items went '1->0' (right, then wrong), '0->1', '1->1' and '0->0'.

  Both are records of evaluations.jsonl of the same items, of one set of params each.
  """
  was = {(record['task'], record['id']): record['right'] for record in before}
  counts: dict[str, dict[str, int]] = {}
  for record in after:
    of_task = counts.setdefault(record['task'], dict.fromkeys(('1->0', '0->1', '1->1', '0->0'), 0))
    of_task[f'{was[record["task"], record["id"]]:d}->{record["right"]:d}'] += 1
  return counts


def analyze(path: str, num_completions: int = layerwise.NUM_COMPLETIONS) -> list[dict[str, Any]]:
  """Analyses the finished rounds of a run; writes into its workdir what it returns, a dict a round.

  Round 0 has the 'importance' of the original model's layers on completions that were accepted in
  round 1: the same whatever rounds follow. Later rounds have the 'change' of their params from the
  original, its 'spearman' with each importance, the 'collapse' of their samples by task, and the
  'transitions' of answers from round 0 by domain.

  Args:
    path: of the workdir.
    num_completions: that importance is measured on; fewer where fewer were accepted.

  Raises:
    ValueError: there is no run, round 1 is not done, a file of a round is damaged, or the `report`
      extra is missing.
    OSError: a file cannot be read or written.
    processes.Stopped: a notice to stop has come; nothing is written.
  """
  extras.require('imm analyze', 'report', 'sacrebleu')
  workdir = Workdir(path)
  processes.on_first(workdir.check)
  exp = experiment.resolve(workdir.read_config())
  num_rounds = len(workdir.finished())
  if num_rounds < 2:
    raise ValueError(
      f'{workdir.path}: round 1 is not done, so there is nothing to analyze; go on with imm run'
    )
  lm = lm_lib.load(
    f'{workdir.path}@0',
    dtype=exp.model.dtype,
    remat=exp.model.remat,
    attention='auto',
    mesh=sharding.make_mesh(),
    rules=sharding.TRAIN,
  )
  lines = workdir.read_lines(1, 'samples.jsonl')
  learned = [_with_prompt(exp, lm, Sample.from_json(line)) for line in lines]
  pairs = synthesize.some_pairs(learned, num_completions, exp.seed)
  found = layerwise.importance(lm, lm.params, pairs, max_length=exp.finetune.max_length)._asdict()
  importance = {name: values.tolist() for name, values in found.items()}
  analyses: list[dict[str, Any]] = [{'importance': importance}]
  before = workdir.read_lines(0, 'evaluations.jsonl')
  for round_ in range(1, num_rounds):
    processes.check_stop()
    moved = layerwise.change(lm.params, lm_lib.restore(workdir.path, round_, 'params', lm))
    samples = workdir.read_lines(round_, 'samples.jsonl')
    after = workdir.read_lines(round_, 'evaluations.jsonl')
    analyses.append(
      {
        'change': moved | {'layers': moved['layers'].tolist()},
        'spearman': {name: spearman(values, moved['layers']) for name, values in found.items()},
        'collapse': _collapse_by_task(exp, samples),
        'transitions': _transitions_by_domain(exp, before, after),
      }
    )
  workdir.write_analyses(analyses)
  return analyses


def _with_prompt(exp: Experiment, lm: LM, sample: Sample) -> Sample:
  """Returns a sample with its prompt, which runs before version 0.2 did not record."""
  if sample.prompt_tokens:
    return sample
  example = Example(sample.question_id, sample.question, sample.gold)
  prompt = lm.tokenizer.encode_prompt(exp.id_tasks[sample.task].prompt(example))
  return dataclasses.replace(sample, prompt_tokens=prompt)


def _collapse_by_task(
  exp: Experiment,
  records: Sequence[Record],
) -> dict[str, dict[str, float | None]]:
  """Returns `collapse` of each task's samples, which the data's own solutions are not."""
  found = {}
  for name, task in exp.id_tasks.items():
    of_task = [record for record in records if Sample.from_json(record).task == name]
    samples = [record for record in of_task if not record.get('real')]
    if samples:
      found[name] = collapse(samples, task.extract)
  return found


def _transitions_by_domain(
  exp: Experiment,
  before: Sequence[Record],
  after: Sequence[Record],
) -> dict[str, Any]:
  """Returns {'id': {task: counts}, 'ood': ...} of merged params; 'tuned_id', ... of tuned ones."""
  found = {}
  for which, prefix in (('merged', ''), ('tuned', 'tuned_')):
    answers = [record for record in after if record['params'] == which]
    if answers:
      counts = transitions(before, answers)
      found[f'{prefix}id'] = {name: counts[name] for name in exp.id_tasks}
      found[f'{prefix}ood'] = {name: counts[name] for name in exp.ood_tasks}
  return found
