"""Libraries that only some commands need: the package's extras install them."""

import importlib.util


def require(where: str, extra: str, *libraries: str) -> None:
  """Raises ValueError when one of the libraries, by the name it is imported by, is not installed.

  Args:
    where: what needs them: the beginning of the message.
    extra: the extra of this package that installs them.
    *libraries: their names.
  """
  for name in libraries:
    if importlib.util.find_spec(name) is None:
      raise ValueError(f"{where}: {name} is not installed; pip install 'imm_jax[{extra}]'")
