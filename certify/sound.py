"""Floating-point certificates: proofs about the float32 logits that the deployed network computes.

A bound in real arithmetic settles a sample first. What it proves is then bounded again in float64 with
the rounding errors of the deployed float32 network, in any order of summation, and those of the
bound itself taken off at every node; rounding.py has the argument. References: Higham 2002; Jia &
Rinard 2021, arXiv 2003.03021 (verifiers fooled by rounding); Zombori et al. 2021 (networks built to
fool them).

What the certificate does not cover: kernels that do not sum products directly (Winograd, FFT, TF32),
library functions that are off by more than 8 units in the last place, and weights that are not float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from robustkit import registry
from robustkit.certify.alpha_crown import AlphaCrown, climbed
from robustkit.certify.backward import State, bound_margins, bound_nodes, prepare
from robustkit.certify.binding import Propagating
from robustkit.certify.crown import Crown
from robustkit.certify.crown_ibp import CrownIBP
from robustkit.certify.forms import Form, Groups, dot
from robustkit.certify.graph import Network
from robustkit.certify.ibp import IBP
from robustkit.certify.region import Region
from robustkit.certify.relaxed import Relaxed, check_relaxations
from robustkit.certify.rounding import check_rounding
from robustkit.certify.starts import other_classes
from robustkit.errors import BadInput
from robustkit.methods import Bound, Certifier
from robustkit.spec import Spec, parse

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.threats import Threat

KINDS = (IBP, CrownIBP, Crown, AlphaCrown)


@dataclass(frozen=True)
class Sound(Certifier):
    """Certificates of another certifier that also hold for the float32 logits, whatever the order of summation.

    Fields: method, the certifier: ibp, crown-ibp, crown or alpha-crown, for example sound:(crown).
    """

    method: Certifier

    name = "sound"
    positional = ("method",)
    threats = ("linf", "l2", "l1")
    guarantee = "floating-point"
    dtype: ClassVar[str] = "float64"
    paper = "Jia & Rinard 2021, arXiv 2003.03021; Zombori et al. 2021"

    @classmethod
    def from_spec(cls, spec: Spec) -> Sound:
        """From `sound:(crown)`; raises BadInput."""
        given = [*spec.items, *spec.options.values()]
        if len(given) != 1 or set(spec.options) - {"method"} or not isinstance(given[0], (Spec, str)):
            raise BadInput(f"{spec}: expected one certifier in parentheses, for example sound:(crown)")
        return cls(registry.make("certifier", given[0] if isinstance(given[0], Spec) else parse(given[0])))

    @property
    def title(self) -> str:
        return f"sound {self.method.title}"

    @property
    def cost(self) -> float:  # type: ignore[override]
        """Forward-equivalents a sample."""
        return 4 * self.method.cost

    def effort(self, classifier: Classifier, shape: tuple[int, ...]) -> float:
        return 4 * self.method.effort(classifier, shape)

    def accepts(self, threat: Threat) -> None:
        super().accepts(threat)
        self.method.accepts(threat)

    def fits(self, classifier: Classifier, threat: Threat, x: Tensor) -> None:
        self._known()
        super().fits(classifier, threat, x)

    def subject(self, classifier: Classifier) -> Classifier:
        return self.method.subject(classifier)

    def _known(self) -> None:
        if type(self.method) not in KINDS:
            known = ", ".join(kind.name for kind in KINDS)
            raise BadInput(f"no floating-point certificate is known for {self.method.name}: use {known}, or leave out --sound")

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        """See Certifier. Raises BadInput for other certifiers, other weights than float32, and unknown rounding."""
        self.accepts(threat)
        self._known()
        weights = classifier.module.parameters() if isinstance(classifier.module, nn.Module) else []
        other = next((p.dtype for p in weights if p.dtype != torch.float32), None)
        if other is not None:
            raise BadInput(f"floating-point certificates are for float32 models, this one holds {other}: leave out --sound")
        plain, exact = self.method.bind(classifier, threat), Outward(self.method).bind(classifier, threat)

        def bound(x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
            found = plain(x, y, eps).double()
            at = (found > 0).nonzero()[:, 0]
            if len(at):
                with torch.backends.cudnn.flags(enabled=False):  # double precision by plain sums
                    found[at] = exact(x[at.to(x.device)].double(), *(v[at.to(v.device)] for v in (y, eps))).to(found.device)
            return found

        return bound


@dataclass(frozen=True)
class Outward(Propagating):
    """Bounds of the deployed network's float32 logits, by the way of `method`; called with float64 images only."""

    method: Any

    name = "sound"
    folded = False

    def check(self, network: Network) -> None:
        check_rounding(network)
        if self.method.name != IBP.name:
            check_relaxations(network)

    def intervals(self, network: Network, region: Region, y: Tensor) -> Tensor:
        return interval_bounds(self._start(network, region, None), y, other_classes(y, network.classes))

    def margins(self, network: Network, region: Region, y: Tensor, known: Tensor, real: int) -> Tensor:
        how: Any = self.method
        if isinstance(how, IBP):
            return known.amin(1)
        state, others = self._start(network, region, real), other_classes(y, network.classes)
        slope = "adaptive" if isinstance(how, AlphaCrown) else how.slope
        if isinstance(how, (Crown, AlphaCrown)):
            bound_nodes(state, slope)
        found = torch.maximum(known, bound_margins(state, y, others, state.relax(slope)))
        return climbed(how, state, y, others, found) if isinstance(how, AlphaCrown) else found.amin(1)

    @staticmethod
    def _start(network: Network, region: Region, real: int | None) -> State:
        """With intervals and rounding errors of all nodes."""
        state = prepare(network, region, real)
        state.errors = {}
        bound_nodes(state, None)
        return state


def interval_bounds(state: State, y: Tensor, others: Tensor) -> Tensor:
    """(N, S) lower bounds of z_y - z_j from the intervals, merged with all affine operations behind the last activations."""
    assert state.errors is not None
    logits = state.intervals[len(state.network.nodes) - 1]
    plain = logits.low.gather(1, y[:, None]) - logits.high.gather(1, others)
    ends: dict[int, Relaxed] = {number: Ends(state, number) for number in state.nonlinear}
    return torch.maximum(plain, bound_margins(state, y, others, ends))


@dataclass(frozen=True, eq=False)
class Ends:
    """A node whose values are anything in their interval: forms end here."""

    state: State
    number: int

    def pull(self, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> tuple[list[Form], Tensor]:
        """See Relaxed."""
        found, at = self.state.intervals[self.number], self.state.values[self.number]
        below, above = (form.spread((end - at).unsqueeze(1), groups) for end in (found.low, found.high))
        rows = form.rows(groups)
        return [], dot(rows.clamp(min=0), below) + dot(rows.clamp(max=0), above)
