"""Decides which words may surround a number so that it stays the one number that is stated.

Before it, only words that are known to leave it unchanged. After it, units, then an explanation or
a relation.
"""

from collections.abc import Sequence
import re

from imm_jax.verifying.notation import at, Token


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


# What ends the part of a statement that has to be one number: an explanation, in which anything may
# stand but an alternative, or a relation, in which other numbers may stand but no calculation, and
# none that 'and' joins.
_EXPLAINS = _words('because since as so which given thus hence therefore that not rather instead')
_RELATES = _words('for in within with at by on during after before while until from')
_CONDITIONS = _words('when where if')  # They may have an equation: 'when x = 1'.
_ALTERNATIVES = _words('or nor either otherwise alternatively possibly')
_JOINS = _words('and or nor , ; / & +')

# Words that change or reject the number they are next to: on both sides of it, before it, after
# it.
_CHANGES = _words("""
  no never neither nor or half halves dozen dozens wrong incorrect unknown unclear impossible
  undefined zero two three
  four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
  eighteen nineteen twenty
  thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion
  sin cos tan cot csc log ln exp sqrt pi""")
_CHANGES_BEFORE = _CHANGES | _words("""
  not either between from than least most above below under over exceeds exceed twice thrice double
  triple times third
  quarter plus minus negative except but without unlike other if unless until greater less larger
  smaller fewer multiple
  multiples factor factors power powers square squares cube cubes root roots percent product
  products first last
  ratio step part case question problem equation option almost nearly hardly perhaps maybe probably
  possibly might may
  could""")
_CHANGES_BEHIND = _CHANGES | _words("""
  squared cubed factorial mod power divided multiplied increased decreased reduced doubled tripled
  halved raised plus
  minus over remainder r ish tens hundreds gross score lakh lakhs crore crores mil mio mn bn k st nd
  rd fold
  perhaps maybe""")
# '2x = 6' and 'half of it = 6' are not 6.
_CHANGES_NAME = _words('not never no half twice thrice double triple')
_ORDINAL = re.compile(
  r'(?:third|quarter|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w*teen|\w*tie|hundred|thousand|\w*illion)th|\w*illion)s?'
)
_NOT = ("n't", 'n’t')

# Before the number: words that may stand alone there, and those that may end any other words ('Ann
# has exactly 5').
_ADVERBS = _words(
  'exactly about approximately approx roughly around just only simply also now still actually then'
  ' a an total'
)
_FILLERS = _ADVERBS | _words("""
  so thus therefore hence and the that it this there he she they we you i is are was were be equals
  equal to usd eur gbp
  rs answer result value number amount final correct of""")
_LEADS = _words("""
  is are was were be equals equaled has have had gets get got gives give gave makes make made needs
  need needed earns
  earn earned pays pay paid spends spend spent saves save saved costs cost buys buy bought sells
  sell sold eats eat ate
  takes take took receives receive received collects collect collected leaves leave uses use used
  scores score scored
  weighs weigh weighed becomes became contains contain holds hold produces produce produced totals
  therefore thus hence
  so that""")
_LEADING_PAIRS = frozenset([
  ('up', 'with'), ('left', 'with'), ('equal', 'to'), ('comes', 'to'), ('amounts', 'to'),
  ('total', 'of'),
  ('amount', 'of'), ('value', 'of'), ('given', 'as'),
])  # fmt: skip

# Another letter after a number is a variable, or a factor as in 5k.
_UNIT_LETTERS = frozenset('mgslhtdLWVANJCF')
_UNITS = _words("""
  m cm mm km nm kg g mg lb lbs oz ft in yd mi h hr hrs min mins s sec secs ms mph kph kmh kwh day wk
  yr yrs mo L ml W V A
  N J C F am pm mpg gb mb kb tb sq cup bag box ton deg usd eur gbp ct cts pt pts pc pcs""")
_MONEY = _words('dollar dollars euro euros pound pounds cents usd eur gbp')


def end_of_answer(tokens: Sequence[Token]) -> int:
  """Returns where an explanation, a relation or an aside begins after the first number."""
  first = next((i for i, token in enumerate(tokens) if token.kind == 'number'), len(tokens))
  for i in range(first + 1, len(tokens)):
    token, following = tokens[i], at(tokens, i + 1)
    # '5in' is a length.
    if token.word in _EXPLAINS | _RELATES | _CONDITIONS and (token.word != 'in' or token.is_spaced):
      return i
    is_in_number = following.kind == 'number' and not following.is_spaced  # 1,23 and 3:30
    if token.text in (',', ';', ':') and not is_in_number:
      return i
    # 2 * (3 + 4)
    is_factor = is_in_number and (tokens[i - 1].kind == 'sign' or not token.is_spaced)
    if (
      token.text in ('(', '[')
      and not is_factor
      and tokens[i - 1].text != '^'
      and not _is_call(token, tokens[i - 1])
    ):
      return i
    if token.text == '-' and token.is_spaced and following.is_spaced and following.kind == 'word':
      return i
  return len(tokens)


