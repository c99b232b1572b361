"""Recipes and merging on disk: mergekit's outputs, errors that name the key or the tensor, whole directories or none."""

import json
import shutil

from imm_jax import merging
from imm_jax.merging import largest, METHODS, pieces, recipe, stream, task_vectors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tests.conftest import ROOT
import yaml

GOLDEN = ROOT / 'tests' / 'golden' / 'merge'
SHARED = ROOT.parent / 'shared' / 'golden' / 'merge'
RECIPES = yaml.safe_load((GOLDEN / 'recipes.yml').read_text())
MANIFEST = json.loads((SHARED / 'manifest.json').read_text()) if SHARED.is_dir() else {'cases': []}
F32, BF16 = 8 * 2**-24, 2**-9  # of the largest input of a tensor


def load(file):
  return safetensors.numpy.load_file(file)


def write_model(path, tensors, config):
  path.mkdir(parents=True)
  safetensors.numpy.save_file(tensors, path / 'model.safetensors', metadata={'format': 'pt'})
  (path / 'config.json').write_text(json.dumps(config))
  (path / 'tokenizer.json').write_text('{}')


@pytest.fixture
def dirs(tmp_path, monkeypatch):
  """The golden models as directories base, a, b and c in the working directory."""
  config = json.loads((GOLDEN / 'config.json').read_text())
  for name in ('base', 'a', 'b', 'c'):
    write_model(tmp_path / name, load(GOLDEN / f'input_{name}.safetensors'), config)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def inputs():
  return {name: load(GOLDEN / f'input_{name}.safetensors') for name in ('base', 'a', 'b', 'c')}


def assert_close(merged, golden, models, tolerance):
  assert merged.keys() == golden.keys()
  for name, expected in golden.items():
    assert (merged[name].dtype, merged[name].shape) == (expected.dtype, expected.shape)
    largest = max(np.abs(model[name].astype(np.float32)).max() for model in models)
    error = np.abs(merged[name].astype(np.float32) - expected.astype(np.float32)).max()
    assert error <= tolerance * largest, (name, error / largest)


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_gives_what_mergekit_gives(dirs, name):
  (dirs / 'recipe.yml').write_text(yaml.safe_dump(RECIPES[name]))
  stream.merge_dirs(recipe.read('recipe.yml'), 'out')
  tolerance = BF16 if name == 'linear_bfloat16' else F32
  assert_close(
    load('out/model.safetensors'),
    load(GOLDEN / f'{name}.safetensors'),
    inputs().values(),
    tolerance,
  )


def case_of(entry):
  return f'{entry["set"]}-{entry["case"]}'


def shared_models(entry):
  return {name: load(SHARED / 'inputs' / f'{name}_{entry["in_dtype"]}.safetensors') for name in ('base', 'a', 'b')}


@pytest.mark.parametrize('entry', [entry for entry in MANIFEST['cases'] if 'masks' not in entry], ids=case_of)
def test_mergekits_recorded_merges(tmp_path, monkeypatch, entry):
  monkeypatch.chdir(tmp_path)
  models = shared_models(entry)
  for name, tensors in models.items():
    write_model(tmp_path / name, tensors, {})
  stream.merge_dirs(recipe.from_dict(entry['config']), 'out')
  golden = load(SHARED / entry.get('same_as', entry.get('file')))
  tolerance = BF16 if entry['set'] in ('mixed', 'bf16') else F32
  assert_close(load('out/model.safetensors'), golden, models.values(), tolerance)


