"""Libraries that are not installed: what needs them says so in one line, and a run goes on without its report."""

import sys

from imm_jax import extras
import pytest
from tests.cli.test_cli import fails, imm, SMALL, TINY  # noqa: F401 - fixtures
from tests.reports.test_compare import make_run


@pytest.fixture
def without(monkeypatch):
  """Returns a function that makes a library look as if it were not installed."""

  def block(name):
    for loaded in [module for module in sys.modules if module.split('.')[0] == name]:
      monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)

  return block


def test_require():
  extras.require('here', 'report', 'json', 'sys')
  with pytest.raises(ValueError, match=r"^here: no_such is not installed; pip install 'imm_jax\[report\]'$"):
    extras.require('here', 'report', 'json', 'no_such')


def test_a_report_wants_matplotlib(without, fails, tmp_path):  # noqa: F811
  without('matplotlib')
  line = fails('report', make_run(tmp_path / 'run'))
  assert line == "imm: report: matplotlib is not installed; pip install 'imm_jax[report]'"


def test_a_run_goes_on_without_its_report_and_says_so_once(without, imm, tmp_path):  # noqa: F811
  without('matplotlib')
  code, out, errors = imm('run', TINY, *SMALL, f'--workdir={tmp_path}/run')
  assert code == 0 and 'round 1 merged' in out
  assert errors.count('report.html is not written: report: matplotlib is not installed') == 1
  assert (tmp_path / 'run' / 'summary.json').exists() and 'report.html' not in out


def test_an_analysis_wants_sacrebleu(without, fails, tmp_path):  # noqa: F811
  without('sacrebleu')
  line = fails('analyze', f'--workdir={make_run(tmp_path / "run")}')
  assert line == "imm: imm analyze: sacrebleu is not installed; pip install 'imm_jax[report]'"


def test_a_gguf_file_wants_gguf(without, fails, tmp_path):  # noqa: F811
  without('gguf')
  (tmp_path / 'model.gguf').write_bytes(b'GGUF')
  line = fails('convert', tmp_path / 'model.gguf', tmp_path / 'out')
  assert line == f"imm: {tmp_path}/model.gguf: gguf is not installed; pip install 'imm_jax[gguf]'"