def may_follow(tail: Sequence[Token]) -> bool:
  """Returns whether the tail, an explanation, relation or aside, leaves only one answer.

  That answer is the one before the tail.
  """
  if not tail:
    return True
  words = [token.word for token in tail]
  numbers = [i for i, token in enumerate(tail) if token.kind == 'number']
  alternatives = [i for i, word in enumerate(words) if word in _ALTERNATIVES]
  if alternatives and (alternatives[0] == 1 or max(numbers, default=0) > alternatives[0]):
    return False
  # 'with 2 left over'
  if 'base' in words or (numbers and ('remainder' in words or 'over' in words)):
    return False
  lead = tail[0] if tail[0].kind == 'word' else at(tail, 1)  # ', so it is 7'
  if lead.word in _RELATES | _CONDITIONS:
    is_ratio = lead.word == 'by' or words[-2:-1] in (['in'], ['every']) or words[1:2] == ['every']
    if (numbers and is_ratio) or any(words[i - 1] in _JOINS for i in numbers):
      return False
    return lead.word in _CONDITIONS or not _calculates(tail)
  if lead.word in _EXPLAINS or not numbers:
    return True
  # 'A = 3; B = 4'
  return tail[0].text in (';', ':', '(') and lead.kind == 'word' and at(tail, 2).text != '='


def _calculates(tokens: Sequence[Token]) -> bool:
  for i, token in enumerate(tokens):
    is_between_numbers = at(tokens, i - 1).kind == at(tokens, i + 1).kind == 'number'
    if token.text in ('=', '+', '*', '÷', '^') or (token.text in ('-', '/') and is_between_numbers):
      return True
  return False


def may_equal(left: Sequence[Token]) -> bool:
  """Returns whether the left side of '=' has the number on the right as its value.

  It may be a name or a sum, but not 2x or x + 1.
  """
  has_number = has_variable = False
  depth = 0  # Of brackets that belong to a name.
  for i, token in enumerate(left):
    before, following = at(left, i - 1), at(left, i + 1)
    is_command = at(left, i - 2).text == '\\'  # \frac{x}{2}
    if token.text in ('(', '[', '{') and (depth or (_is_call(token, before) and not is_command)):
      depth += 1
    elif token.text in (')', ']', '}') and depth:
      depth -= 1
    elif token.kind == 'number' and not depth:
      has_number = True
    elif token.kind == 'word' and not depth:
      if token.word in _CHANGES_NAME or token.word.endswith(_NOT):
        return False
      is_times = token.word == 'x' and before.kind == following.kind == 'number'
      is_unit = (
        before.kind == 'number'
        and _is_unit_name(token.text)
        and (token.is_spaced or len(token.text) > 1)
      )
      is_letter = len(token.text) == 1 and token.word not in ('a', 'i')
      is_glued = before.kind == 'number' and not token.is_spaced
      has_variable |= (is_letter or is_glued) and not (
        is_times or is_unit or _is_call(following, token)
      )
  return not (has_number and has_variable) and at(left, 0).text != '-'


def _is_call(bracket: Token, before: Token) -> bool:
  """Returns whether a bracket belongs to the name before it: f(5), x_{1}."""
  return bracket.text in ('(', '[', '{') and before.kind == 'word' and not bracket.is_spaced


def may_stand_before(tokens: Sequence[Token]) -> bool:
  """Returns whether the tokens before the number leave it unchanged."""
  words = []
  is_times = False
  for i, token in enumerate(tokens):
    if token.kind == 'word':
      words.append(token.word)
      if token.word in _CHANGES_BEFORE or token.word.endswith(_NOT):
        return False
    elif token.text == '-':
      if at(tokens, i + 1).kind != 'word':
        return False
    elif token.text not in tuple(":,'’({[.*_") or _is_call(token, at(tokens, i - 1)):
      return False
    is_times |= token.text == '*' and i > 0  # '* 5' may be an item of a list.
  if is_times:
    return False
  if all(word in _FILLERS for word in words) or tokens[-1].text == ':':
    return True
  while words[-1] in _ADVERBS:
    words.pop()
  return words[-1] in _LEADS or tuple(words[-2:]) in _LEADING_PAIRS


def may_stand_behind(tokens: Sequence[Token]) -> bool:
  """Returns whether the tokens after the number, up to an explanation, leave it unchanged.

  They are units, and the things that are counted.
  """
  for i, token in enumerate(tokens):
    before, following = at(tokens, i - 1), at(tokens, i + 1)
    if token.kind == 'word':
      if not _may_count(token, is_first=i == 0, before=before, following=following):
        return False
    elif token.text in ('-', '/', '*'):
      if (
        following.kind != 'word'
        or following.is_spaced
        or (token.text == '*' and before.kind != 'word')
      ):
        return False
    elif token.text not in tuple("%'’.)]}"):
      return False
  return True


def _may_count(token: Token, is_first: bool, before: Token, following: Token) -> bool:
  """Returns whether a word after a number leaves it unchanged."""
  word = token.word
  if word in _CHANGES_BEHIND or _ORDINAL.fullmatch(word) or word.endswith(_NOT):
    return False
  if any(character.isdigit() for character in word):
    return False
  if word == 'and' and following.word in ('a', 'an', 'one'):  # 'and a half'
    return False
  if word == 'times' and (
    following.word in ('the', 'that') or (len(following.text) == 1 and following.text != 'a')
  ):
    return False
  if word == 'm' and following.word in _MONEY:  # '2m dollars'
    return False
  if before.text == '/' or (is_first and not token.is_spaced):
    return _is_unit_name(token.text)
  return not is_first or len(word) > 1 or token.text in _UNIT_LETTERS or token.text == 'a'


def _is_unit_name(text: str) -> bool:
  """Returns whether letters after a number or a '/' are a unit.

  In 5xy and 1/x they are variables.
  """
  return text in _UNITS or (len(text) > 1 and text.lower() in _UNITS) or len(text) > 3
