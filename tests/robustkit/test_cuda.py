"""Everything on a CUDA device, a real one where there is one: nothing is left on the CPU, and no step waits for the host.

Elsewhere on the emulated device of tests/helpers/emulated_cuda.py, which computes by the CPU's
kernels: there verdicts and counts have to be those of the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from emulated_cuda import CudaTensor, a_cuda_device, emulated_cuda, no_trips, trips
from small_cases import BUDGETS, images
from torch import nn

from robustkit import load_data, load_model, registry
from robustkit.classifier import Classifier
from robustkit.cli import main
from robustkit.methods import Attack, Rows, State
from robustkit.models import build
from robustkit.threats import Threat, load_threat
from robustkit.views import View

STANDARD, SMOOTHED = "zoo:digits-standard", "smooth:(zoo:digits-standard),sigma=0.2"
ATTACKS = [
    "fgsm",
    "bim:steps=4",
    "pgd:steps=5,restarts=2",
    "guided-pgd:steps=4,targets=2",
    "mi-fgsm:steps=4",
    "di-fgsm:steps=4",
    "apgd:dlr-targeted,steps=6,restarts=1,targets=2",
    "apgd-l1:dlr-targeted,steps=6,restarts=1,targets=2",
    "fab:steps=5,targets=2",
    "square:queries=20",
    "nes:queries=60",
    "nes:queries=60,sampler=low-frequency",
    "boundary:queries=100",
    "boundary:queries=100,sampler=low-frequency",
    "second-order:steps=4,draws=3",
    "local-variance:steps=8",
    "local-variance:steps=4,mode=pgd",
    "universal:epochs=2",
    "rotation:angles=3,shifts=3",
    "rotation:random,tries=5",
    "stadv:steps=10,optimizer=lbfgs",
    "stadv:steps=10,optimizer=adam",
    "adef:steps=5,candidates=2",
    "foolbox:ddn,steps=5",
    "foolbox:pgd,steps=5",
]
CASES = [(spec, family) for spec in ATTACKS for family in BUDGETS if {family, "*"} & set(registry.make("attack", spec).threats)]


def waiting_for_nothing(step: Callable[..., State]) -> Callable[..., State]:
    """The same step, which may not wait for the device."""

    def watched(self: Attack, rows: Rows, state: State, view: View, threat: Threat) -> State:
        with no_trips():
            return step(self, rows, state, view, threat)

    return watched


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("conv(1,6,3,s2,p1)-relu-flatten-linear(96,5)", seed=1).requires_grad_(False)


@pytest.fixture
def cuda() -> Iterator[None]:
    with a_cuda_device():
        yield


@pytest.mark.parametrize(("specification", "family"), CASES)
def test_an_attack_runs_on_the_device_and_its_steps_wait_for_nothing(
    specification: str, family: str, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, threat, x = registry.make("attack", specification), load_threat(BUDGETS[family]), images(24)
    y = Classifier(network).logits(x).argmax(1)
    expected = attack(Classifier(network), x, y, threat=threat, batch_size=64)
    with a_cuda_device():
        classifier = Classifier(network, device="cuda")
        attack(classifier, x[:8], y[:8], threat=threat, batch_size=64)  # tables that are kept go to the device with the first run
        monkeypatch.setattr(type(attack), "step", waiting_for_nothing(type(attack).step))
        found = attack(classifier, x, y, threat=threat, batch_size=64)
        emulated = isinstance(classifier.logits(x), CudaTensor)
        success, queries, parameters = (v.cpu() for v in (found.success, found.queries, found.parameters))
    assert bool(success.any())
    assert bool(threat.contains(x[success], parameters[success]).all())
    if emulated:
        assert torch.equal(success, expected.success)
        assert torch.equal(queries, expected.queries)


@pytest.mark.parametrize("specification", ["nes:partial,queries=400", "nes:label-only,queries=1500"])
def test_neither_do_those_of_attacks_that_begin_at_other_images(specification: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, data, pool = registry.make("attack", specification), load_data("digits:n=8"), load_data("digits:split=train,n=200")
    expected = attack(load_model(STANDARD, device="cpu"), data.x, data.y, threat="linf:0.3", goal="targeted:next", pool=pool)
    with a_cuda_device():
        classifier = load_model(STANDARD, device="cuda")
        attack(classifier, data.x[:2], data.y[:2], threat="linf:0.3", goal="targeted:next", pool=pool)
        monkeypatch.setattr(type(attack), "step", waiting_for_nothing(type(attack).step))
        found = attack(classifier, data.x, data.y, threat="linf:0.3", goal="targeted:next", pool=pool)
        if isinstance(classifier.logits(data.x), CudaTensor):
            assert torch.equal(found.success.cpu(), expected.success)
            assert torch.equal(found.queries.cpu(), expected.queries)


COMMANDS = [
    f"evaluate {STANDARD} --data digits:n=4 --threat linf:0.1 --suite quick",
    f"evaluate {STANDARD} --data digits:n=3 --threat l2:0.5 --attack nes:queries=60 --attack transfer:(zoo:digits-pgd) --curve "
    "--checks off",
    f"evaluate {STANDARD} --data digits:n=6 --threat linf:0.1 --attack pgd:steps=5 --goal targeted:random --checks off",
    "evaluate zoo:digits-pgd --data digits:n=3 --threat linf:0.1 --attack pgd:steps=5 --check-attack",
    "evaluate zoo:digits-ibp --data digits:n=6 --threat linf:0.12 --attack pgd:steps=5 --certifier ibp --certifier crown-ibp "
    "--certifier crown --certifier alpha-crown:steps=3",
    "evaluate knn:(zoo:digits-standard),bank=400,calibration=100 --data digits:n=6 --threat linf:0.1 --attack pgd:steps=5 "
    "--attack guided-pgd:steps=3 --checks off",
    f"evaluate binary:({STANDARD}) --data digits:n=6 --threat linf:0.1 --attack pgd:steps=5 --checks off",
    f"evaluate {SMOOTHED} --data digits:n=3 --threat l2:0.3 --attack pgd:steps=3 --certifier smoothing:n=500 --checks off",
    "certify zoo:digits-ibp --data digits:n=6 --threat l2:0.1 --method sound:crown",
    "certify zoo:digits-ibp --data digits:n=6 --threat linf:0.1 --method crown --curve",
    f"certify {SMOOTHED} --data digits:n=3 --threat l2:0.3 --method smoothing:n=500,looks=3 --curve",
    f"certify {SMOOTHED} --data digits:n=3 --threat l2:0.3 --method pixeldp:n=500",
    f"certify {SMOOTHED} --data digits:n=3 --threat l2:0.3 --method renyi:n=500",
]
RECIPES = [
    *("standard", "pgd:steps=2", "trades:steps=2", "logit-pairing:steps=2", "clean-logit-pairing", "logit-squeezing", "fortified:steps=2"),
    *("ibp", "ibp:start=tight", "crown-ibp", "smoothing", "smoothadv:steps=2", "stability", "abs:latent=2"),
]


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_on_the_device(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--device", "cuda", "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["device"].startswith("cuda")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_on_the_device(recipe: str, tmp_path: Path) -> None:
    out = str(tmp_path / "model.safetensors")
    recipe += ("," if ":" in recipe else ":") + "epochs=1,batch=64"
    arch = ["--arch", "abs(10,2,8,starts=100,steps=3)"] if recipe.startswith("abs") else []
    assert main(["train", recipe, "--data", "digits:n=256,split=train", "--device", "cuda", "--out", out, "--no-evaluation", *arch]) == 0
    if recipe.startswith("abs"):
        assert main(f"certify {out} --data digits:n=2 --threat l2:0.1 --device cuda --out {tmp_path / 'run'}".split()) == 0
        attacks = "--attack envelope:steps=1 --attack latent-descent:steps=2,halvings=2,rounds=1 --certifier none --checks off"
        assert main(f"evaluate {out} --data digits:n=2 --threat l2:1 {attacks} --device cuda --out {tmp_path / 'other'}".split()) == 0


@pytest.mark.usefixtures("cuda")
def test_a_network_is_reprogrammed_on_the_device(tmp_path: Path) -> None:
    out = str(tmp_path / "program.safetensors")
    assert main(f"reprogram zoo:mnist-standard --task digits:n=100 --settings epochs=1 --device cuda --out {out}".split()) == 0


def test_the_emulated_device_does_not_mix_with_the_cpu() -> None:
    with emulated_cuda():
        there, here = torch.arange(6.0, device="cuda").view(2, 3), torch.ones(2, 3)
        assert (there.device.type, there.is_cuda, (there * 2).device.type, here.device.type) == ("cuda", True, "cuda", "cpu")
        for wrong in (lambda: there + here, lambda: torch.cat([here, there]), lambda: nn.Linear(3, 2)(there)):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()
        there[0] = 0
        assert torch.equal(there.cpu(), torch.tensor([[0.0, 0, 0], [3, 4, 5]]))
        leaf = torch.ones(3, requires_grad=True)
        nn.functional.linear(leaf.cuda(), there).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [3, 4, 5]


def test_the_emulated_device_counts_what_the_host_waits_for() -> None:
    with emulated_cuda():
        x = torch.zeros(4, device="cuda")
        with no_trips():
            y = (torch.where(x > 1, x, 1.0) + 2).clamp(max=torch.full((4,), 2.0, device="cuda")) * torch.arange(4, device="cuda")
        waits = [
            lambda: float(y[0]),
            lambda: bool((y > 0).any()),
            lambda: y[y > 0],
            lambda: y.nonzero(),
            lambda: y.unique(),
            lambda: y.repeat_interleave(torch.arange(4, device="cuda")),
            lambda: y.cpu(),
            lambda: y.tolist(),
            lambda: torch.tensor([1.0], device="cuda"),
            lambda: torch.zeros(4).to("cuda"),
            lambda: y[torch.tensor([1])],
        ]
        for wait in waits:
            trips.clear()
            with pytest.raises(RuntimeError, match="the host waits"), no_trips():
                wait()
