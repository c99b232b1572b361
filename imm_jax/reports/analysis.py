"""What a run did to the model: layers that matter and changed, diversity of samples, forgetting.

The paper's own formulas are not at hand: those of layer importance, change and superficiality are
ours.
"""

from collections.abc import Callable, Sequence
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
from imm_jax.rounds.records import Answer, Sample
from imm_jax.rounds.workdir import Workdir
from imm_jax.tasks import Example


def collapse(samples: Sequence[Sample], extract: Callable[[str], str]) -> dict[str, float | None]:
  """Measures how diverse a task's samples of a round are.

  extract is the task's.

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
  groups = _by_question(samples)
  k = min(map(len, groups))
  num_tokens = sum(len(one.tokens) for one in samples)
  counts = [(len(group), sum(one.right for one in group)) for group in groups]

  def passes(k: int) -> float:
    return float(np.mean([pass_at_k(n, num_right, k) for n, num_right in counts]))

  entropies = [one.entropy for one in samples if one.entropy is not None]
  answers = [{extract(one.text) for one in group} - {''} for group in groups]
  solutions = [{one.text.strip() for one in group if one.right} for group in groups]
  return {
    **{f'distinct_{n}': distinct_n([one.tokens for one in samples], n) for n in (1, 2, 3)},
    'self_bleu': self_bleu([[one.text for one in group] for group in groups]),
    'unique_answers': float(np.mean([len(of_question) for of_question in answers])),
    'unique_solutions': float(np.mean([len(of_question) for of_question in solutions])),
    'token_entropy_nats': sum(entropies) / num_tokens if len(entropies) == len(samples) else None,
    'pass@1': passes(1),
    f'pass@{k}': passes(k),
  }


def _by_question(samples: Sequence[Sample]) -> list[list[Sample]]:
  groups: dict[str, list[Sample]] = {}
  for sample in samples:
    groups.setdefault(sample.question_id, []).append(sample)
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


def transitions(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, dict[str, int]]:
  """Counts by task how many items went '1->0' (right, then wrong), '0->1', '1->1' and '0->0'.

  Both are answers to the same questions, of one set of params each.
  """
  was = {(answer.task, answer.id): answer.right for answer in before}
  counts: dict[str, dict[str, int]] = {}
  for answer in after:
    of_task = counts.setdefault(answer.task, dict.fromkeys(('1->0', '0->1', '1->1', '0->0'), 0))
    of_task[f'{was[answer.task, answer.id]:d}->{answer.right:d}'] += 1
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
    f'{workdir.path}@0', dtype=exp.model.dtype, remat=exp.model.remat, rules=sharding.TRAIN
  )
  learned = [_with_prompt(exp, lm, sample) for sample in workdir.read_samples(1)]
  pairs = synthesize.some_pairs(learned, num_completions, exp.seed)
  found = layerwise.importance(lm, lm.params, pairs, max_length=exp.finetune.max_length)._asdict()
  importance = {name: values.tolist() for name, values in found.items()}
  analyses: list[dict[str, Any]] = [{'importance': importance}]
  for round_ in range(1, num_rounds):
    processes.check_stop()
    moved = layerwise.change(lm.params, lm_lib.restore(workdir.path, round_, 'params', lm))
    analyses.append(
      {
        'change': moved | {'layers': moved['layers'].tolist()},
        'spearman': {name: spearman(values, moved['layers']) for name, values in found.items()},
        'collapse': _collapse_by_task(exp, workdir.read_samples(round_)),
        'transitions': _transitions_by_domain(exp, workdir, round_),
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
  samples: Sequence[Sample],
) -> dict[str, dict[str, float | None]]:
  """Returns `collapse` of each task's samples, which the data's own solutions are not."""
  found = {}
  for name, task in exp.id_tasks.items():
    of_task = [sample for sample in samples if sample.task == name and not sample.real]
    if of_task:
      found[name] = collapse(of_task, task.extract)
  return found


def _transitions_by_domain(exp: Experiment, workdir: Workdir, round_: int) -> dict[str, Any]:
  """Returns {'id': {task: counts}, 'ood': ...} of merged params; 'tuned_id', ... of tuned ones."""
  before, after = workdir.read_answers(0), workdir.read_answers(round_)
  found = {}
  for which, prefix in (('merged', ''), ('tuned', 'tuned_')):
    answers = [answer for answer in after if answer.params == which]
    if answers:
      counts = transitions(before, answers)
      found[f'{prefix}id'] = {name: counts[name] for name in exp.id_tasks}
      found[f'{prefix}ood'] = {name: counts[name] for name in exp.ood_tasks}
  return found
