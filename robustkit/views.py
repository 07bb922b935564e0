"""What an attack may see of a model, by access level; every queried point is watched and counted.

A view keeps the first adversarial point of every row (or, with keep="best", the point of highest
loss), so attacks never handle success themselves and none is lost on the way. The Judge is asked at
once: a row whose point it refuses goes on, because the search's own arithmetic may have erred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustkit import streams
from robustkit.core.comparisons import within
from robustkit.memory import out_of_memory
from robustkit.methods import Rows, State
from robustkit.numerics import choose, pad_rows, padded, whole
from robustkit.surface import pooled
from robustkit.verdict.judge import Judge

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (R,K), y (R,), target (R,)) -> (R,) values to be raised."""


class View:
    """Decision access: the class of images. Score and gradient access add to it."""

    by_margin: ClassVar[bool] = True
    """With keep="best", whether points are weighed by the goal's margin; else by the attack's own loss."""

    def __init__(self, judge: Judge, keep: str = "first", bounded: bool = True) -> None:
        classifier, goal = judge.classifier, judge.goal
        self.judge, self.classifier, self.threat, self.goal = judge, classifier, judge.threat, goal
        self.keep, self.bounded = keep, bounded
        self.rows: Rows
        self.book: State = {}
        self.least = 0
        """Steps that every row has made at least, known without asking the device."""
        self.shared: dict[str, Any] = {}
        """What the attack's `prepare` made."""
        self.loss: Loss = goal.margin
        self.scaled = False
        """Whether `loss` is asked on logits times the rows' scale."""

        self.draws = classifier.surface.draws if classifier.random else 1
        """Draws of a random model that every answer is an average over; each is a query."""
        self.piece = 0
        """Images to send forward at a time, where no gradient is asked for; 0 for all of a batch."""
        self.surrogate = False
        """Whether gradients go through the surrogate that the model declares (BPDA)."""

    def open(self, rows: Rows) -> State:
        """A fresh page of the book for new rows."""
        count, device = len(rows), rows.x.device
        page = {
            "done": torch.zeros(count, dtype=torch.bool, device=device),
            "candidate": self.threat.zero(rows.x),
            "queries": torch.zeros(count, dtype=torch.int64, device=device),
            "gradients": torch.zeros(count, dtype=torch.int64, device=device),
            "verified": torch.zeros(count, dtype=torch.bool, device=device),
            "size": torch.full((count,), torch.inf, dtype=torch.float64, device=device),
            "predicted": torch.full((count,), -1, dtype=torch.int64, device=device),
        }
        if rows.x.is_cuda:
            page |= {"waiting": self.threat.zero(rows.x), "waiting_size": torch.full_like(page["size"], torch.inf)}
        if self.keep == "best":
            page |= {"highest": torch.full((count,), -torch.inf, device=device), "last": self.threat.zero(rows.x)}
        return page

    def _see(self, p: Tensor, logits: Tensor | None, near: Tensor | None = None) -> None:
        """Count a forward and keep p where it is the row's first adversarial point (of the rows that are `near`)."""
        book, rows = self.book, self.rows
        book["queries"] = book["queries"] + self._working()
        if self.keep == "best" or logits is None or (near is not None and not near.is_cuda and not bool(near.any())):
            return
        fresh = self.goal.hit(self.goal.margin(logits, rows.y, rows.target)) & ~book["done"]
        fresh = fresh if near is None else fresh & near
        if not fresh.is_cuda and not bool(fresh.any()):
            return
        if not self.bounded:
            fresh = fresh & within(self.threat.size(rows.x, p), rows.eps)
        if self.classifier.random:  # judged by hundreds of votes: once, when the attempt has ended
            self._keep("candidate", p, fresh)
            book["done"] = book["done"] | fresh
        else:
            self._offer(p, fresh, torch.zeros_like(rows.eps))

    def _working(self) -> Tensor:
        """(R,) bool: rows whose queries count. (A point that waits and is refused has cost up to three steps that do not.)"""
        working = ~self.book["done"]
        return working & torch.isinf(self.book["waiting_size"]) if "waiting" in self.book else working

    def _offer(self, p: Tensor, where: Tensor, size: Tensor) -> None:
        """Points p of the rows marked in `where` (R,) may be adversarial; `size` (R,) float64, the smaller the better.

        On the CPU the Judge is asked at once. On a device that would make the host wait for every step: there the
        best point of a row waits until the Driver calls `ask_judge`.
        """
        book = self.book
        if not where.is_cuda:
            self._take(self._confirm(p, where.nonzero()[:, 0], self.rows.eps))
            return
        better = where & (size < book["waiting_size"])
        self._keep("waiting", p, better)
        book["waiting_size"] = torch.where(better, size, book["waiting_size"])

    def ask_judge(self) -> None:
        """Ask about the points that wait."""
        if "waiting" in self.book:
            at = torch.isfinite(self.book["waiting_size"]).nonzero()[:, 0]
            self._take(self._confirm(self.book["waiting"], at, self.rows.eps))
            self.book["waiting_size"] = torch.full_like(self.book["waiting_size"], torch.inf)

    def _take(self, at: Tensor) -> None:
        """The rows at positions `at` have a confirmed adversarial point."""
        self.book["done"] = self.book["done"].index_fill(0, at, True)

    def _confirm(self, p: Tensor, at: Tensor, eps: Tensor) -> Tensor:
        """Ask the Judge about the rows at positions `at`; those it confirms within eps (R,) are in the book, and returned.

        What the Judge asks is robustkit's question, not the attacker's: the Driver counts one an attempt, for what is delivered.
        """
        if not len(at):
            return at
        book, rows = self.book, self.rows
        verified, size, logits = self.judge.confirm(rows.x[at], rows.y[at], rows.target[at], p[at], eps[at])
        found = at[verified]
        new = {"candidate": p[found], "size": size[verified], "predicted": logits.argmax(1)[verified]}
        for name, values in new.items():
            book[name] = book[name].index_copy(0, found, values)
        book["verified"] = book["verified"].index_fill(0, found, True)
        return found

    def _keep(self, name: str, p: Tensor, where: Tensor) -> None:
        if where.is_cuda or bool(where.any()):
            self.book[name] = choose(where, p, self.book[name])

    def value(self, logits: Tensor, rows: Rows) -> Tensor:
        """(R,) the loss that points are weighed by, at logits (R,K)."""
        seen = self.goal.seen(logits, rows.y)
        return self.loss(seen * rows.scale[:, None] if self.scaled else seen, rows.y, rows.target)

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

    def _keys(self, points: int) -> Tensor | None:
        """(R x points,) keys for the next draws of a random model, those of a row one after another."""
        if not self.classifier.random:
            return None
        at = torch.arange(points, device=self.rows.key.device)
        keys = streams.child(self.rows.key, self.book["queries"])
        return streams.child(keys.repeat_interleave(points), at.repeat(len(keys)))

    def _answers(self, p: Tensor, points: int) -> Tensor:
        """(R x points,K) logits at parameters p (R,points,...), those of a row one after another, averaged over the draws.

        Images are made, and go forward, in pieces that caches hold.
        """
        x, each, draws = self.rows.x, points * self.draws, self.draws
        parts = -(-len(x) * each // self.piece) if self.piece else 1
        step = padded(-(-len(x) // parts), whole(each))
        keys = self._keys(each)
        found = []
        for at in range(0, len(x), step):
            images = self.threat.apply_many(x[at : at + step], p[at : at + step])
            images = images if draws == 1 else images.repeat_interleave(draws, 0)
            drawn = None if keys is None else keys[at * each : at * each + len(images)]
            found.append(self._forwards(images, drawn))
        logits = torch.cat(found)
        return logits if draws == 1 else self._averaged(logits, draws)

    def _forwards(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """Logits of images, padded and in pieces."""
        count, padding = len(images), padded(len(images))
        images, keys = pad_rows(images, padding), None if keys is None else pad_rows(keys, padding)
        size = self.piece or padding
        parts = [slice(at, at + size) for at in range(0, padding, size)]
        logits = [self.classifier.search(images[part], None if keys is None else keys[part]) for part in parts]
        return torch.cat(logits)[:count]

    def _averaged(self, logits: Tensor, draws: int) -> Tensor:
        """(R,K) what logits (R x draws,K) under several draws say together, those of a row one after another."""
        return pooled(logits, draws) if self.classifier.surface.soft else logits.view(-1, draws, logits.shape[1]).mean(1)

    def _forward(self, p: Tensor, near: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            logits = self._answers(p[:, None], 1)
        if self.draws > 1:
            self._also((self.draws - 1) * self._working())
        self._see(p, logits, near)
        if self.by_margin and self.keep == "best":
            self._weigh(p, self.goal.margin(logits, self.rows.y, self.rows.target))
        return self.goal.seen(logits, self.rows.y)

    def _also(self, queries: Tensor) -> None:
        """Count more queries than the one that `_see` counts."""
        self.book["queries"] = self.book["queries"] + queries

    def _many(self, p: Tensor) -> Tensor:
        """(R,S,K) logits at S points a row, p (R,S,...); each row's best point by margin stands for it in the book."""
        count, points = p.shape[:2]
        rows, flat = self.rows, p.flatten(0, 1)
        y, target = (v.repeat_interleave(points) for v in (rows.y, rows.target))
        with torch.no_grad():
            logits = self._answers(p, points)
            margin = self.goal.margin(logits, y, target)
            if not self.bounded:
                x = rows.x[:, None].expand(-1, points, *rows.x.shape[1:]).flatten(0, 1)
                inside = within(self.threat.size(x, flat), rows.eps.repeat_interleave(points))
                margin = torch.where(inside, margin, -torch.inf)
            best = margin.view(count, points).argmax(1) + torch.arange(count, device=p.device) * points
        self._also((points * self.draws - 1) * self._working())
        self._see(flat[best], logits[best])
        if self.by_margin and self.keep == "best":
            self._weigh(flat[best], margin[best])
        return self.goal.seen(logits, y).view(count, points, -1)

    def decisions(self, p: Tensor, near: Tensor | None = None) -> Tensor:
        """(R,) predicted classes at p; `near` (R,) bool marks the rows that may lie within the budget, all unless said."""
        return self._forward(p, near).argmax(1)

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

    def gradient(
        self, p: Tensor, loss: Loss, through: Callable[[Tensor], Tensor] | None = None, copies: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the loss with respect to p, and the (R,) loss values at p.

        With `through`, the image passes a differentiable map first; what the model then sees is no
        candidate, and only counted. The map may make several images of every row, one after another:
        `copies` says how many, and loss and gradient are averaged over them. Over the draws of a random
        model the loss is averaged too, or taken of their mean scores where its surface is soft.
        """
        rows, points, kept = self.rows, self.draws if copies is None else copies, {}
        self.loss, self.scaled = loss, True
        soft = copies is None and points > 1 and self.classifier.surface.soft
        single = points == 1 or soft
        given = (rows.y, rows.target, rows.scale)
        y, target, scale = given if single else (v.repeat_interleave(points) for v in given)

        def objective(image: Tensor) -> Tensor:
            image = image if through is None else through(image)
            if copies is None and points > 1:
                image = image.repeat_interleave(points, 0)
            logits = self._differentiable(image)
            logits = self._averaged(logits, points) if soft else logits
            kept["logits"] = logits.detach()
            values = loss(self.goal.seen(logits, y) * scale[:, None], y, target)
            return values if single else values.view(-1, points).mean(1)

        found, values = self.threat.gradient(rows.x, p, objective)
        self.classifier.backwards += points * len(rows)
        self.book["gradients"] = self.book["gradients"] + points * self._working()
        self._also((points - 1) * self._working())
        if through is not None:
            self._see(p, None)
        else:
            self._see(p, kept["logits"] if single else kept["logits"].view(len(rows), points, -1).mean(1))
            self._weigh(p, values)
        return found.nan_to_num_(0.0, 0.0, 0.0), values

    def _differentiable(self, images: Tensor) -> Tensor:
        """Logits whose gradient, where the model declares a surrogate, is the surrogate's."""
        keys = self._keys(len(images) // len(self.rows))
        if not self.surrogate:
            return self.classifier.search(images, keys)
        with torch.no_grad():
            deployed = self.classifier.search(images, keys)
        stand_in = self.classifier.surrogate(images)
        return deployed + (stand_in - stand_in.detach())

    def jacobian(self, p: Tensor, values: Loss) -> tuple[Tensor, Tensor]:
        """Gradients of several values of the logits with respect to the image that p makes.

        `values` maps (logits (R,K), y, target) to (R,M), for which this returns ((R,M,C,H,W), (R,M)).
        One forward and M gradients, all of them in one backward where the model's operations can be
        vectorised, else one after another.
        """
        rows = self.rows
        self.loss, self.scaled = self.goal.margin, False
        with torch.enable_grad():
            image = self.threat.apply(rows.x, p).detach().requires_grad_()
            logits = self._differentiable(image)
            several = values(self.goal.seen(logits, rows.y), rows.y, rows.target)
        found = _gradients(several, image)
        count = several.shape[1]
        self.classifier.backwards += count * len(rows)
        self.book["gradients"] = self.book["gradients"] + count * self._working()
        self._see(p, logits.detach())
        self._weigh(p, self.goal.margin(logits.detach(), rows.y, rows.target))
        return found.nan_to_num_(0.0, 0.0, 0.0), several.detach()


def _gradients(several: Tensor, image: Tensor) -> Tensor:
    """(R,M,C,H,W) gradients of (R,M) values that do not depend on other rows; zero where no gradient reaches the image."""
    count = several.shape[1]
    if not several.requires_grad:
        return image.new_zeros(len(image), count, *image.shape[1:])
    try:
        return _backwards(several, image)
    except NotImplementedError:  # a Function without a backward
        return image.new_zeros(len(image), count, *image.shape[1:])


def _backwards(several: Tensor, image: Tensor) -> Tensor:
    count = several.shape[1]
    picks = torch.eye(count, dtype=several.dtype, device=image.device)[:, None].expand(-1, len(image), -1)
    try:
        (found,) = torch.autograd.grad(several, image, picks, is_grads_batched=True, retain_graph=True)
    except RuntimeError as problem:
        if out_of_memory(problem):
            raise
        found = torch.stack([torch.autograd.grad(several, image, pick, retain_graph=True)[0] for pick in picks])
    return found.transpose(0, 1)


VIEWS: dict[str, type[View]] = {"decision": View, "score": ScoreView, "gradient": GradientView}
