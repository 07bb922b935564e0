"""Attractor nets and the recurrent networks around them: equations, independence of replications, learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit import streams
from robustkit.defenses.attractor_rnn import AttractorNet, AttractorRNN, Settings, denoising_loss, task_loss
from robustkit.defenses.attractor_training import replicate
from robustkit.defenses.sequence_tasks import Sequences, parity
from robustkit.errors import BadInput

SMALL = Settings(hidden=4, attractor=6, steps=5, noise=0.5, epochs=30, check=10)


def keys(count: int = 3, seed: int = 0) -> Tensor:
    return streams.row_keys(seed, "test", torch.arange(count))


def short(given: Tensor) -> Sequences:
    return parity(given, length=4, train=8)


def normal(count: int, *shape: int) -> Tensor:
    return streams.normal(keys(count, 9), shape)


def test_the_equations_by_hand() -> None:
    network = AttractorRNN(keys(), 2, SMALL, attractor=True)
    net = network.attractor
    assert net is not None
    with torch.no_grad():
        net.free += normal(3, 6, 6)
    x = normal(3, 5, 4, 2)
    logits, states = network(x)
    assert (logits.shape, states.shape) == ((3, 5), (3, 20, 4))
    for r, n in ((0, 0), (2, 3)):
        h = torch.zeros(4)
        low = net.free[r].tril(-1)
        weight = low + low.T + net.free[r].diagonal().abs().diag()
        for t in range(4):
            before = x[r, n, t] @ network.into[r] + h @ network.recurrent[r] + network.bias[r, 0]
            torch.testing.assert_close(states[r, n * 4 + t], before)
            cue = before @ net.into[r] + net.bias_in[r, 0]
            a = torch.zeros(6)
            for _ in range(5):
                a = torch.tanh(a) @ weight + cue
            h = torch.tanh(a @ net.out[r] + net.bias_out[r, 0])
        torch.testing.assert_close(logits[r, n], (h @ network.out[r] + network.bias_out[r, 0])[0])


def test_the_constrained_weights_settle() -> None:
    net = AttractorNet(keys(), SMALL)
    with torch.no_grad():
        net.free += 2 * normal(3, 6, 6)
    weight = net.weight.detach()
    assert torch.equal(weight, weight.transpose(1, 2))
    assert float(weight.diagonal(dim1=1, dim2=2).min()) >= 0
    a = {steps: net.settle(normal(3, 50, 4), steps).detach() for steps in (1, 3, 398, 400)}
    assert float((a[400] - a[398]).abs().max()) < 1e-3, "a fixed point or a cycle of two"
    assert float((a[3] - a[1]).abs().max()) > 0.1


def test_it_starts_next_to_a_network_without_attractor() -> None:
    x = normal(3, 6, 5, 1)
    plain, attracted = (AttractorRNN(keys(), 1, SMALL, attractor=on) for on in (False, True))
    assert torch.equal(plain.recurrent, attracted.recurrent)
    assert float((plain(x)[0] - attracted(x)[0]).detach().abs().max()) < 0.2


def test_a_replication_is_the_same_alone() -> None:
    together = replicate(short, "sdrnn+task", SMALL, replications=3)
    alone = replicate(short, "sdrnn+task", SMALL, replications=1)
    torch.testing.assert_close(together.train[:1], alone.train)
    torch.testing.assert_close(together.denoising[:1], alone.denoising, rtol=1e-3, atol=1e-4)


def test_the_losses() -> None:
    assert task_loss(torch.zeros(1, 4), torch.tensor([[0.0, 1, 1, 0]])).tolist() == [1]
    net = AttractorNet(keys(), SMALL)
    with torch.no_grad():
        net.into.copy_(torch.eye(4, 6))
        net.out.copy_(torch.eye(6, 4))
        for part in (net.free, net.bias_in, net.bias_out):
            part.zero_()
    h, noise = normal(3, 20, 4), 0.5 * normal(3, 20, 4).flip(1)
    torch.testing.assert_close(denoising_loss(net, h, noise), torch.ones(3))


def test_denoising_contracts_around_the_states_it_was_trained_on() -> None:
    settings = Settings(hidden=4, attractor=8, steps=10, noise=0.5)
    net = AttractorNet(keys(), settings)
    states = 2 * torch.sign(normal(3, 6, 4))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(250):
        noise = 0.5 * streams.normal(streams.child(keys(), step), (60, 4))
        loss = denoising_loss(net, states.repeat(1, 10, 1), noise).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    fresh = 0.5 * streams.normal(streams.child(keys(), 10_000), (600, 4))
    with torch.no_grad():
        many = states.repeat(1, 100, 1)
        assert float(denoising_loss(net, many, fresh).max()) < 0.5, "most of fresh noise is taken out"
        apart = (net(many + fresh) - net(many)).norm(dim=2)
        before = (torch.tanh(many + fresh) - torch.tanh(many)).norm(dim=2)
        assert float((apart < before).float().mean()) > 0.9, "neighbours of a state come together"


@pytest.mark.parametrize(
    ("arm", "by_task", "by_denoising"), [("rnn", None, None), ("rnn+a", True, False), ("sdrnn", False, True), ("sdrnn+task", True, True)]
)
def test_which_loss_trains_the_attractor_net(arm: str, by_task: bool | None, by_denoising: bool | None) -> None:
    from robustkit.defenses.attractor_training import _Run

    data = short(keys())
    network = AttractorRNN(keys(), 1, SMALL, attractor=arm != "rnn")
    run = _Run(network, arm, SMALL, data, keys())  # type: ignore[arg-type]
    trained = {id(p) for p in run.task.param_groups[0]["params"]}
    assert {id(p) for name, p in network.named_parameters() if not name.startswith("attractor")} <= trained
    if network.attractor is None:
        assert run.denoise is None
        return
    assert all((id(p) in trained) is by_task for p in network.attractor.parameters())
    assert (run.denoise is not None) is by_denoising
    before = network.recurrent.detach().clone(), network.attractor.free.detach().clone()
    run.step(data.x, data.y, 5, keys())
    assert not torch.equal(before[0], network.recurrent)
    assert not torch.equal(before[1], network.attractor.free)


def test_denoising_does_not_move_the_network_it_cleans() -> None:
    network = AttractorRNN(keys(), 1, SMALL, attractor=True)
    assert network.attractor is not None
    _, states = network(short(keys()).x)
    loss = denoising_loss(network.attractor, states.detach(), normal(3, 32, 4)).sum()
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    for (name, _), gradient in zip(network.named_parameters(), found):
        assert (gradient is not None) is name.startswith("attractor."), name


def test_who_has_learned_leaves_and_the_others_go_on_as_before() -> None:
    settings = Settings(hidden=6, attractor=8, steps=3, epochs=400, check=20, lr=0.02)
    seen: list[int] = []
    found = replicate(short, "sdrnn+task", settings, 6, tell=lambda epoch, left: seen.append(left))
    assert seen == sorted(seen, reverse=True)
    assert 0 < int((found.train == 1).sum())
    assert bool(((found.epochs < 400) == (found.train == 1)).all() or (found.epochs == 400).any())
    last = int(found.epochs.argmax())
    from robustkit.defenses import attractor_training

    alone = attractor_training._Run(
        AttractorRNN(streams.child(streams.row_keys(0, "attractor study", torch.arange(6)), 1)[last : last + 1], 1, settings, True),
        "sdrnn+task",
        settings,
        short(streams.child(streams.row_keys(0, "attractor study", torch.arange(6)), 0)).rows(torch.tensor([last])),
        streams.row_keys(0, "attractor study", torch.arange(6))[last : last + 1],
    ).all(None)
    torch.testing.assert_close(found.epochs[last : last + 1], alone.epochs, atol=40, rtol=0)


def test_bad_values_are_refused() -> None:
    with pytest.raises(BadInput, match="unknown arm 'sdrn'"):
        replicate(short, "sdrn", SMALL)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="steps = 0"):
        Settings(steps=0)
    with pytest.raises(BadInput, match="replications = 0"):
        replicate(short, "rnn", SMALL, 0)
