"""What an attack may see of a model, by access level; every queried point is watched and counted.

A view keeps the first adversarial point of every row (or, with keep="best", the point of highest
loss), so attacks never handle success themselves and none is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustkit.classifier import Classifier
from robustkit.goals import Goal
from robustkit.methods import Rows, State
from robustkit.numerics import clear_margin, pad_rows, padded, within
from robustkit.threats import Threat

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (R,K), y (R,), target (R,)) -> (R,) values to be raised."""


class View:
    """Decision access: the class of images. Score and gradient access add to it."""

    by_margin: ClassVar[bool] = True
    """With keep="best", whether points are weighed by the goal's margin; else by the attack's own loss."""

    def __init__(self, classifier: Classifier, threat: Threat, goal: Goal, keep: str = "first", bounded: bool = True) -> None:
        self.classifier, self.threat, self.goal, self.keep, self.bounded = classifier, threat, goal, keep, bounded
        self.rows: Rows
        self.book: State = {}
        self.shared: dict[str, Any] = {}
        """What the attack's `prepare` made."""
        self.loss: Loss = goal.margin

    def open(self, rows: Rows) -> State:
        """A fresh page of the book for new rows."""
        count, device = len(rows), rows.x.device
        page = {
            "done": torch.zeros(count, dtype=torch.bool, device=device),
            "candidate": self.threat.zero(rows.x),
            "queries": torch.zeros(count, dtype=torch.int64, device=device),
            "gradients": torch.zeros(count, dtype=torch.int64, device=device),
        }
        if self.keep == "best":
            page |= {"highest": torch.full((count,), -torch.inf, device=device), "last": self.threat.zero(rows.x)}
        return page

    def _see(self, p: Tensor, logits: Tensor | None) -> None:
        """Count a forward and keep p where it is the row's first adversarial point."""
        book, rows = self.book, self.rows
        book["queries"] = book["queries"] + ~book["done"]
        if self.keep == "best" or logits is None:
            return
        margin = self.goal.margin(logits, rows.y, rows.target)
        fresh = (margin >= 2 * clear_margin(logits)) & ~book["done"]
        if not self.bounded:
            fresh = fresh & within(self.threat.size(rows.x, p), rows.eps)
        self._keep("candidate", p, fresh)
        book["done"] = book["done"] | fresh

    def _keep(self, name: str, p: Tensor, where: Tensor) -> None:
        if where.is_cuda or bool(where.any()):
            self.book[name] = torch.where(where.view(-1, *[1] * (p.dim() - 1)), p, self.book[name])

    def _weigh(self, p: Tensor, values: Tensor) -> None:
        """With keep="best": p is the candidate where its loss is the row's highest so far."""
        if self.keep == "best":
            higher = (values > self.book["highest"]) & ~self.book["done"]
            self._keep("candidate", p, higher)
            self.book["highest"] = torch.where(higher, values, self.book["highest"])

    def finish(self, p: Tensor, over: Tensor) -> None:
        """Rows `over` end here: their last point is the candidate where nothing was found before."""
        ending = over & ~self.book["done"]
        self._keep("last" if self.keep == "best" else "candidate", p, ending)
        self.book["done"] = self.book["done"] | ending

    def _forward(self, p: Tensor) -> Tensor:
        with torch.no_grad():
            images = self.threat.apply(self.rows.x, p)
            logits = self.classifier.search(pad_rows(images, padded(len(images))))[: len(images)]
        self._see(p, logits)
        if self.by_margin:
            self._weigh(p, self.goal.margin(logits, self.rows.y, self.rows.target))
        return logits

    def _many(self, p: Tensor) -> Tensor:
        """(R,S,K) logits at S points a row, p (R,S,...); each row's best point by margin stands for it in the book."""
        count, points = p.shape[:2]
        rows, flat = self.rows, p.flatten(0, 1)
        y, target = (v.repeat_interleave(points) for v in (rows.y, rows.target))
        with torch.no_grad():
            x = rows.x[:, None].expand(-1, points, *rows.x.shape[1:]).flatten(0, 1)
            images = self.threat.apply(x, flat)
            logits = self.classifier.search(pad_rows(images, padded(len(images))))[: len(images)]
            margin = self.goal.margin(logits, y, target)
            if not self.bounded:
                inside = within(self.threat.size(x, flat), rows.eps.repeat_interleave(points))
                margin = torch.where(inside, margin, -torch.inf)
            best = margin.view(count, points).argmax(1) + torch.arange(count, device=p.device) * points
        asked = self.book["queries"] + points * ~self.book["done"]
        self._see(flat[best], logits[best])
        if self.by_margin:
            self._weigh(flat[best], margin[best])
        self.book["queries"] = asked
        return logits.view(count, points, -1)

    def decisions(self, p: Tensor) -> Tensor:
        """(R,) predicted classes at p."""
        return self._forward(p).argmax(1)

    def many_decisions(self, p: Tensor) -> Tensor:
        """(R,S) predicted classes at S points a row, p (R,S,...)."""
        return self._many(p).argmax(2)


class ScoreView(View):
    """Adds the logits."""

    def scores(self, p: Tensor) -> Tensor:
        """(R,K) logits at p."""
        return self._forward(p)

    def many(self, p: Tensor) -> Tensor:
        """(R,S,K) logits at S points a row, p (R,S,...), in one forward; counts S queries a row."""
        return self._many(p)


class GradientView(ScoreView):
    """Adds input gradients; a gradient is one forward and one backward."""

    by_margin = False

    def gradient(self, p: Tensor, loss: Loss, through: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Gradient of the loss with respect to p, and the (R,) loss values at p.

        With `through`, the image passes a differentiable map first; what the model then sees is no
        candidate, and only counted.
        """
        rows, kept = self.rows, {}
        self.loss = loss

        def objective(image: Tensor) -> Tensor:
            logits = self.classifier.search(image if through is None else through(image))
            kept["logits"] = logits.detach()
            return loss(logits, rows.y, rows.target)

        found, values = self.threat.gradient(rows.x, p, objective)
        self.classifier.backwards += len(rows)
        self.book["gradients"] = self.book["gradients"] + ~self.book["done"]
        self._see(p, kept["logits"] if through is None else None)
        if through is None:
            self._weigh(p, values)
        return found.nan_to_num_(0.0, 0.0, 0.0), values

    def averaged(self, p: Tensor, loss: Loss, through: Callable[[Tensor], Tensor], draws: int) -> tuple[Tensor, Tensor]:
        """As `gradient`, averaged over `draws` images of every row, all in one forward.

        `through` maps images (R,...) to (R x draws,...), those of a row one after another. Counts as
        many queries and gradients; none of the images is a candidate.
        """
        rows = self.rows
        self.loss = loss
        y, target = (v.repeat_interleave(draws) for v in (rows.y, rows.target))

        def objective(image: Tensor) -> Tensor:
            return loss(self.classifier.search(through(image)), y, target).view(len(rows), draws).mean(1)

        found, values = self.threat.gradient(rows.x, p, objective)
        self.classifier.backwards += draws * len(rows)
        asked = draws * ~self.book["done"]
        self.book["queries"], self.book["gradients"] = self.book["queries"] + asked, self.book["gradients"] + asked
        return found.nan_to_num_(0.0, 0.0, 0.0), values


VIEWS: dict[str, type[View]] = {"decision": View, "score": ScoreView, "gradient": GradientView}
