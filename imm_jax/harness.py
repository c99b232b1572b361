"""Runs lm-eval's tasks on our models: the model class `imm_jax` of lm-evaluation-harness.

It needs the `eval` extra. `python -m imm_jax.harness ARGUMENTS` is lm-eval's own command with the
class registered. Versions after 0.4.13 find the class by the entry point in pyproject.toml; earlier
ones know only lm-eval's own models.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import os
from typing import Any, cast

from lm_eval import tasks as lm_eval_tasks
from lm_eval import utils as lm_eval_utils
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate

from imm_jax import console, sharding
from imm_jax import lm as lm_lib
from imm_jax.lm import LM

AUTO_ROWS = 64  # The rows of a batch of size 'auto'.
MAX_NEW_TOKENS = 256  # The default for a task without a limit, as in lm-eval's own models.
_ROW_TOKENS = 512  # Option tokens scored in one row; attention computes all pairs of them.
# These names all mean the same to lm-eval.
_LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')


class HarnessLM(TemplateLM):
  """A model with the interface that lm-eval expects.

  Texts become tokens, and texts that are too long are cut, as in lm-eval's class `hf`. Each context
  is computed once for all its continuations, and the common start of a task's contexts once for the
  task.
  """

  def __init__(
    self,
    pretrained: str | LM,
    *,
    dtype: str = 'float32',
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    max_length: int | None = None,
    batch_size: int | str = 'auto',
    seed: int = 0,
    device: str | None = None,
    max_batch_size: int | None = None,
  ):
    """Loads the model.

    Args:
      pretrained: a path that imm_jax.load takes, or a loaded model with sharding.SAMPLE as its
        rules.
      dtype: the dtype of the computation.
      data: the number of devices along this mesh axis; -1 takes the remaining ones.
      fsdp: the number of devices along this mesh axis, as for `data`.
      tensor: the number of devices along this mesh axis, as for `data`.
      max_length: the most tokens of a context and its continuation; default: the model's.
      batch_size: the number of rows computed at once, or 'auto'.
      seed: seeds sampling at a temperature.
      device: ignored; lm-eval gives it to every model, and ours lives on the mesh.
      max_batch_size: ignored too.

    Raises:
      ValueError, FileNotFoundError: as imm_jax.load.
    """
    super().__init__()
    del device, max_batch_size
    if isinstance(pretrained, LM):
      self._lm, self._name = pretrained, 'imm_jax'
    else:
      self._lm = lm_lib.load(pretrained, dtype=dtype, mesh=sharding.make_mesh(data, fsdp, tensor))
      self._name = pretrained
    self.max_length = max_length or self._lm.config.max_length
    self.batch_size = AUTO_ROWS if str(batch_size).startswith('auto') else int(batch_size)
    self._seed = seed

  @property
  def eot_token_id(self) -> int | None:
    """The token that ends a text."""
    return self._lm.tokenizer.end_id

  @property
  def prefix_token_id(self) -> int:
    """The token that replaces an empty context.

    Raises ValueError when the tokenizer has none.
    """
    tokenizer = self._lm.tokenizer
    token = tokenizer.end_id if tokenizer.bos_id is None else tokenizer.bos_id
    if token is None:
      raise ValueError(
        f'{self._name}: the tokenizer names no bos and no eos token to stand for an empty context'
      )
    return token

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **unused_kwargs: Any
  ) -> list[int]:
    """Returns the tokens of a text, by default with the tokenizer's prefix of a prompt."""
    tokenizer = self._lm.tokenizer
    return (
      tokenizer.encode(string) if add_special_tokens is False else tokenizer.encode_prompt(string)
    )

  @property
  def tokenizer_name(self) -> str:
    """Returns a name for lm-eval's cache of requests."""
    return self._name.replace('/', '__')

  def chat_template(self, chat_template: bool | str = False) -> str:
    """Returns the text of the template, for the results."""
    return (chat_template and self._lm.tokenizer.chat_template) or ''

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """Returns a chat as text, its last message left open if no answer is to begin.

    Raises ValueError.
    """
    return self._lm.tokenizer.render_chat(chat_history, add_generation_prompt)

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Returns the log-probability of each continuation, and whether it is the greedy one.

    The requests are pairs (context, continuation), the log-probabilities are in nats, and the
    greedy continuation is the one that greedy decoding writes.
    """
    answers = []
    for _, of_task in itertools.groupby(requests, key=lambda request: request.task_name):
      answers += super().loglikelihood(list(of_task), disable_tqdm)
    return answers

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Returns the log-probability of each text in nats.

    A text that is longer than the context is scored window by window.
    """
    windows, owners = [], []
    for i, request in enumerate(requests):
      tokens = self.tok_encode(request.args[0])
      for window in lm_eval_utils.get_rolling_token_windows(
        tokens, self.prefix_token_id, self.max_length, context_len=1
      ):
        windows.append((None, *lm_eval_utils.make_disjoint_window(window)))
        owners.append(i)
    sums = [0.0] * len(requests)
    for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
      sums[i] += logprob
    for request, logprob in zip(requests, sums, strict=True):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, logprob)
    return sums

  def _loglikelihood_tokens(
    self,
    requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
    **unused_kwargs: Any,
  ) -> list[tuple[float, bool]]:
    """Returns the answers to tokenised requests, as `loglikelihood` does.

    A request holds the texts, the tokens of the context and the tokens of the continuation.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for i, (_, context, continuation) in enumerate(requests):
      room = max(1, self.max_length + 1 - len(continuation))  # The last token is never read.
      by_context.setdefault(tuple(context[-room:]), []).append(i)
    sizes = [len(continuation) for _, _, continuation in requests]
    rows = [
      (context, row) for context, members in by_context.items() for row in _rows(members, sizes)
    ]
    options = [[requests[i][2] for i in row] for _, row in rows]
    with console.progress('score', len(requests), 'continuations') as advance:
      scores = self._lm.score(
        [context for context, _ in rows], options, batch_size=self.batch_size, advance=advance
      )
    answers = [(0.0, True)] * len(requests)
    for (_, row), of_row in zip(rows, scores, strict=True):
      for i, score in zip(row, of_row, strict=True):
        answers[i] = float(score.logprobs.sum()), bool(score.greedy.all())
        texts = requests[i][0]
        if texts is not None:  # A window of a longer text is not one of lm-eval's requests.
          self.cache_hook.add_partial('loglikelihood', texts, answers[i])
    return answers

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """Returns the text that the model writes after each context, up to its first stop string.

    Raises ValueError when a generation argument is unknown, or leaves no room for the context.
    """
    answers = []
    for (_, kwargs), of_task in itertools.groupby(
      requests, key=lambda request: (request.task_name, request.args[1])
    ):
      group, decoding = list(of_task), _decoding(kwargs)
      room = self.max_length - decoding['max_new_tokens']
      if room < 1:
        raise ValueError(
          f'max_gen_toks: {decoding["max_new_tokens"]} leaves no room for a prompt in the context'
          f' of {self.max_length}; give fewer with --gen_kwargs'
        )
      prompts = [self.tok_encode(request.args[0])[-room:] for request in group]
      with console.progress('generate', len(prompts), 'answers') as advance:
        completions = self._lm.generate(
          prompts, **decoding, seed=self._seed, num_slots=self.batch_size, advance=advance
        )
      for request, [completion] in zip(group, completions, strict=True):
        answers.append(completion.text)
        self.cache_hook.add_partial('generate_until', request.args, completion.text)
    return answers


def _rows(members: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
  """Groups the continuations of a context into rows of at most _ROW_TOKENS tokens.

  A row holds at least one continuation.
  """
  rows, left = [], 0
  for i in members:
    if not rows or sizes[i] > left:
      rows.append([])
      left = _ROW_TOKENS
    rows[-1].append(i)
    left -= sizes[i]
  return rows


def _decoding(kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a task's generation arguments as arguments of LM.generate.

  Raises ValueError for those that LM.generate lacks.
  """
  given = dict(kwargs)
  until = given.pop('until', None) or []
  limits = [given.pop(name) for name in _LIMITS if name in given]
  do_sample = given.pop('do_sample', None)
  temperature = float(given.pop('temperature', 1.0 if do_sample else 0.0))
  decoding = {
    'stop': [string for string in ([until] if isinstance(until, str) else until) if string],
    'max_new_tokens': int(limits[0]) if limits else MAX_NEW_TOKENS,
    'temperature': 0.0 if do_sample is False else temperature,
    'top_k': int(given.pop('top_k', 0)),
    'top_p': float(given.pop('top_p', 1.0)),
  }
  if given:
    known = ', '.join(('until', *_LIMITS, 'do_sample', 'temperature', 'top_k', 'top_p'))
    raise ValueError(f'generation_kwargs: {", ".join(given)}: not supported; what is: {known}')
  return decoding