@pytest.mark.parametrize('entry', [entry for entry in MANIFEST['cases'] if 'masks' in entry], ids=case_of)
def test_mergekits_recorded_merges_with_its_masks(entry):
  """Masks are given: random ones are its own, and of equal magnitudes it keeps others."""
  models = shared_models(entry)
  golden, masks = (
    load(SHARED / entry.get('same_as', entry.get('file'))),
    load(SHARED / entry['masks']),
  )
  settings = METHODS[entry['config']['merge_method']]
  given = [model['parameters'] for model in entry['config']['models']]
  p = {**settings.parameters, **{name: [own[name] for own in given] for name in given[0]}}
  elect = settings.apply.keywords['elect']

  @jax.jit
  def combine(base, tensors, keep):
    piece = pieces.Piece(base, tensors, p, None, base.size)
    if settings.random:
      return task_vectors.drop(piece, pieces.answer(task_vectors.ask_sizes(piece, keep)), elect=elect)
    return task_vectors.combine(piece, keep, elect=elect)

  merged = {}
  for name, expected in golden.items():
    base, *tensors = (jnp.asarray(models[model][name]).astype(jnp.float32) for model in ('base', 'a', 'b'))
    keep = [jnp.asarray(masks[f'{model}/{name}']).astype(bool) for model in ('a', 'b')]
    merged[name] = np.asarray(combine(base, tensors, keep).astype(expected.dtype))
  assert_close(merged, golden, models.values(), BF16 if entry['set'] == 'mixed' else F32)


# What a recipe may say.


LINEAR = {'merge_method': 'linear', 'models': [{'model': 'a', 'parameters': {'weight': 1}}]}
TIES = {
  'merge_method': 'ties',
  'base_model': 'base',
  'models': [{'model': 'a', 'parameters': {'weight': 1}}],
}


@pytest.mark.parametrize(
  'content, says',
  [
    (3, 'the recipe: is not a mapping'),
    ({'merge_metod': 'linear'}, 'merge_metod: no such key; did you mean merge_method'),
    (
      {**LINEAR, 'merge_method': 'lineer'},
      "merge_method: 'lineer' is unknown; did you mean linear",
    ),
    ({**LINEAR, 'slices': []}, 'models or slices: give one of them'),
    ({**LINEAR, 'models': []}, 'models: is not a list with something in it'),
    ({**LINEAR, 'models': [{'modle': 'a'}]}, r'models\[0\].modle: no such key; did you mean model'),
    (
      {**LINEAR, 'parameters': {'wieght': 1}},
      'parameters.wieght: linear has no such parameter here; did you mean weight',
    ),
    ({**LINEAR, 'parameters': {'density': 1}}, 'parameters.density: linear has no such parameter'),
    ({**TIES, 'density': 0.5}, '^density: no such key; it stands under parameters'),
    (
      {**TIES, 'models': [{'model': 'a', 'parameters': {'lambda': 1}}]},
      'parameters.lambda: .*it stands under the recipe',
    ),
    (
      {**TIES, 'models': [*TIES['models'], {'model': 'base', 'parameters': {'weight': 1}}]},
      'the base has none in ties',
    ),
    ({'merge_method': 'ties', 'models': TIES['models']}, 'ties: needs a base model'),
    (
      {**TIES, 'parameters': {'normalize': 'yes'}},
      "parameters.normalize: 'yes' is not true or false",
    ),
    ({**TIES, 'parameters': {'density': 30}}, r'parameters.density: 30 is not in \[0, 1\]'),
    ({**TIES, 'parameters': {'lambda': True}}, 'parameters.lambda: True is not a number'),
    (
      {**TIES, 'parameters': {'density': {'schedule': 'linear'}}},
      'a schedule stands for merge.alpha',
    ),
    ({**TIES, 'parameters': {'density': [{'filter': 3, 'value': 1}]}}, 'is not a list of'),
    ({**TIES, 'base_model': {'model': 'x'}}, 'base_model: .* is not a directory'),
    ({**TIES, 'merge_method': ['ties']}, r"merge_method: \['ties'\] is unknown"),
    (
      {'merge_method': 'linear', 'slices': [{'sources': [{'model': 'a', 'layer_range': 5}]}]},
      r'slices\[0\]: the sources must have one layer_range',
    ),
    ({**TIES, 'parameters': {'density': []}}, r'parameters.density: \[\] is not a number'),
    ({**LINEAR, 'tokenizer_source': 'union'}, "tokenizer_source: 'union' is not supported"),
    ({**LINEAR, 'dtype': 'int8'}, "dtype: 'int8' is not one of float32, bfloat16, float16"),
    (
      {'merge_method': 'slerp', 'base_model': 'base', 'models': [{'model': 'a'}, {'model': 'b'}]},
      'slerp: takes 1 models',
    ),
    (
      {'merge_method': 'linear', 'slices': [{'sources': [{'model': 'a', 'layer_range': [1, 2]}]}]},
      r'slices\[0\]: the sources must have one layer_range, from 0 on',
    ),
  ],
)
def test_a_wrong_recipe_names_the_key(content, says):
  with pytest.raises(ValueError, match=says):
    recipe.from_dict(content)


