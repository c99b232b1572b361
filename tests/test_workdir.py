"""A workdir belongs to one config, and a round is done when its row is there."""

import json

import pytest

from imm_jax.workdir import AT_ROUND, Workdir


def finish(workdir, round_):
  workdir.write_lines(round_, 'samples.jsonl', [{'text': 'a\nb'}])
  workdir.finish({'round': round_})


CONFIG = {'seed': 0, 'num_rounds': 2, 'merge': {'alpha': 0.5}}


def test_it_opens_again_with_the_same_config_or_more_rounds(tmp_path):
  workdir = Workdir(str(tmp_path / 'run'))
  assert workdir.open(CONFIG | {'seed': 9}) == 0
  assert workdir.open(CONFIG) == 0  # no round is done: nothing is lost by another config
  finish(workdir, 0)
  assert workdir.open(CONFIG | {'num_rounds': 5}) == 1
  with open(tmp_path / 'run' / 'config.json') as file:
    assert json.load(file) == CONFIG | {'num_rounds': 5}


def test_the_number_of_rounds_may_change_down_to_those_that_are_done(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in (0, 1):
    finish(workdir, round_)
  for num_rounds in (9, 1, 2):
    assert workdir.open(CONFIG | {'num_rounds': num_rounds}) == 2
  with pytest.raises(ValueError, match='config.num_rounds was 2 and is 0'):
    workdir.open(CONFIG | {'num_rounds': 0})


def test_a_directory_of_something_else_is_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  for path in (tmp_path, tmp_path / 'thesis.tex'):
    with pytest.raises(ValueError, match=f'{path}: is not the directory of a run'):
      Workdir(str(path)).open(CONFIG)
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_every_difference_is_named(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  finish(workdir, 0)
  with pytest.raises(ValueError) as error:
    workdir.open({'seed': 1, 'num_rounds': 2, 'merge': {'alpha': 0.5, 'method': 'dare'}})
  assert 'config.seed was 0 and is 1' in str(error.value)
  assert "config.merge.method was None and is 'dare'" in str(error.value)
  with open(tmp_path / 'config.json') as file:
    assert json.load(file) == CONFIG


def test_rounds_count_up_to_the_first_gap(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in (0, 1, 3):
    finish(workdir, round_)
  assert workdir.open(CONFIG) == 2
  assert [row['round'] for row in workdir.finished()] == [0, 1]


def test_a_summary_that_was_cut_off_is_written_again_and_damage_is_named(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  finish(workdir, 0)
  (tmp_path / 'summary.json').unlink()
  workdir.open(CONFIG)
  assert json.loads((tmp_path / 'summary.json').read_text()) == {'rounds': [{'round': 0}]}
  (tmp_path / 'rounds' / '0000' / 'metrics.json').write_text('{"round')
  with pytest.raises(ValueError, match='metrics.json: is damaged'):
    workdir.open(CONFIG)


@pytest.mark.parametrize('path, parts', [('runs/a@2', ('runs/a', '2')), ('a@b@10', ('a@b', '10')), ('runs/a', None)])
def test_a_round_is_named_by_workdir_and_number(path, parts):
  match = AT_ROUND.fullmatch(path)
  assert (match and match.groups()) == parts
