"""METHODS, the one list of the merge methods.

The command's help, recipes, the run loop and the docs read it. A method is an equation for one
tensor, in float32: theta_0 is the base, theta_i the models, delta_i = theta_i - theta_0. The
equations are the docstrings of the functions in averages.py, task_vectors.py and spherical.py.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

import jax

from imm_jax.merging import averages, sparsify, spherical, task_vectors
from imm_jax.merging.pieces import Piece

RANGES = {  # the least and the most of those parameters that have one
  'density': (0, 1),
  'drop_rate': (0, 0.999),
  'epsilon': (0, 1),
  'gamma': (0, 1),
  'select_topk': (0, 1),
  't': (0, 1),
  'a': (0, 1),
}
FLAGS = (  # these parameters are True or False, for all tensors
  'normalize',
  'normalize_weights',
  'rescale',
  'nuslerp_flatten',
  'nuslerp_row_wise',
  'filter_wise',
  'mergekit_compat',
)


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of METHODS: what a method asks of a tensor, does with a piece of it, and takes."""

  apply: Callable[[Piece, Any], jax.Array]  # (piece, stats) -> the merged piece, float32
  reference: str
  base: Literal['required', 'optional', 'none'] = 'required'
  # Parameters with their defaults; None: must be given.
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  num_models: tuple[int, int | None] = (1, None)  # at least, at most; the base not counted
  # piece -> what it asks of the whole tensor, a tree of questions (pieces.py); None: nothing.
  reduce: Callable[[Piece], Any] | None = None
  # The smallest part of a tensor that apply can be given.
  pieces: Literal['elements', 'rows', 'whole'] = 'elements'
  random: bool = False  # draws masks, and needs a key
  drops: bool = False  # leaves out a part of a task vector
  # The parameter that the weight of tuned sets; '': none, and the method takes no alpha.
  alpha: Literal['', 'weight', 't', 'lambda', 'a'] = ''

  @property
  def in_pieces(self) -> bool:
    """Whether a tensor can be merged piece by piece."""
    return self.pieces != 'whole'

  @property
  def elementwise(self) -> bool:
    """Whether no element of the result depends on another."""
    return self.pieces == 'elements' and self.reduce is None

  def with_alpha(
    self,
    base: Any,
    tuned: Sequence[Any],
    alpha: Any,
  ) -> tuple[Any, list[Any], dict[str, Any]]:
    """Returns the (base, models, parameters) that merge tuned models at the weight alpha.

    0 is base, 1 (the mean of) tuned.
    """
    n = len(tuned)
    if self.alpha == 'weight':
      return None, [base, *tuned], {'weight': [1 - alpha, *[alpha / n] * n]}
    return base, list(tuned), {self.alpha: alpha, 'weight': [1 / n] * n}


_DELTAS = {'weight': None, 'lambda': 1.0, 'normalize': False}


def _trimmed(reference: str, ask: Any, keep: Any, elect: bool, **parameters: Any) -> Method:
  """Returns a method whose masks are cut by magnitude; ask, keep: a pair of sparsify."""
  return Method(
    functools.partial(task_vectors.trim, keep=keep, elect=elect),
    reference,
    parameters={**_DELTAS, 'density': 1.0, **parameters},
    reduce=functools.partial(task_vectors.ask_cuts, ask=ask),
    drops=True,
    alpha='lambda',
  )


def _dropped(reference: str, keep: Any, elect: bool, **parameters: Any) -> Method:
  """Returns a method whose masks are drawn by sparsify.keep_random or keep_by_rank."""
  return Method(
    functools.partial(task_vectors.drop, elect=elect),
    reference,
    parameters={**_DELTAS, 'density': 1.0, **parameters, 'rescale': True},
    reduce=functools.partial(task_vectors.draw_masks, keep=keep),
    pieces='rows' if keep is sparsify.keep_by_rank else 'elements',
    random=True,
    drops=True,
    alpha='lambda',
  )