def test_an_exponent_without_a_point_is_a_number_in_parameters_only():
  """YAML 1.1 reads it as text, mergekit as a number; a model's name may look like one."""
  given = yaml.safe_load('{density: [1e-1, 5E-1], epsilon: [{filter: 1e5, value: 2.5e-1}, {value: 1e-2}]}')
  read = recipe.from_dict({**TIES, 'merge_method': 'della', 'base_model': '1e5', 'parameters': given})
  assert read.base == '1e5'
  assert read.parameters == {
    'density': [0.1, 0.5],
    'epsilon': [{'filter': '1e5', 'value': 0.25}, {'value': 0.01}],
  }
  with pytest.raises(ValueError, match="density: 'e5' is not a number"):
    recipe.from_dict({**TIES, 'parameters': {'density': 'e5'}})


def test_recipes_that_do_not_fit_the_models(dirs):
  with pytest.raises(ValueError, match=r"linear: parameter 'weight' is missing for a in "):
    stream.merge_dirs(
      recipe.from_dict({'merge_method': 'linear', 'models': [{'model': 'a'}, {'model': 'b'}]}),
      'out',
    )
  with pytest.raises(ValueError, match="slerp: parameter 't' is missing"):
    stream.merge_dirs(
      recipe.from_dict({'merge_method': 'slerp', 'base_model': 'base', 'models': [{'model': 'a'}]}),
      'out',
    )
  source = {'model': 'a', 'layer_range': [0, 2], 'parameters': {'weight': 1}}
  with pytest.raises(ValueError, match='slices: end at layer 2, and the models have 3'):
    stream.merge_dirs(recipe.from_dict({'merge_method': 'linear', 'slices': [{'sources': [source]}]}), 'out')
  weights = [
    {'model': 'a', 'parameters': {'weight': 1}},
    {'model': 'b', 'parameters': {'weight': -1}},
  ]
  for method in ('linear', 'multislerp'):
    with pytest.raises(ValueError, match=f'{method}: the weights add up to 0 in '):
      stream.merge_dirs(recipe.from_dict({'merge_method': method, 'models': weights}), 'out')
  with pytest.raises(FileNotFoundError, match='nowhere: no such directory'):
    stream.merge_dirs(recipe.from_flags('linear', 'base', ['nowhere'], 0.5, {}), 'out')
  with pytest.raises(FileNotFoundError, match='no.yml: no such recipe'):
    recipe.read('no.yml')
  (dirs / 'bad.yml').write_text('a: [')
  with pytest.raises(ValueError, match='bad.yml: not YAML'):
    recipe.read('bad.yml')
  assert sorted(path.name for path in dirs.iterdir()) == ['a', 'b', 'bad.yml', 'base', 'c']


# What it writes.


def test_files_of_the_base_are_kept_and_shards_are_indexed(dirs):
  stream.merge_dirs(recipe.from_flags('linear', 'base', ['a'], 0.5, {}), 'one')
  stream.merge_dirs(recipe.from_flags('linear', 'base', ['a'], 0.5, {}), 'many', max_shard_bytes=6000)
  assert (dirs / 'one' / 'config.json').read_bytes() == (dirs / 'base' / 'config.json').read_bytes()
  assert (dirs / 'one' / 'tokenizer.json').exists()
  index = json.loads((dirs / 'many' / 'model.safetensors.index.json').read_text())
  merged = {}
  for file in set(index['weight_map'].values()):
    merged |= load(dirs / 'many' / file)
  assert_close(merged, load('one/model.safetensors'), inputs().values(), 0)
  stream.merge_dirs(recipe.from_flags('linear', 'many', ['many'], 0.3, {}), 'again')
  assert_close(load('again/model.safetensors'), merged, [merged], 0)


