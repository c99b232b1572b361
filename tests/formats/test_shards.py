"""Weights on disk: what is written comes back, bit for bit, in as many files as asked; damage is one line."""

import json

from imm_jax.formats import shards
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

TENSORS = {
  'f32': np.arange(12, dtype=np.float32).reshape(3, 4),
  'bf16': np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16),
  'f16': np.ones((2, 2), np.float16),
  'i64': np.asarray([1, -2], np.int64),
  'bool': np.asarray([True, False]),
  'scalar': np.float32(3.5).reshape(()),
}
SPECS = {name: shards.Spec(x.dtype, x.shape) for name, x in TENSORS.items()}


@pytest.mark.parametrize('max_shard_bytes, num_files', [(1e9, 1), (60, 2), (1, 6)])
def test_what_is_written_comes_back(tmp_path, max_shard_bytes, num_files):
  fetched = []

  def fetch(name):
    fetched.append(name)
    return [TENSORS[name][:1], TENSORS[name][1:]] if TENSORS[name].ndim else [TENSORS[name]]

  shards.write_tensors(tmp_path, SPECS, fetch, max_shard_bytes=max_shard_bytes)
  assert fetched == list(TENSORS)
  files = sorted(tmp_path.glob('*.safetensors'))
  assert len(files) == num_files and (tmp_path / 'model.safetensors.index.json').exists() == (num_files > 1)
  tensors = shards.open_tensors(tmp_path)
  theirs = {name: x for file in files for name, x in safetensors.numpy.load_file(file).items()}
  for name, x in TENSORS.items():
    assert tensors[name].spec() == SPECS[name]
    tensors[name].release()
    for back in (tensors[name].array(), theirs[name]):
      assert back.dtype == x.dtype and back.tobytes() == x.tobytes()


def test_a_process_that_does_not_write_fetches(tmp_path):
  fetched = []
  shards.write_tensors(tmp_path, SPECS, lambda name: fetched.append(name) or [TENSORS[name]], writes=False)
  assert fetched == list(TENSORS) and not list(tmp_path.iterdir())


def test_damage_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='has no model.safetensors and no model.safetensors.index.json'):
    shards.open_tensors(tmp_path)
  shards.write_tensors(tmp_path, SPECS, lambda name: [TENSORS[name]], max_shard_bytes=60)
  first, second = sorted(tmp_path.glob('*.safetensors'))
  second.write_bytes(second.read_bytes()[:-1])
  with pytest.raises(ValueError, match=f'{second.name}: not a whole safetensors file'):
    shards.open_tensors(tmp_path)
  first.unlink()
  with pytest.raises(FileNotFoundError, match=f'names files that are not there: {first.name}'):
    shards.open_tensors(tmp_path)
  (tmp_path / 'model.safetensors.index.json').write_text('{')
  with pytest.raises(ValueError, match='model.safetensors.index.json: not JSON'):
    shards.open_tensors(tmp_path)


def test_json_files(tmp_path):
  shards.write_json(tmp_path / 'config.json', {'a': [1]})
  assert shards.read_json(tmp_path / 'config.json') == {'a': [1]} == json.loads((tmp_path / 'config.json').read_text())
  with pytest.raises(FileNotFoundError, match='has no other.json: not a Hugging Face model directory'):
    shards.read_json(tmp_path / 'other.json')
