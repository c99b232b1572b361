"""Where a completion ends: a function of tokens and stop strings, however often one looks."""

import random

from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.sampling.stopping import Ending, Stopping
import pytest
import tokenizers
import transformers

SPECIAL = ['<s>', '</s>', '<|im_start|>', '<|im_end|>']
MERGES = [('Ċ', 'Ċ'), ('Ġ', 'a'), ('a', 'b'), ('ab', 'c'), ('Ã', '©'), ('Ċ', 'Q')]


def wrap(tmp_path, backend):
  backend.add_special_tokens(SPECIAL)
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>')
  fast.save_pretrained(tmp_path)
  return Tokenizer.load(tmp_path)


def write_bytes(tmp_path):
  """A byte-level tokenizer, as GPT-2's: a character may be split over tokens."""
  words = [*SPECIAL, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), *map(''.join, MERGES)]
  vocab = {word: i for i, word in enumerate(words)}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, MERGES))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  return wrap(tmp_path, backend)


def write_fallback(tmp_path):
  """A tokenizer as Llama 2's: the first space is dropped, rare characters are bytes."""
  pieces = [*'▁abcQ', '▁a', '▁b', '▁ab']
  words = [*SPECIAL, *pieces, '\n', *(f'<0x{i:02X}>' for i in range(256))]
  vocab = {word: i for i, word in enumerate(words)}
  merges = [('▁', 'a'), ('▁', 'b'), ('▁a', 'b')]
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, byte_fallback=True))
  backend.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')]
  )
  backend.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('▁', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  return wrap(tmp_path, backend)


MAKERS = {'bytes': write_bytes, 'fallback': write_fallback}


@pytest.fixture(params=MAKERS)
def tokenizer(request, tmp_path):
  return MAKERS[request.param](tmp_path)


def look(tokenizer, tokens, stop, every):
  """What is found where a row is looked at after so many tokens each."""
  stopping = Stopping(tokenizer, stop)
  for seen in range(0, len(tokens), every):
    found = stopping.find(tokens[: seen + every], seen)
    if found:
      return found
  return None


def find(tokenizer, tokens, stop):
  """What is found, the same for every number of tokens between two looks."""
  [found] = {look(tokenizer, tokens, stop, every) for every in (*range(1, 9), 1000)}
  return found


@pytest.mark.parametrize(
  'text, stop, num_tokens, cut',
  [
    # The shorter one is complete first, and the longer one never.
    ('xyz12345', ['yz123', 'z1'], 4, 'xy'),
    # Both are complete with the same token: the earlier start counts.
    ('xyz12345', ['yz1', 'z1'], 4, 'x'),
    ('xyz12345', ['z1', 'yz1'], 4, 'x'),
    ('xyz12345', ['xyz12345', '345', '45'], 8, ''),
    ('xyz12345', ['4', '34', '234'], 7, 'xyz1'),
    ('xyzxyz', ['zx', 'yzxyz'], 4, 'xy'),
    ('xxxyz', ['xx'], 2, ''),
    ('xyz12345', ['54', 'never there'], None, None),
    ('xyz', [], None, None),
  ],
)
def test_the_first_string_that_is_complete_ends_the_row(tmp_path, text, stop, num_tokens, cut):
  tokenizer = write_bytes(tmp_path)
  tokens = tokenizer.encode(text)
  assert len(tokens) == len(text)
  assert find(tokenizer, tokens, stop) == (Ending(num_tokens, cut) if num_tokens else None)


@pytest.mark.parametrize(
  'stop, num_tokens, cut',
  [
    (['<|im_start|>user'], 6, 'Q'),
    (['<|im_start|>'], 2, 'Q'),
    (['<|im_start|>user', '<|im_start|>'], 2, 'Q'),
    (['Q<|im_start|>us'], 4, ''),
    (['ser<|im_end|>'], 7, 'Qu'),
    (['<|im_end|>\n<s>'], 9, 'Quser'),
    (['user'], 6, 'Q'),
    # A special token that no stop string has is no text, nor is a part of its name.
    (['Quser'], 6, ''),
    (['<', 'im_', '|>user', 'r<'], 10, 'Quser\n'),
    # The end token ends every row.
    (['</s>x', '</s>'], 10, 'Quser\n'),
  ],
)
def test_a_special_token_in_a_stop_string_is_that_token(tmp_path, stop, num_tokens, cut):
  tokenizer = write_bytes(tmp_path)
  tokens = tokenizer.encode('Q<|im_start|>user<|im_end|>\n<s></s>')
  assert len(tokens) == 10 and find(tokenizer, tokens, stop) == Ending(num_tokens, cut)


def test_a_stop_string_with_a_special_token_may_be_spelt_by_others(tmp_path):
  tokenizer = write_bytes(tmp_path)
  spelt = [token for letter in 'x<|im_start|>user' for token in tokenizer.encode(letter)]
  assert find(tokenizer, spelt, ['<|im_start|>us']) == Ending(15, 'x')


def test_a_character_is_complete_with_its_last_byte(tokenizer):
  tokens = tokenizer.encode('a日本語')
  ends = {n for n in range(1, len(tokens) + 1) if tokenizer.decode(tokens[:n]) == 'a日'}
  assert find(tokenizer, tokens, ['日']) == Ending(min(ends), 'a')
  assert find(tokenizer, tokens, ['本語', '日本語']) == Ending(len(tokens), 'a')
  # The bytes of a character are no broken one until it is clear that they never become one.
  broken = [*tokens[:-1], *tokenizer.encode('Q')]
  assert find(tokenizer, tokens, ['\ufffd']) is None
  assert find(tokenizer, broken, ['\ufffd']) is not None


def test_the_end_token_ends_a_row_and_its_text_is_whole(tokenizer):
  tokens = [*tokenizer.encode('ab c'), *tokenizer.encode('</s>'), *tokenizer.encode('a')]
  end = tokens.index(1)
  assert find(tokenizer, tokens, []) == Ending(end + 1, tokenizer.decode(tokens[:end]))
  assert find(tokenizer, tokens, ['b'])[1] == tokenizer.decode(tokens).partition('b')[0]


def test_random_rows_end_where_the_prefixes_of_their_texts_say(tokenizer):
  rng = random.Random(0)
  texts = (' a', 'ab', 'abc', 'c', ' ', '\n\n', '\nQ', 'é', '日', '🚀', '<s>', '<|im_end|>')
  whole = [tokenizer.encode(text) for text in texts]
  pieces = whole + [[token] for tokens in whole for token in tokens]  # parts of characters too
  stops = [' a', 'b', 'ca', 'a b', '  ', 'cab', 'abcabc', '\n\nQ', 'b\n', 'aé', 'é日', '日🚀', '🚀']
  ends = 0
  for _ in range(300):
    tokens = sum(rng.choices(pieces, k=rng.randrange(1, 60)), [])
    stop = rng.sample(stops, k=rng.randrange(1, 4))
    found = find(tokenizer, tokens, stop)
    texts = [tokenizer.decode(tokens[:n]) for n in range(1, len(tokens) + 1)]
    starts = [min((text.find(string) for string in stop if string in text), default=None) for text in texts]
    first = next((i for i, start in enumerate(starts) if start is not None), None)
    assert found == (None if first is None else Ending(first + 1, texts[first][: starts[first]]))
    ends += first is not None
  assert 100 < ends < 300


def count_decoded(tokenizer, monkeypatch):
  calls = []
  decode = tokenizer.decode
  monkeypatch.setattr(tokenizer, 'decode', lambda tokens: calls.append(len(tokens)) or decode(tokens))
  return calls


def test_only_the_tail_of_a_row_is_decoded(tmp_path, monkeypatch):
  tokenizer = write_bytes(tmp_path)
  calls = count_decoded(tokenizer, monkeypatch)
  tokens = tokenizer.encode('x') * 400
  assert look(tokenizer, tokens, [], 8) is None and not calls
  assert look(tokenizer, tokens, ['\nQ', 'a' * 10], 8) is None
  assert len(calls) == 50 and max(calls) == 8 + 10 + 1


def test_tokens_without_text_do_not_hide_the_beginning_of_a_stop_string(tmp_path):
  tokenizer = write_bytes(tmp_path)
  tokens = tokenizer.encode('xy') + tokenizer.encode('<s>') * 50 + tokenizer.encode('z')
  assert find(tokenizer, tokens, ['yz']) == Ending(53, 'x')


def test_the_mask_has_the_end_tokens_and_those_with_a_whole_stop_string(tmp_path):
  tokenizer = write_bytes(tmp_path)

  def mask(stop):
    return set(Stopping(tokenizer, stop).mask(300).nonzero()[0].tolist())

  vocab = {tokenizer.decode([i]): i for i in range(4, tokenizer.size)}
  assert mask([]) == {1}
  assert mask(['\n', '<|im_end|>', '<s>Q']) == {1, 3, vocab['\n'], vocab['\n\n'], vocab['\nQ']}
