"""The model as an attack with a loop of its own sees it: counted, by access level, every point looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustkit.core.comparisons import within
from robustkit.driver import Stop
from robustkit.methods import Attack, Rows
from robustkit.verdict.judge import Judge
from robustkit.views import GradientView

_INSIDE = 1e-6
"""How far rounding may carry a queried value out of [0,1]; the Judge sees it clamped."""


class Ended(Exception):
    """Nothing is left to find: ends the attack's loop."""


class Watch(GradientView):
    """The model as one block's attack sees it: (n,C,H,W) images in, (n,K) logits out.

    Images are the block's rows in order; any number of them where there is one row. With access
    `score` the logits have no gradient, with `decision` they are 1 for the predicted class, else 0;
    others come multiplied by the rows' scale, since many loops follow cross-entropy.
    """

    def __init__(self, attack: Attack, judge: Judge, rows: Rows, live: int, stop: Stop, tick: Callable[[int], None]) -> None:
        super().__init__(judge, bounded=False)
        self.attack, self.rows, self.stop, self.tick = attack, rows, stop, tick
        self.book = self.open(rows)
        self.book["done"] |= torch.arange(len(rows), device=rows.x.device) >= live
        self.book["nearest"] = torch.full_like(rows.eps, torch.inf)

    def __call__(self, images: Tensor) -> Tensor:
        self.tick(0)
        book, draws, points = self.book, self.draws, len(images) // len(self.rows)
        if points * len(self.rows) != len(images) or (points != 1 and len(self.rows) != 1):
            raise ValueError(f"{self.attack.name} asked for {len(images)} images with {len(self.rows)} rows at work")
        tracked = self.attack.access == "gradient" and images.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(tracked):
            logits = self._differentiable(images if draws == 1 else images.repeat_interleave(draws, 0))
            answers = logits if draws == 1 else logits.view(-1, draws, logits.shape[1]).mean(1)

        def backward(gradient: Tensor) -> None:
            self.classifier.backwards += len(gradient)
            book["gradients"] += points * draws * ~book["done"]

        if logits.requires_grad:
            logits.register_hook(backward)  # type: ignore[no-untyped-call]
        book["queries"] += points * draws * ~book["done"]
        self._weigh_all(images.detach(), answers.detach())
        if self.attack.access == "decision":
            answers = torch.nn.functional.one_hot(answers.argmax(1), answers.shape[1]).to(answers.dtype)
            return self.goal.seen(answers, self.rows.y.expand(len(images)))
        return self.goal.seen(answers, self.rows.y.expand(len(images))) * self.rows.scale.expand(len(images))[:, None]

    def _weigh_all(self, images: Tensor, logits: Tensor) -> None:
        """Keep the nearest adversarial point of every row; raises Ended when all rows are done."""
        rows, book = self.rows, self.book
        owner = torch.arange(len(rows), device=images.device).expand(len(images))
        hit = self.goal.hit(self.goal.margin(logits, rows.y[owner], rows.target[owner]))
        at = (hit & ~book["done"][owner]).nonzero()[:, 0]
        if not len(at):
            return
        image, x = images[at], rows.x[owner[at]]
        size = self.threat.size(x, image - x)
        size[~((image >= -_INSIDE) & (image <= 1 + _INSIDE)).flatten(1).all(1)] = torch.inf
        if len(rows) == 1:
            best = size.argmin()[None]
            at, image, x, size = at[best], image[best], x[best], size[best]
        nearer = size < book["nearest"][owner[at]]
        where = owner[at][nearer]
        if self.classifier.random:  # judged by hundreds of votes: once, when the loop has ended
            book["nearest"][where], book["candidate"][where] = size[nearer], (image - x)[nearer]
        else:
            changes = torch.zeros_like(rows.x).index_copy(0, where, (image - x)[nearer])
            found = self._confirm(changes, where, torch.full_like(rows.eps, torch.inf))
            book["nearest"][found] = book["size"][found]
        if self.stop == "first":
            book["done"] |= within(book["nearest"], rows.eps)
            if bool(book["done"].all()):
                raise Ended
