"""What a merge method sees of a tensor, and what it may ask of all of it.

A method has two functions (see methods.Method). reduce(piece) asks: it returns a tree of Sum, TopK
and Local. What is answered, `stats`, is that tree with an answer in place of each question;
apply(piece, stats) is the merged piece.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from imm_jax.merging import largest

Tensors = Sequence[jax.Array]
# These parameters are given for each model.
PER_MODEL = ('weight', 'density', 'drop_rate', 'epsilon', 'gamma', 'scale', 'fisher')


class Piece(NamedTuple):
  """A tensor, or a piece of it, as it is in each model."""

  base: Any  # float32, None where the method (with these parameters) has no base
  models: Tensors  # float32
  parameters: Mapping[str, Any]  # numbers and flags; for those in PER_MODEL a number a model
  uniform: Any  # random numbers in [0, 1), a tensor a model; None: the method draws nothing
  size: Any  # number of elements of the whole tensor

  @property
  def deltas(self) -> list[jax.Array]:
    """The task vectors delta_i = theta_i - theta_0."""
    return [model - self.base for model in self.models]

  def of_model(self, i: int) -> dict[str, Any]:
    """Returns the parameters of model i."""
    p = self.parameters
    return {name: value[i] if name in PER_MODEL else value for name, value in p.items()}


class Sum(NamedTuple):
  """Asks for the sum over all pieces; the answer is [] float32."""

  value: Any  # [] float32, the piece's part


class TopK(NamedTuple):
  """Asks which scores are the k largest of the whole tensor; the answer is a largest.Cut."""

  scores: Any  # non-negative float32, of the piece's shape
  k: Any  # the same number from every piece


class Local(NamedTuple):
  """Hands a value, for instance a mask, from reduce on to apply of the same piece."""

  value: Any


def answer(asked: Any) -> Any:
  """Returns the stats of a piece that is the whole tensor, from what it asked."""

  def one(question):
    if isinstance(question, TopK):
      return largest.find_cut(question.scores, question.k)
    return question.value

  return jax.tree.map(one, asked, is_leaf=_is_question)


def answer_pieces(asked: Sequence[Any], starts: Sequence[int], size: int) -> list[Any]:
  """Returns the stats of each piece, on the host, from what each asked.

  Args:
    asked: what reduce returned for each piece.
    starts: index of the first element of each piece; the pieces follow one another.
    size: number of elements of the tensor: what the last piece has beyond them is padding.
  """
  _, structure = jax.tree.flatten(asked[0], is_leaf=_is_question)
  by_question = zip(*(jax.tree.leaves(one, is_leaf=_is_question) for one in asked), strict=True)
  answers = [_answer_one(questions, starts, size) for questions in by_question]
  return [structure.unflatten([of_pieces[i] for of_pieces in answers]) for i in range(len(starts))]


def _answer_one(questions: Sequence[Any], starts: Sequence[int], size: int) -> list[Any]:
  """Returns the answers, one a piece, to a question that every piece asked."""
  if isinstance(questions[0], Local):
    return [question.value for question in questions]
  if isinstance(questions[0], Sum):
    total = np.sum([question.value for question in questions], dtype=np.float64)
    return [np.float32(total)] * len(starts)
  scores = np.concatenate([np.asarray(question.scores).reshape(-1) for question in questions])
  cut = largest.find_cut_on_host(scores[:size], int(questions[0].k))
  return [cut.after(start) for start in starts]


def _is_question(node: Any) -> bool:
  return isinstance(node, Sum | TopK | Local)
