"""NES: the estimate against exact gradients, exact queries, what each mode may see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, streams
from robustkit.attacks import NES
from robustkit.attacks.nes import estimate, log_odds
from robustkit.attacks.nes_partial import PROPOSALS, shown
from robustkit.attacks.sampling import around, sampler
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.views import ScoreView, View

MODES = ["query-limited", "partial", "label-only"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    model = load_model("zoo:digits-standard").module
    assert isinstance(model, nn.Module)
    return model


@pytest.fixture(scope="module")
def labelled(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Digits and what the model takes them for."""
    x, _ = load_data("digits:n=200,split=train")
    return x, Classifier(network).logits(x).argmax(1)


class Recorded(nn.Module):
    """Notes how many rows every forward has."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        calls.append(len(x))
        logits: Tensor = self.network(x)
        return logits


calls: list[int] = []


# ---- the estimate


@pytest.mark.parametrize(("given", "least"), [("gaussian", 0.95), ("low-frequency:1/2", 0.97)])
def test_the_estimate_converges_to_the_gradient_of_a_linear_loss(given: str, least: float) -> None:
    slope = streams.normal(streams.row_keys(0, "slope", torch.arange(3)), (1, 8, 8))
    made = sampler(given)
    if given != "gaussian":  # what the subspace can see of it
        basis = made.draw(streams.row_keys(0, "basis", torch.arange(1)), 64, (1, 8, 8))[0].flatten(1)
        span = torch.linalg.svd(basis, full_matrices=False)[2][: made.free((1, 8, 8))]
        slope = (slope.flatten(1) @ span.t() @ span).view_as(slope)
    p, alike = torch.rand(3, 1, 8, 8), []
    for pairs in (20, 2000):
        noise = made.draw(streams.row_keys(0, f"noise{pairs}", torch.arange(3)), pairs, (1, 8, 8))
        loss = (around(p, noise, torch.full((3,), 0.1)) * slope[:, None]).flatten(2).sum(2)
        found = estimate(loss, noise)
        alike.append(torch.cosine_similarity(found.flatten(1), slope.flatten(1)).min())
    assert alike[1] > least
    assert alike[1] > alike[0]


def test_log_odds_order_like_cross_entropy_and_do_not_saturate() -> None:
    logits = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)).double()
    own = torch.tensor([1, 4])
    odds = log_odds(logits, own)
    ce = -logits.log_softmax(2).gather(2, own[:, None, None].expand(-1, 50, 1))[:, :, 0]
    assert torch.equal(odds.argsort(1), ce.argsort(1))
    assert torch.allclose(torch.nn.functional.softplus(odds), ce)
    sure = torch.tensor([[[40.0, 0, 0], [41.0, 0, 0]]])
    assert float(log_odds(sure, torch.tensor([0]))[0].diff()) == pytest.approx(-1)


# ---- queries


@pytest.mark.parametrize("eps", ["0.0001", "0.3"])
@pytest.mark.parametrize("mode", MODES)
def test_queries_are_what_the_model_is_asked(mode: str, eps: str, network: nn.Module, labelled: tuple[Tensor, Tensor]) -> None:
    """One image alone, and the model itself counts; forwards of 1, 16 or 64 rows are starts, checks and proposals."""
    attack = NES(mode, queries=1500, samples=32, proxies=3)  # type: ignore[arg-type]
    points, proposals = (96 if mode == "label-only" else 32), (0 if mode == "query-limited" else PROPOSALS)
    recorded, successes = Recorded(network), 0
    for i in range(8):
        calls.clear()
        x, y = labelled[0][i : i + 1], labelled[1][i : i + 1]
        result = attack(recorded, x, y, threat=f"linf:{eps}", goal="targeted:next", pool=labelled)
        estimates, queries = calls.count(points), int(result.queries)
        start = 0 if mode == "query-limited" else 1
        whole = start + estimates * (points + proposals) + 1
        if bool(result.success):
            successes += 1
            assert queries in (whole, whole - proposals)  # hit by a point of the estimate: the proposals no longer count
        else:
            assert queries == whole
    assert successes == 0 if eps == "0.0001" else successes > 0


@pytest.mark.parametrize("mode", MODES)
def test_failures_cost_whole_steps(mode: str, network: nn.Module, labelled: tuple[Tensor, Tensor]) -> None:
    x, y = labelled[0][:40], labelled[1][:40]
    attack = NES(mode, queries=500, samples=16)  # type: ignore[arg-type]
    result = attack(network, x, y, threat="linf:0.0001", goal="targeted:next", pool=labelled)
    failed = (~result.success & (result.queries > 2 + attack.per_step)).nonzero()[:, 0]  # others have no image to start at
    assert len(failed)
    start = 0 if mode == "query-limited" else 1
    step = {"query-limited": 16, "partial": 16 + PROPOSALS, "label-only": 16 * 4 + PROPOSALS}[mode]
    assert attack.iterations == (500 - 1 - start) // step
    assert set(result.queries[failed].tolist()) == {start + step * attack.iterations + 1}


# ---- what is seen


def test_partial_uses_only_the_likeliest_classes(
    network: nn.Module, labelled: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = labelled[0][:30], labelled[1][:30]
    options: dict[str, Any] = {"threat": "linf:0.3", "goal": "targeted:next", "pool": labelled}
    for k in (1, 2):
        attack = NES("partial", queries=900, samples=16, top=k)
        with monkeypatch.context() as patch:
            open_result = attack(network, x, y, **options)

            def hidden(self: ScoreView, p: Tensor, k: int = k, many: Any = ScoreView.many) -> Tensor:
                """Scores of the others replaced by their mean probability: known from the shown ones."""
                scores = many(self, p).double().log_softmax(2)
                _, top = shown(scores, k)
                rest = scores.masked_fill(top, -torch.inf).logsumexp(2, keepdim=True) - torch.log((~top).sum(2, keepdim=True).double())
                return torch.where(top, scores, rest)

            patch.setattr(ScoreView, "many", hidden)
            hidden_result = attack(network, x, y, **options)
        assert bool(open_result.success.any())
        assert torch.equal(open_result.success, hidden_result.success)
        assert torch.equal(open_result.queries, hidden_result.queries)
        assert torch.allclose(open_result.parameters, hidden_result.parameters, atol=1e-6)


def test_label_only_sees_classes_only(network: nn.Module, labelled: tuple[Tensor, Tensor]) -> None:
    x, y = labelled[0][:12], labelled[1][:12]
    attack = NES("label-only", queries=2000, samples=16)
    assert attack.access == "decision"
    assert not hasattr(View, "many") and not hasattr(View, "scores")

    class Warped(nn.Module):
        """The same classes with other scores."""

        def forward(self, x: Tensor) -> Tensor:
            logits = network(x)
            return (logits - logits.amax(1, keepdim=True)) * (1 + 9 * x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0])

    results = [attack(model, x, y, threat="linf:0.3", goal="targeted:next", pool=labelled) for model in (network, Warped())]
    assert bool(results[0].success.any())
    for name in ("success", "queries", "parameters"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name)), name


@pytest.mark.parametrize("mode", ["partial", "label-only"])
def test_an_untargeted_goal_is_refused_where_it_means_nothing(mode: str, network: nn.Module, labelled: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BadInput, match=f"mode={mode} .*targeted:random"):
        NES(mode)(network, labelled[0][:3], labelled[1][:3], threat="linf:0.1")  # type: ignore[arg-type]


def test_without_an_image_of_the_target_class_a_row_ends_at_once(network: nn.Module, labelled: tuple[Tensor, Tensor]) -> None:
    x, y = labelled
    only = y == y.mode().values
    pool = (x[only], y[only])
    result = NES("partial")(network, x[only][:5], y[only][:5], threat="linf:0.1", goal="targeted:next", pool=pool)
    assert not bool(result.success.any())
    assert int(result.queries.max()) <= 2 + NES("partial").per_step


# ---- invariants


@pytest.mark.parametrize(("family", "noise"), [("linf:0.3", "gaussian"), ("l2:1.5", "low-frequency:1/2")])
@pytest.mark.parametrize("mode", MODES)
def test_batches_do_not_matter(mode: str, family: str, noise: str, network: nn.Module, labelled: tuple[Tensor, Tensor]) -> None:
    x, y = labelled[0][:8], labelled[1][:8]
    attack = NES(mode, queries=2500, samples=16, sampler=noise)  # type: ignore[arg-type]
    results = [attack(network, x, y, threat=family, goal="targeted:next", pool=labelled, batch_size=size) for size in (1, 640)]
    hit = results[0].success
    assert bool(hit.any())
    for name in ("adversarial", "success", "size", "queries", "parameters"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name)), name
    goal = (y + 1) % 10
    assert torch.equal(network(results[0].adversarial[hit]).argmax(1), goal[hit])
    assert int(results[0].queries.max()) <= 2500


def test_words(network: nn.Module) -> None:
    assert NES(sampler="low-frequency:1/4").digest == NES(sampler="low-frequency:ratio=0.25").digest  # type: ignore[arg-type]
    assert NES(sampler="low-frequency:1/4").digest != NES().digest  # type: ignore[arg-type]
    for wrong in ({"samples": 5}, {"mode": "none"}, {"queries": 20}, {"top": 0}, {"momentum": 1.0}, {"mode": "label-only", "top": 2}):
        with pytest.raises(BadInput):
            NES(**wrong)  # type: ignore[arg-type]


def test_real_digits_fall(shared_data: Any) -> None:
    model, (x, y) = load_model("zoo:mnist-standard"), load_data("mnist:n=32")
    pool = load_data("mnist:n=500,split=train")
    assert float(NES()(model, x, y, threat="linf:0.3").success.float().mean()) >= 0.98
    for mode in ("partial", "label-only"):
        found = NES(mode)(model, x[:12], y[:12], threat="linf:0.3", goal="targeted:random", pool=pool)  # type: ignore[arg-type]
        assert float(found.success.float().mean()) >= 0.9
