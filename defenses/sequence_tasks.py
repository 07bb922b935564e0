"""Tasks for recurrent networks, with the sizes of Mozer et al. 2018, https://arxiv.org/abs/1805.08394.

Every replication gets data of its own, from its own key. Deliberate deviations: a wrong letter in
the Reber grammar keeps the word's length (the reference's slip shortens some); short words stand
at the end of the sequence, behind zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustkit import streams
from robustkit.errors import BadInput

LETTERS = "BEPSTVX"
_EDGES = "01T 03P 12X 11S 23X 25S 33T 34V 42P 45V"
_END = 5


@dataclass(frozen=True)
class Sequences:
    """Training sequences x (R,N,T,I) with labels y (R,N) in {0,1}, and test sets of the same form by name."""

    x: Tensor
    y: Tensor
    tests: dict[str, tuple[Tensor, Tensor]]

    def rows(self, chosen: Tensor) -> Sequences:
        """Some of the replications."""
        return Sequences(self.x[chosen], self.y[chosen], {name: (x[chosen], y[chosen]) for name, (x, y) in self.tests.items()})


def parity(keys: Tensor, length: int = 10, train: int = 256) -> Sequences:
    """Whether the number of ones is odd: `train` of all 2^length sequences; `novel` are all others, `noisy` see below."""
    if not 0 < train < 2**length or length > 20:
        raise BadInput(f"parity: {train} training sequences of length {length}: expected fewer than 2^length, length at most 20")
    every = (torch.arange(2**length)[:, None] >> torch.arange(length)) & 1
    bits = every[_order(keys, 2**length)]
    return _split(keys, bits, bits.sum(2) % 2, train, 0.1)


def majority(keys: Tensor, length: int = 11, train: int = 100) -> Sequences:
    """Whether more than half are ones, among 2^11 different sequences: `novel` those not trained on, `noisy` see below."""
    known = min(11, length)
    if not 0 < train < 2**known:
        raise BadInput(f"majority: {train} training sequences of length {length}: expected fewer than {2**known}")
    every = (torch.arange(2**known)[:, None] >> torch.arange(known)) & 1
    front = (streams.uniform(streams.child(keys, 5), (2**known, length))[:, :, known:] < 0.5).long()
    bits = torch.cat([front, every[_order(keys, 2**known)]], 2)
    return _split(keys, bits, (bits.sum(2) * 2 > length).long(), train, 0.15)


def reber(keys: Tensor, length: int = 20, train: int = 200, test: int = 2000) -> Sequences:
    """Whether a word is in the Reber grammar; half are, the others have one wrong letter. `fresh` words may be known ones."""
    if length < 5 or train < 2 or train % 2 or test % 2:
        raise BadInput(f"reber: length {length}, {train} and {test} words: expected at least 5 letters and even numbers of words")
    sets = []
    for number, count in enumerate((train, test)):
        own = streams.child(keys, 30 + number)
        words = torch.stack([_words(key, length, count // 2) for key in own])
        wrong = torch.stack([_misspelt(key, w) for key, w in zip(streams.child(own, 1), words)])
        x = functional.one_hot(torch.cat([words, wrong], 1) + 1, len(LETTERS) + 1)[..., 1:].float()
        sets.append((x, _halves(len(keys), count)))
    return Sequences(*sets[0], {"fresh": sets[1]})


def symmetry(keys: Tensor, length: int = 5, filler: int = 10, symbols: int = 9, train: int = 5000, test: int = 2000) -> Sequences:
    """Whether a word comes back reversed after a filler; half do, the others with two neighbours swapped or a letter replaced."""
    if train % 4 or test % 4 or length < 2 or symbols < 2:
        raise BadInput(f"symmetry: {train} and {test} sequences: expected multiples of 4, words of at least 2 of at least 2 symbols")
    sets = []
    for number, count in enumerate((train, test)):
        own = streams.child(keys, 40 + number)
        first = (streams.uniform(own, (count, length)) * symbols).long()
        first[:, :, 1] = torch.where((first == first[:, :, :1]).all(2), (first[:, :, 1] + 1) % symbols, first[:, :, 1])  # something to swap
        back = first.flip(2)
        place = _place(streams.child(own, 1), back)
        swapped = back.scatter(2, place, back.gather(2, place + 1)).scatter(2, place + 1, back.gather(2, place))
        spot = (streams.uniform(streams.child(own, 2), (count, 1)) * length).long()
        other = (back.gather(2, spot) + 1 + (streams.uniform(streams.child(own, 3), (count, 1)) * (symbols - 1)).long()) % symbols
        replaced = back.scatter(2, spot, other)
        half, quarter = count // 2, count // 4
        second = torch.cat([back[:, :half], swapped[:, half : half + quarter], replaced[:, half + quarter :]], 1)
        blank = torch.full((len(keys), count, filler), symbols)
        sets.append((functional.one_hot(torch.cat([first, blank, second], 2), symbols + 1).float(), _halves(len(keys), count)))
    return Sequences(*sets[0], {"fresh": sets[1]})


def grammatical(words: Tensor) -> Tensor:
    """(N,) whether words (N,T), letters by number in LETTERS and -1 in front of short ones, are in the Reber grammar."""
    state = torch.full((len(words),), _START)
    for letter in words.T:
        state = torch.where(letter < 0, state, _TABLE[state, letter.clamp(min=0)])
    return state == _ACCEPT


def _reber_table() -> tuple[Tensor, int, int]:
    """(states, letters) next state; the states are those of the graph, then start, accept and dead."""
    start, accept, dead = 6, 7, 8
    table = torch.full((9, len(LETTERS)), dead)
    for edge in _EDGES.split():
        table[int(edge[0]), LETTERS.index(edge[2])] = int(edge[1])
    table[start, LETTERS.index("B")] = 0
    table[_END, LETTERS.index("E")] = accept
    return table, start, accept


_TABLE, _START, _ACCEPT = _reber_table()


def _words(key: Tensor, length: int, count: int) -> Tensor:
    """(count, length) random walks through the grammar that fit, by the rule that both ways are equally likely."""
    drawn: list[Tensor] = []
    have, attempt = 0, 0
    while have < count:
        coin = (streams.uniform(streams.child(key[None], attempt), (2 * count + 16, length - 2))[0] < 0.5).long()
        state = torch.zeros(len(coin), dtype=torch.int64)
        word = torch.full((len(coin), length), -1)
        word[:, 0] = LETTERS.index("B")
        size = torch.ones(len(coin), dtype=torch.int64)
        for time in range(length - 2):
            going = state != _END
            ways = (_TABLE[state] < 6).long()  # two letters lead on from every state but the last
            letter = torch.where(coin[:, time] == 0, ways.argmax(1), len(LETTERS) - 1 - ways.flip(1).argmax(1))
            word[going, time + 1] = letter[going]
            size += going
            state = torch.where(going, _TABLE[state, letter], state)
        fit = state == _END
        word, size = word[fit], size[fit]
        word[torch.arange(len(word)), size] = LETTERS.index("E")
        at = torch.arange(length) - (length - 1 - size)[:, None]
        drawn.append(torch.where(at >= 0, word.gather(1, at.clamp(min=0)), -1))
        have, attempt = have + len(word), attempt + 1
    return torch.cat(drawn)[:count]


def _misspelt(key: Tensor, words: Tensor) -> Tensor:
    """The words (N,T) with one letter replaced so that they leave the grammar."""
    wrong, left, attempt = words.clone(), torch.ones(len(words), dtype=torch.bool), 0
    while bool(left.any()):
        drawn = streams.uniform(streams.child(key[None], attempt), (2, len(words)))[0]
        size = (words >= 0).sum(1)
        place = words.shape[1] - 1 - (drawn[0] * size).long()
        letter = (words.gather(1, place[:, None])[:, 0] + 1 + (drawn[1] * (len(LETTERS) - 1)).long()) % len(LETTERS)
        tried = words.scatter(1, place[:, None], letter[:, None])
        wrong = torch.where((left & ~grammatical(tried))[:, None], tried, wrong)
        left, attempt = left & grammatical(tried), attempt + 1
    return wrong


def _place(keys: Tensor, words: Tensor) -> Tensor:
    """(R,N,1) a random place of words (R,N,T) whose letter differs from the next; every word has one."""
    differs = words[:, :, 1:] != words[:, :, :-1]
    drawn = streams.uniform(keys, tuple(differs.shape[1:]))
    return torch.where(differs, drawn, -1.0).argmax(2, keepdim=True)


def _split(keys: Tensor, bits: Tensor, y: Tensor, train: int, noise: float) -> Sequences:
    """Training and test sets of bits (R,N,T); `noisy`: every training sequence twice, with uniform noise of +-`noise`."""
    x, y = bits[..., None].float(), y.float()
    twice = x[:, :train].repeat_interleave(2, 1)
    blurred = twice + noise * (2 * streams.uniform(streams.child(keys, 6), tuple(twice.shape[1:])) - 1)
    tests = {"novel": (x[:, train:], y[:, train:]), "noisy": (blurred, y[:, :train].repeat_interleave(2, 1))}
    return Sequences(x[:, :train], y[:, :train], tests)


def _order(keys: Tensor, count: int) -> Tensor:
    """(R,count) a random order for every key."""
    return streams.bits(streams.child(keys, 4), count).argsort(1)


def _halves(replications: int, count: int) -> Tensor:
    return (torch.arange(count) < count // 2).float().expand(replications, -1)
