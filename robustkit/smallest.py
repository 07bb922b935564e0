"""Minimum-norm runs of row attacks: every attempt to its end, keeping the smallest witness met."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.comparisons import within
from robustkit.driver import Driver
from robustkit.methods import Rows, State
from robustkit.views import GradientView, ScoreView, View


class _Nearest(View):
    """Keeps the smallest adversarial point of every row, and goes on."""

    def open(self, rows: Rows) -> State:
        nearest = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.x.device)
        return super().open(rows) | {"nearest": nearest}

    def _see(self, p: Tensor, logits: Tensor | None, near: Tensor | None = None) -> None:
        book, rows = self.book, self.rows
        book["queries"] = book["queries"] + self._working()
        if logits is None:
            return
        hit = self.goal.hit(self.goal.margin(logits, rows.y, rows.target)) & ~book["done"]
        hit = hit if near is None else hit & near
        if not hit.is_cuda and not bool(hit.any()):
            return
        size = self.threat.size(rows.x, p)
        nearer = hit & within(size, rows.eps) & (size < book["nearest"])
        if self.classifier.random:  # judged by hundreds of votes: once, when the attempt has ended
            self._keep("candidate", p, nearer)
            book["nearest"] = torch.where(nearer, size, book["nearest"])
        else:
            self._offer(p, nearer, size)

    def _working(self) -> Tensor:
        return ~self.book["done"]

    def _take(self, at: Tensor) -> None:
        self.book["nearest"] = self.book["nearest"].index_copy(0, at, self.book["size"][at])

    def finish(self, p: Tensor, over: Tensor) -> None:
        ending = over & ~self.book["done"]
        self._keep("candidate", p, ending & torch.isinf(self.book["nearest"]))
        self.book["done"] = self.book["done"] | ending


class _NearestScore(_Nearest, ScoreView):
    pass


class _NearestGradient(_Nearest, GradientView):
    pass


_VIEWS: dict[str, type[View]] = {"decision": _Nearest, "score": _NearestScore, "gradient": _NearestGradient}


class SmallestDriver(Driver):
    """A Driver with stop="smallest": no attempt ends at its first hit, and the smallest witness of all is delivered."""

    views = _VIEWS

    def _rank(self, size: Tensor) -> Tensor:
        """The smaller, the better."""
        return -size