@functools.lru_cache(maxsize=1)
def find_tasks(tasks: tuple[str, ...], include: str = '') -> lm_eval_tasks.TaskManager:
  """Returns an index of lm-eval's tasks and of those in the directory `include`.

  All of `tasks` are in the index.

  Raises:
    FileNotFoundError: the directory does not exist.
    ValueError: a task is unknown.
  """
  if include and not os.path.isdir(include):
    raise FileNotFoundError(f'{include}: no such directory of task files')
  manager = lm_eval_tasks.TaskManager(include_path=include or None)
  if unknown := [name for name in tasks if name not in manager.all_tasks]:
    raise ValueError(
      f'lm-eval: {", ".join(unknown)}: no such task; `python -m imm_jax.harness ls tasks` lists its'
      ' own'
    )
  return manager


def evaluate(
  lm: LM, tasks: Sequence[str], include: str = '', batch_size: int = AUTO_ROWS
) -> dict[str, Any]:
  """Evaluates a model on lm-eval's tasks; returns the findings as lm-eval's simple_evaluate does.

  `results` in them is {task: {metric: value}}.

  Args:
    lm: a model with sharding.SAMPLE as its rules.
    tasks: names of tasks or groups.
    include: directory with more task files; '' for none.
    batch_size: rows computed at once.

  Raises:
    FileNotFoundError: the directory does not exist.
    ValueError: a task is unknown.
  """
  manager = find_tasks(tuple(tasks), include)
  model = HarnessLM(lm, batch_size=batch_size)
  return cast(
    Any, simple_evaluate(model, tasks=list(tasks), task_manager=manager, log_samples=False)
  )


def table(results: Mapping[str, Any]) -> str:
  """Returns lm-eval's own table of its results."""
  return lm_eval_utils.make_table(results)


def main() -> None:
  """Runs lm-eval's command with the model `imm_jax`."""
  register_model('imm_jax')(HarnessLM)
  cli_evaluate()


if __name__ == '__main__':
  main()