_TIES = 'https://arxiv.org/abs/2306.01708'
_DARE = 'https://arxiv.org/abs/2311.03099'
_DELLA = 'https://arxiv.org/abs/2406.11617'
_CRUMBS = 'https://arxiv.org/abs/2312.06795'
_KIT = 'https://github.com/arcee-ai/mergekit/blob/v0.1.5/docs/merge_methods.md'

METHODS: dict[str, Method] = {
  'linear': Method(
    averages.linear,
    'https://arxiv.org/abs/2203.05482',
    base='none',
    parameters={'weight': None, 'normalize': True},
    alpha='weight',
  ),
  'task_arithmetic': Method(
    task_vectors.task_arithmetic,
    'https://arxiv.org/abs/2212.04089',
    parameters=_DELTAS,
    alpha='lambda',
  ),
  'slerp': Method(
    spherical.slerp,
    _KIT,
    parameters={'t': None},
    num_models=(1, 1),
    reduce=spherical.ask_angle,
    alpha='t',
  ),
  'nuslerp': Method(
    spherical.nuslerp,
    _KIT,
    base='optional',
    parameters={'weight': None, 'nuslerp_flatten': True, 'nuslerp_row_wise': False},
    num_models=(2, 2),
    pieces='whole',
    alpha='weight',
  ),
  'multislerp': Method(
    spherical.multislerp,
    _KIT,
    base='optional',
    parameters={'weight': 1.0, 'normalize_weights': True},
    num_models=(2, None),
    pieces='whole',
    alpha='weight',
  ),
  'karcher': Method(
    spherical.karcher,
    _KIT,
    base='none',
    parameters={'max_iter': 10, 'tol': 1e-5},
    num_models=(2, None),
    pieces='whole',
  ),
  'ties': _trimmed(_TIES, sparsify.ask_largest, sparsify.keep_largest, elect=True, normalize=True),
  'dare': Method(
    task_vectors.dare,
    _DARE,
    parameters={**_DELTAS, 'drop_rate': 0.2},
    random=True,
    drops=True,
    alpha='lambda',
  ),
  'dare_linear': _dropped(_DARE, sparsify.keep_random, elect=False),
  'dare_ties': _dropped(_DARE, sparsify.keep_random, elect=True),
  'della': _dropped(_DELLA, sparsify.keep_by_rank, elect=True, normalize=True, epsilon=0.15),
  'della_linear': _dropped(_DELLA, sparsify.keep_by_rank, elect=False, epsilon=0.15),
  'breadcrumbs': _trimmed(_CRUMBS, sparsify.ask_band, sparsify.keep_band, elect=False, gamma=0.01),
  'breadcrumbs_ties': _trimmed(
    _CRUMBS,
    sparsify.ask_band,
    sparsify.keep_band,
    elect=True,
    gamma=0.01,
  ),
  'model_stock': Method(
    averages.model_stock,
    'https://arxiv.org/abs/2403.19522',
    parameters={'filter_wise': False, 'mergekit_compat': False},
    num_models=(2, None),
    pieces='whole',
  ),
  'sce': Method(
    averages.sce,
    'https://arxiv.org/abs/2408.07990',
    parameters={'select_topk': 1.0, 'mergekit_compat': False},
    pieces='whole',
    drops=True,
  ),
  'passthrough': Method(
    averages.passthrough,
    _KIT,
    base='none',
    parameters={'scale': 1.0},
    num_models=(1, 1),
  ),
  'lines': Method(
    task_vectors.lines,
    'https://arxiv.org/abs/2410.17146',
    parameters={'weight': None, 'a': None, 'depth': (0.0, 1.0)},
    alpha='a',
  ),
  'fisher': Method(
    averages.fisher,
    'https://arxiv.org/abs/2111.09832',
    base='none',
    parameters={'weight': None, 'fisher': None},
    num_models=(2, None),
  ),
}