@pytest.mark.parametrize('alpha, name', [(0.0, 'base'), (1.0, 'b')])
@pytest.mark.parametrize('method', ['linear', 'slerp', 'dare_linear'])
def test_the_ends_of_alpha_are_the_models_to_the_byte(dirs, method, alpha, name):
  stream.merge_dirs(recipe.from_flags(method, 'base', ['b'], alpha, {}), 'out')
  merged, expected = load('out/model.safetensors'), load(f'{name}/model.safetensors')
  assert all((merged[key].view(np.uint32) == expected[key].view(np.uint32)).all() for key in expected)


def test_every_difference_is_named_and_nothing_is_left(dirs):
  tensors = load('a/model.safetensors')
  tensors['model.norm.weight'] = tensors['model.norm.weight'][:-1]
  tensors['lm_head.weight'] = tensors['lm_head.weight'].astype(np.float16)
  del tensors['model.layers.1.mlp.up_proj.weight']
  tensors['extra'] = np.zeros(3, np.float32)
  write_model(dirs / 'odd', tensors, {})
  with pytest.raises(ValueError) as error:
    stream.merge_dirs(recipe.from_flags('linear', 'base', ['odd'], 0.5, {}), 'out')
  for part in (
    'differ in 4 tensors (a given dtype makes dtypes equal)',
    'model.norm.weight is float32 [16] in base and float32 [15] in odd',
    'lm_head.weight is float32 [32, 16] in base and float16 [32, 16] in odd',
    'model.layers.1.mlp.up_proj.weight is float32 [24, 16] in base and missing in odd',
    'extra is missing in base and float32 [3] in odd',
  ):
    assert part in str(error.value)
  assert not (dirs / 'out').exists()


def test_a_token_that_differs_is_named(dirs):
  tokenizer = {
    'model': {'vocab': {'a': 0, 'b': 1}},
    'added_tokens': [{'id': 2, 'content': '<end>'}],
  }
  for name, end in (('base', '<end>'), ('a', '<end>'), ('b', '</s>')):
    tokenizer['added_tokens'][0]['content'] = end
    (dirs / name / 'tokenizer.json').write_text(json.dumps(tokenizer))
  stream.merge_dirs(recipe.from_flags('linear', 'base', ['a'], 0.5, {}), 'out')
  with pytest.raises(ValueError, match="the vocabularies differ in 1 tokens: 2 is '<end>' in base and '</s>' in b"):
    stream.merge_dirs(recipe.from_flags('linear', 'base', ['b'], 0.5, {}), 'wrong')


def test_configs_that_differ_are_reported(dirs):
  config = json.loads((dirs / 'a' / 'config.json').read_text())
  (dirs / 'a' / 'config.json').write_text(json.dumps(config | {'rope_theta': 7.0, 'transformers_version': '9'}))
  report = stream.merge_dirs(recipe.from_flags('linear', 'base', ['a', 'b'], 0.5, {}), 'out')
  assert report.config_differences == [f'rope_theta is {config["rope_theta"]} in base and 7.0 in a']


@pytest.mark.parametrize('name', [name for name, row in METHODS.items() if row.elementwise])
def test_pieces_do_not_show(dirs, monkeypatch, name):
  given = {'weight': 0.5, 'a': 0.3, 'fisher': 2.0, 'lambda': 0.7}
  parameters = {key: value for key, value in given.items() if key in METHODS[name].parameters}
  models = ['a', 'b'][: METHODS[name].num_models[1]] if METHODS[name].base == 'required' else ['a']
  merge = recipe.from_flags(name, 'base', [] if name == 'passthrough' else models, None, parameters)
  for out, piece in {'small': (1, 7), 'large': (10, 1000)}.items():
    monkeypatch.setattr(stream, 'PIECE', piece)
    stream.merge_dirs(merge, out)
  assert (dirs / 'small/model.safetensors').read_bytes() == (dirs / 'large/model.safetensors').read_bytes()


