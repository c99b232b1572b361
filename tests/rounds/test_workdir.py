"""A workdir belongs to one config, a round is done when its manifest is there, and damage is never used."""

import json

from imm_jax.formats import at_round
from imm_jax.rounds.workdir import Workdir
import pytest


def finish(workdir, round_):
  workdir.write_lines(round_, 'samples.jsonl', [{'text': 'a\nb'}])
  workdir.finish({'round': round_})


CONFIG = {'seed': 0, 'num_rounds': 2, 'merge': {'alpha': 0.5}}


def test_it_opens_again_with_the_same_config_or_more_rounds(tmp_path):
  workdir = Workdir(str(tmp_path / 'run'))
  workdir.open(CONFIG | {'seed': 9})
  workdir.open(CONFIG)  # no round is done: nothing is lost by another config
  finish(workdir, 0)
  assert workdir.open(CONFIG | {'num_rounds': 5}) == []
  assert len(workdir.finished()) == 1
  with open(tmp_path / 'run' / 'config.json') as file:
    assert json.load(file) == CONFIG | {'num_rounds': 5}


def test_the_number_of_rounds_may_change_down_to_those_that_are_done(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in (0, 1):
    finish(workdir, round_)
  for num_rounds in (9, 1, 2):
    workdir.open(CONFIG | {'num_rounds': num_rounds})
    assert len(workdir.finished()) == 2
  with pytest.raises(ValueError, match='config.num_rounds was 2 and is 0'):
    workdir.open(CONFIG | {'num_rounds': 0})


def test_another_mesh_may_go_on(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG | {'mesh': {'fsdp': 8, 'tensor': 1}})
  for round_ in (0, 1):
    finish(workdir, round_)
  watched = {'logger': 'module:Class', 'profile': {'num_steps': 2}}
  workdir.open(CONFIG | watched | {'mesh': {'fsdp': 2, 'tensor': 4}})
  with pytest.raises(ValueError, match='config.merge.alpha was 0.5 and is 1'):
    workdir.open(CONFIG | {'mesh': {'fsdp': 2, 'tensor': 4}, 'merge': {'alpha': 1}})


def test_what_round_0_does_not_depend_on_may_change_until_round_1_is_done(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  finish(workdir, 0)
  workdir.part(1, 'sample', lambda: 'under alpha = 0.5', print)
  [line] = workdir.open(CONFIG | {'merge': {'alpha': 1.0}})
  assert line == 'config.merge.alpha was 0.5 and is 1.0: what round 1 had done is discarded'
  assert len(workdir.finished()) == 1
  assert workdir.part(1, 'sample', lambda: 'under alpha = 1', print) == 'under alpha = 1'
  with pytest.raises(ValueError, match='config.seed was 0 and is 1; choose another workdir'):
    workdir.open(CONFIG | {'seed': 1, 'merge': {'alpha': 1.0}})
  finish(workdir, 1)
  with pytest.raises(ValueError, match='config.merge.alpha was 1.0 and is 0.5'):
    workdir.open(CONFIG)


def test_a_text_that_round_0_was_measured_on_may_not_change(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG | {'evaluate': {'text_source': 'one.txt', 'tuned': False}})
  finish(workdir, 0)
  workdir.open(CONFIG | {'evaluate': {'text_source': 'one.txt', 'tuned': True}})
  with pytest.raises(ValueError, match='config.evaluate.text_source was'):
    workdir.open(CONFIG | {'evaluate': {'text_source': 'other.txt', 'tuned': True}})


def test_parts_of_a_round_under_another_config_are_not_taken(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  workdir.part(0, 'evaluate', lambda: 'of seed 0', print)
  workdir.open(CONFIG | {'num_rounds': 9})
  assert workdir.part(0, 'evaluate', lambda: 'again', print) == 'of seed 0'
  workdir.open(CONFIG | {'seed': 1})
  assert workdir.part(0, 'evaluate', lambda: 'of seed 1', print) == 'of seed 1'


def test_a_directory_of_something_else_is_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  for path in (tmp_path, tmp_path / 'thesis.tex'):
    with pytest.raises(ValueError, match=f'{path}: is not the directory of a run'):
      Workdir(str(path)).open(CONFIG)
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_differences_are_named_up_to_five_and_counted(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in (0, 1):
    finish(workdir, round_)
  with pytest.raises(ValueError) as error:
    workdir.open({'seed': 1, 'num_rounds': 2, 'merge': {'alpha': 0.5, 'method': 'dare'}})
  assert 'config.seed was 0 and is 1' in str(error.value)
  assert "config.merge.method was None and is 'dare'" in str(error.value)
  with pytest.raises(ValueError, match='config.k04 was None and is 4; and 16 more; choose another workdir'):
    workdir.open(CONFIG | {f'k{i:02}': i for i in range(21)})
  with open(tmp_path / 'config.json') as file:
    assert json.load(file) == CONFIG


def test_rounds_count_up_to_the_first_gap(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in (0, 1, 3):
    finish(workdir, round_)
  workdir.open(CONFIG)
  assert [row['round'] for row in workdir.finished()] == [0, 1]


def test_a_summary_that_was_cut_off_is_written_again(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  finish(workdir, 0)
  (tmp_path / 'summary.json').unlink()
  workdir.open(CONFIG)
  assert json.loads((tmp_path / 'summary.json').read_text()) == {'rounds': [{'round': 0}]}


def cut(file):
  file.write_bytes(file.read_bytes()[:-3])


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


@pytest.mark.parametrize('damage', [cut, flip])
@pytest.mark.parametrize('name', ['metrics.json', 'samples.jsonl', 'manifest.json'])
def test_a_damaged_newest_round_is_set_aside_and_an_earlier_one_refused(tmp_path, damage, name):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in range(3):
    finish(workdir, round_)
  damage(tmp_path / 'rounds' / '0002' / name)
  [line] = workdir.open(CONFIG)
  assert name in line and line.endswith('; its round is done again')
  assert len(workdir.finished()) == 2 and (tmp_path / 'rounds' / '0002.damaged' / 'samples.jsonl').exists()
  damage(tmp_path / 'rounds' / '0000' / name)
  with pytest.raises(ValueError, match=f'{name}.*later rounds build on it'):
    workdir.open(CONFIG)


def test_parts_that_a_done_round_left_are_removed(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  finish(workdir, 0)
  (tmp_path / 'rounds' / '0000' / 'steps' / '3').mkdir(parents=True)
  assert workdir.open(CONFIG) == [] and len(workdir.finished()) == 1
  assert not (tmp_path / 'rounds' / '0000' / 'steps').exists()


def test_a_file_that_is_missing_is_named_and_one_of_others_does_no_harm(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in range(2):
    finish(workdir, round_)
  (tmp_path / 'rounds' / '0001' / 'notes').touch()
  assert workdir.open(CONFIG) == []
  (tmp_path / 'rounds' / '0001' / 'samples.jsonl').unlink()
  assert 'samples.jsonl: is missing' in workdir.open(CONFIG)[0]


def test_an_analysis_belongs_to_the_summary_and_to_no_manifest(tmp_path):
  workdir = Workdir(str(tmp_path))
  workdir.open(CONFIG)
  for round_ in range(2):
    finish(workdir, round_)
  workdir.check()
  assert workdir.read_config() == CONFIG
  workdir.write_analyses([{'found': 0}, {'found': 1}])
  (tmp_path / 'rounds' / '0001' / 'analysis.json.tmp').touch()  # of a process that was killed
  assert workdir.open(CONFIG) == []
  finish(workdir, 2)
  rows = json.loads((tmp_path / 'summary.json').read_text())['rounds']
  assert rows == [{'round': 0, 'analysis': {'found': 0}}, {'round': 1, 'analysis': {'found': 1}}, {'round': 2}]
  (tmp_path / 'rounds' / '0002' / 'samples.jsonl').unlink()
  with pytest.raises(ValueError, match='samples.jsonl: is missing'):
    workdir.check()
  with pytest.raises(ValueError, match='is not the directory of a run'):
    Workdir(str(tmp_path / 'rounds')).check()
  with pytest.raises(FileNotFoundError, match='nowhere: no such directory'):
    Workdir(str(tmp_path / 'nowhere')).check()


@pytest.mark.parametrize('damage', [cut, flip])
def test_a_part_is_done_once_unless_it_is_damaged(tmp_path, damage):
  workdir, lines, calls = Workdir(str(tmp_path)), [], []

  def part():
    return workdir.part(1, 'sample-sum-00000', lambda: calls.append(1) or [{'text': 'é'}], lines.append)

  assert part() == part() == [{'text': 'é'}]
  assert calls == [1] and not lines
  damage(tmp_path / 'rounds' / '0001' / 'parts' / 'sample-sum-00000.json')
  assert part() == [{'text': 'é'}]
  assert calls == [1, 1] and 'sample-sum-00000.json: is damaged' in lines[0]
  finish(workdir, 1)
  assert not (tmp_path / 'rounds' / '0001' / 'parts').exists()


@pytest.mark.parametrize('path, parts', [('runs/a@2', ('runs/a', 2)), ('a@b@10', ('a@b', 10)), ('runs/a', None)])
def test_a_round_is_named_by_workdir_and_number(path, parts):
  assert at_round.parse(path) == parts


def test_a_model_is_a_path_or_a_round_of_a_run(tmp_path):
  Workdir(tmp_path / 'run').open(CONFIG)
  assert at_round.source_of(f'{tmp_path}/run@7') == f'{tmp_path}/run/model'
  assert at_round.source_of(tmp_path / 'model.gguf') == f'{tmp_path}/model.gguf'
  with pytest.raises(ValueError, match='run: is a run; name one of its rounds, such as .*run@0'):
    at_round.source_of(tmp_path / 'run')
  with pytest.raises(FileNotFoundError, match='nowhere@1: there is no run in '):
    at_round.source_of(tmp_path / 'nowhere@1')
