"""Iterative Model Merging (arXiv 2503.02103).

theta_0 is the original model and M_0 = theta_0. In round t the model samples solutions and a
verifier keeps the right ones, fine-tuning on them gives S_t, and M_t = merge(theta_0, S_t) starts
the next round. The method's switches, and the baselines that they make, are in docs/configs.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from imm_jax import console, processes
from imm_jax.rounds import experiment, loading
from imm_jax.rounds.round import evaluate, fine_tune, measure, merge, sample, text_nll
from imm_jax.rounds.run import Run


def run(
  config: Mapping[str, Any], path: str, after_round: Callable[[str], None] = lambda path: None
) -> list[dict[str, Any]]:
  """Runs the remaining rounds of an experiment in a workdir; returns the summaries of all rounds.

  All processes of a run make the same call; see processes.join. Process 0 calls after_round(path)
  when a round is done.

  Raises:
    ValueError: the config is wrong, or the workdir belongs to another one; the message names the
      key and the fix.
    OSError: a file cannot be read or written.
    processes.Stopped: a notice to stop has come; repeat the call to resume.
  """
  with Run.open(config, path) as run:
    if run.is_finished:
      _report(after_round, path)
      return run.workdir.finished()
    state = run.resume()  # theta_0, M_t, the anchor: where the last round ended.
    for round in run.rounds():
      if round.number > 0:
        samples = sample(run, round, state)  # y ~ M_t, verified.
        tuned = fine_tune(run, round, state, samples)  # S_t+1
        state = merge(run, round, state, tuned, samples)  # M_t+1 = merge(anchor, S_t+1, alpha_t)
      evaluate(run, round, state.params)
      run.commit(round, state)
      _report(after_round, path)
    return run.workdir.finished()


def _report(after_round: Callable[[str], None], path: str) -> None:
  """Calls after_round in process 0. An error in it is printed, and never ends a run."""
  if processes.is_first():
    try:
      after_round(path)
    except Exception as error:
      console.note(f'after the round: {type(error).__name__}: {error}; the run goes on')


def evaluate_only(
  config: Mapping[str, Any], after_task: Callable[[Mapping[str, Any]], None] = lambda row: None
) -> dict[str, Any]:
  """Returns the accuracies of config.model.path on the config's tasks, in the form of a summary.

  Every task is read, and every prompt's length checked, before the model is loaded.

  Args:
    config: the config of the experiment.
    after_task: called after each task with the results so far.

  Raises:
    ValueError: the config or a task's data are wrong, or a prompt is too long.
    OSError: a file cannot be read, or a verifier does not work here.
  """
  exp = experiment.resolve(config)
  exp.check_verifiers()
  mesh = exp.mesh.make()
  loading.check_test_lengths(exp, mesh)
  found: dict[str, Any] = {'round': 0, 'id': {}, 'ood': {}}
  with jax.set_mesh(mesh):
    lm = loading.load_model(exp, exp.model.path, mesh).to_sample()
    key = jax.random.key(exp.seed)
    for domain, task, result, _ in measure(exp, lm, key, part=lambda name, compute: compute()):
      found[domain][task] = result
      console.note(f'{domain.upper()} {task}: {100 * result["accuracy"]:.1f} % right')
      after_task(found)
    if exp.evaluate.text_source:
      found['text'] = text_nll(exp, lm)
      after_task(found)
  return found