BY_WHOLE = [name for name, row in METHODS.items() if row.reduce]
SLOW = ('ties', 'breadcrumbs')  # breadcrumbs_ties does what either does


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in BY_WHOLE])
def test_pieces_give_what_whole_tensors_in_memory_give(dirs, monkeypatch, name):
  given = {'weight': 0.5, 'density': 0.6, 't': 0.3}
  parameters = {key: value for key, value in given.items() if key in METHODS[name].parameters}
  models = ['a', 'b'][: METHODS[name].num_models[1]]
  monkeypatch.setattr(stream, 'PIECE', (5, 10))
  stream.merge_dirs(recipe.from_flags(name, 'base', models, None, parameters), 'out', seed=3)
  read = lambda model: {key: x.array() for key, x in stream.open_model(model).items()}  # noqa: E731
  expected = merging.merge(name, read('base'), [read(model) for model in models], key=jax.random.key(3), **parameters)
  for key, merged in read('out').items():
    np.testing.assert_allclose(merged, expected[key], rtol=0, atol=2**-21 * np.abs(expected[key]).max(), err_msg=key)


@pytest.mark.parametrize('k', [0, 1, 700, 39_999, 40_000])
@pytest.mark.parametrize('values', ['few', 'many', 'one', 'periodic'])
def test_a_cut_keeps_k_of_the_largest_and_the_first_of_equal_ones(values, k):
  rng = np.random.default_rng(0)
  scores = {
    'few': rng.integers(0, 5, 40_000), 'many': rng.random(40_000), 'one': np.ones(40_000),
    'periodic': np.where(np.arange(40_000) % 127 == 0, 1e-3, 1) * rng.random(40_000),
  }[values].astype(np.float32)  # fmt: skip
  asked = [pieces.TopK(part, k) for part in np.split(np.append(scores, np.zeros(2, np.float32)), 2)]
  starts = [0, len(scores) // 2 + 1]
  cuts = pieces.answer_pieces(asked, starts, len(scores))
  masks = [largest.is_largest(jnp.asarray(one.scores), cut) for one, cut in zip(asked, cuts, strict=True)]
  mask = np.concatenate(masks)
  assert set(np.flatnonzero(mask)) == set(np.argsort(-scores, kind='stable')[:k])


def test_a_damaged_shard_is_one_error_and_no_directory(dirs):
  stream.merge_dirs(recipe.from_flags('linear', 'base', ['a'], 0.5, {}), 'many', max_shard_bytes=11_000)
  shards = sorted((dirs / 'many').glob('*.safetensors'))
  assert len(shards) >= 3
  shards[1].write_bytes(shards[1].read_bytes()[:-100])
  with pytest.raises(ValueError, match=f'{shards[1].name}: not a whole safetensors file'):
    stream.merge_dirs(recipe.from_flags('linear', 'base', ['many'], 0.5, {}), 'out')
  assert not [path for path in dirs.iterdir() if path.name.startswith('out')]


def test_a_crash_leaves_no_directory(dirs):
  class Stop(Exception):
    pass

  def stop(n):
    raise Stop

  with pytest.raises(Stop):
    stream.merge_dirs(recipe.from_flags('linear', 'base', ['a'], 0.5, {}), 'out', advance=stop)
  assert not [path for path in dirs.iterdir() if path.name.startswith('out')]
  (dirs / 'full').mkdir()
  (dirs / 'full' / 'file').touch()
  with pytest.raises(ValueError, match='full: exists and is not an empty directory'):
    stream.merge_dirs(recipe.from_flags('linear', 'base', ['a'], 0.5, {}), 'full')


def test_integers_are_copied_when_equal_and_an_error_when_not(dirs):
  for name, table in (('a', [1, 2]), ('b', [1, 2]), ('c', [1, 3])):
    shutil.rmtree(dirs / name)
    write_model(dirs / name, {'w': np.ones(4, np.float32), 'ids': np.asarray(table)}, {})
  stream.merge_dirs(recipe.from_flags('linear', 'a', ['b'], 0.5, {}), 'out')
  assert load('out/model.safetensors')['ids'].tolist() == [1, 2]
  with pytest.raises(ValueError, match='ids: is int64, which cannot be merged, and differs between the models'):
    stream.merge_dirs(recipe.from_flags('linear', 'a', ['c'], 0.5, {}), 'wrong')


def test_a_dtype_that_would_lose_digits_is_an_error(dirs):
  write_model(dirs / 'wide', {'w': np.ones(4), 'v': np.ones(4, np.float32)}, {})
  with pytest.raises(ValueError, match='wide: w is F64: only float32, bfloat16, float16 and integers are supported'):
    stream.merge_dirs(recipe.from_flags('linear', 'wide', ['wide'], 0.5, {}), 'out')


def test_what_bfloat16_swallows_is_counted(dirs):
  ones = np.ones(1000, np.float32)
  write_model(dirs / 'x', {'w': ones.astype(jnp.bfloat16)}, {})
  write_model(dirs / 'y', {'w': (ones + 2**-7).astype(jnp.bfloat16)}, {})
  report = stream.merge_dirs(recipe.from_flags('linear', 'x', ['y'], 0.3, {}), 'out')
  assert (report.num_tensors, report.num_changed, report.num_unmoved) == (1, 1000, 1000)
  report = stream.merge_dirs(recipe.from_flags('linear', 'x', ['y'], 0.7, {}), 'more')
  assert (report.num_changed, report.num_unmoved) == (1000, 0)


def test_several_tuned_models_share_alpha(dirs):
  stream.merge_dirs(recipe.from_flags('linear', 'base', ['a', 'b'], 0.5, {}), 'out')
  models = inputs()
  expected = {name: x / 2 + models['a'][name] / 4 + models['b'][name] / 4 for name, x in models['base'].items()}
  assert_close(load('out/model.safetensors'), expected, models.values(), F32)


def test_a_gradient_in_a_slice_of_one_layer_is_at_its_end(dirs):
  """So says mergekit's plan.py; what is in no layer goes with its slice, at 0."""
  slices = [
    {'sources': [{'model': name, 'layer_range': layers, 'parameters': {'weight': points}} for name, points in pair]}
    for layers in ([0, 1], [1, 3])
    for pair in [(('a', [0, 1]), ('b', [1, 0]))]
  ]
  stream.merge_dirs(recipe.from_dict({'merge_method': 'linear', 'slices': slices}), 'out')
  merged, models = load('out/model.safetensors'), inputs()
  for layer, expected in enumerate('aba'):
    name = f'model.layers.{layer}.mlp.up_proj.weight'
    np.testing.assert_array_equal(merged[name], models[expected][name])
  np.testing.assert_array_equal(merged['model.embed_tokens.weight'], models['b']['model.embed_tokens.weight'])


def test_methods_without_alpha_and_mixed_dtypes(dirs):
  stream.merge_dirs(recipe.from_flags('model_stock', 'base', ['a', 'b'], None, {}), 'stock')
  stream.merge_dirs(recipe.from_flags('karcher', 'base', ['a', 'b'], None, {}), 'mean')
  narrow = {name: x.astype(jnp.bfloat16) for name, x in inputs()['a'].items()}
  write_model(dirs / 'narrow', narrow, {})
  stream.merge_dirs(recipe.from_flags('linear', 'base', ['narrow'], 1.0, {}, 'bfloat16'), 'out')
  merged = load('out/model.safetensors')
  assert all((merged[name].view(np.uint16) == x.view(np.uint16)).all() for name, x in narrow.items())


def test_masks_depend_on_seed_only(dirs):
  for out, seed in (('one', 1), ('same', 1), ('other', 2)):
    stream.merge_dirs(recipe.from_flags('dare', 'base', ['a'], 0.5, {'drop_rate': 0.5}), out, seed=seed)
  one, same, other = (load(f'{name}/model.safetensors') for name in ('one', 'same', 'other'))
  assert all((one[name] == same[name]).all() for name in one)
  assert any((one[name] != other[name]).any() for name in one)
