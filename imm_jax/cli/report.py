"""`imm report`: writes the HTML page of a run, or of several side by side."""

import os

from imm_jax.cli.flags import Flags

_USAGE = (
  'WORKDIR [WORKDIR ...]: of one run, or of several; those with configs equal but for the seed'
  ' are one arm'
)


def main(flags: Flags) -> None:
  """Runs the command."""
  out = flags.string('out', '', 'File to write; default: report.html in the one WORKDIR.')
  figures = flags.string(
    'figures',
    '',
    'Directory to write the figures to as well, an SVG file each.',
  )
  paths = flags.parse(num_positional=None, usage=_USAGE)
  if not paths:
    raise ValueError('imm report: takes at least one WORKDIR')
  if len(paths) > 1 and not out.value:
    raise ValueError('--out: is missing; give the HTML file for a page of several runs')
  from imm_jax.reports import report

  if out.value:
    _write(out.value, report.page(paths))
  else:
    report.write(paths[0])
  if figures.value:
    os.makedirs(figures.value, exist_ok=True)
    for name, svg in report.figures(paths).items():
      _write(os.path.join(figures.value, f'{name}.svg'), svg)
  print(f'report: {out.value or os.path.join(paths[0], "report.html")}')


def _write(path: str, text: str) -> None:
  with open(path, 'w', encoding='utf-8') as file:
    file.write(text)
