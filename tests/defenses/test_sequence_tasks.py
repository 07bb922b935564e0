"""Tasks for recurrent networks, against the same things said another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit import streams
from robustkit.defenses.sequence_tasks import LETTERS, Sequences, grammatical, majority, parity, reber, symmetry
from robustkit.errors import BadInput

KEYS = streams.row_keys(0, "test", torch.arange(3))


def texts(x: Tensor) -> list[str]:
    return ["".join(str(int(v)) for v in row) for row in x[..., 0]]


def spelt(x: Tensor) -> list[str]:
    return ["".join(LETTERS[int(step.argmax())] for step in word if float(step.sum()) > 0) for word in x]


def in_grammar(word: str) -> bool:
    """The graph walked letter by letter with plain dictionaries."""
    graph = {0: "T1 P3", 1: "S1 X2", 2: "X3 S5", 3: "T3 V4", 4: "P2 V5"}
    ways = {(state, way[0]): int(way[1]) for state, text in graph.items() for way in text.split()}
    state = 0
    for letter in word[1:-1]:
        if (state, letter) not in ways:
            return False
        state = ways[state, letter]
    return word[:1] == "B" and word[-1:] == "E" and state == 5


def test_parity() -> None:
    data = parity(KEYS)
    assert data.x.shape == (3, 256, 10, 1)
    for r in range(3):
        known, novel = texts(data.x[r]), texts(data.tests["novel"][0][r])
        assert len({*known, *novel}) == 1024
        assert len(novel) == 768
        assert data.y[r].tolist() == [float(text.count("1") % 2) for text in known]
        assert data.tests["novel"][1][r].tolist() == [float(text.count("1") % 2) for text in novel]
    assert texts(data.x[0]) != texts(data.x[1]), "every replication has its own"


@pytest.mark.parametrize("length", [8, 11, 29])
def test_majority(length: int) -> None:
    data = majority(KEYS, length=length)
    for r in range(3):
        known, novel = texts(data.x[r]), texts(data.tests["novel"][0][r])
        assert len(set(known)) == 100
        assert not {*known} & {*novel}
        assert data.y[r].tolist() == [float(text.count("1") > length / 2) for text in known]
    assert 0.3 < float(data.y.mean()) < 0.7


@pytest.mark.parametrize(("make", "noise"), [(parity, 0.1), (majority, 0.15)])
def test_noisy_sequences_are_known_ones(make: object, noise: float) -> None:
    data: Sequences = make(KEYS)  # type: ignore[operator]
    x, y = data.tests["noisy"]
    apart = x - data.x.repeat_interleave(2, 1)
    assert noise * 0.98 < float(apart.abs().max()) <= noise
    assert torch.equal(y, data.y.repeat_interleave(2, 1))


def test_reber() -> None:
    data = reber(KEYS, train=200, test=400)
    for x, y in ((data.x, data.y), data.tests["fresh"]):
        for r in range(3):
            words = spelt(x[r])
            assert [in_grammar(word) for word in words] == [value == 1 for value in y[r].tolist()]
            half = len(words) // 2
            differing = [sum(a != b for a, b in zip(one, other)) for one, other in zip(words[:half], words[half:])]
            assert differing == [1] * half
            assert all(5 <= len(word) <= 20 for word in words)
            ends = x[r].sum(2)
            assert bool((ends.diff(dim=1) >= 0).all()), "short words stand at the end"
    assert len(set(spelt(data.x[0])[:100])) > 20


def test_the_two_ways_are_equally_likely() -> None:
    words = spelt(reber(KEYS, train=4000, test=2).x[0])[:2000]
    assert sum(word[1] == "T" for word in words) / 2000 == pytest.approx(0.5, abs=0.05)


def test_the_table_agrees_with_the_graph() -> None:
    words = torch.randint(0, 7, (3000, 5), generator=torch.Generator().manual_seed(0))
    words[:, 0], words[:, -1] = LETTERS.index("B"), LETTERS.index("E")
    expected = [in_grammar("".join(LETTERS[int(v)] for v in word)) for word in words]
    assert any(expected)
    assert grammatical(words).tolist() == expected


def test_symmetry() -> None:
    data = symmetry(KEYS, train=400, test=80)
    symbols = data.x.argmax(3)
    assert bool((symbols[:, :, 5:15] == 9).all())
    assert int(symbols[:, :, :5].max()) == 8
    back = symbols[:, :, 15:].flip(2)
    assert torch.equal((back == symbols[:, :, :5]).all(2).float(), data.y)
    differing = (back != symbols[:, :, :5]).sum(2)
    assert bool((differing[:, 200:300] == 2).all())
    assert bool((differing[:, 300:] == 1).all())
    assert torch.equal(symbols[:, 200:300, :5].sort(2).values, symbols[:, 200:300, 15:].sort(2).values), "swapped, not replaced"


def test_a_replication_has_the_same_data_alone() -> None:
    for make in (parity, majority, reber, symmetry):
        whole, alone = make(KEYS), make(KEYS[1:2])
        assert torch.equal(whole.x[1], alone.x[0])
        assert all(torch.equal(whole.tests[name][0][1], alone.tests[name][0][0]) for name in whole.tests)


def test_sizes_that_cannot_be_are_refused() -> None:
    for call in (lambda: parity(KEYS, 4, 16), lambda: majority(KEYS, 5, 40), lambda: reber(KEYS, train=7), lambda: symmetry(KEYS, train=6)):
        with pytest.raises(BadInput, match="expected"):
            call()
