"""What can be typed after `robustkit leaderboard`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Add = Callable[[Any, str, str], argparse.ArgumentParser]


def add_leaderboard(commands: Any, command: Add) -> None:
    """Add `leaderboard` with its actions, and `compare`; `command` makes one sub-command."""
    top = command(commands, "leaderboard", "boards of evidence that anybody can check, in a folder")
    actions = top.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, about: str, *, board: bool = True) -> argparse.ArgumentParser:
        one = command(actions, name, about)
        one.set_defaults(run="leaderboard")
        if board:
            one.add_argument("--board", default=".", metavar="DIR", help="the board's folder (default: the current one)")
        return one

    one = action("init", "make a new board; a changed definition becomes the next version", board=False)
    one.add_argument("path", metavar="BOARD", help="folder to make, for example boards/mnist-linf-0.3; @1, @2, ... is added")
    one.add_argument("--data", default="digits", metavar="DATA", help="the samples, for example mnist:n=1000 (default digits)")
    one.add_argument("--threat", default="linf:0.1", metavar="THREAT", help="with its budget, for example linf:0.3 (default linf:0.1)")
    one.add_argument("--suite", default="standard", help="attacks that every submission has to run at least (default standard)")
    one.add_argument("--goal", default="untargeted", help="untargeted, targeted:next or targeted:random")
    one.add_argument("--labels", default="given", help="given or predicted")
    one.add_argument("--seed", type=int, default=0, help="of all submitted runs (default 0)")
    _root(one)

    one = action("submit", "add a finished run; it is checked first, and refused with the reason")
    one.add_argument("run_folder", metavar="RUN", help="folder that robustkit evaluate --out wrote")
    one.add_argument("--name", required=True, help="what the table calls it")
    one.add_argument("--paper", default="", help="for example 'Madry et al. 2018, arXiv 1706.06083'")
    one.add_argument("--training-data", default="", metavar="TEXT", help="what the model was trained on")
    one.add_argument("--claimed", type=float, metavar="SHARE", help="robust accuracy that its authors claim, from 0 to 1")
    one.add_argument("--model", metavar="FILE", help="the model that was evaluated; needed unless it is bundled or in RUN")
    _where(one)

    one = action("verify", "check entries: digests, or every witness, or the suite again on a random subset")
    one.add_argument("entry", nargs="?", metavar="ENTRY", help="name or id (default: all)")
    one.add_argument("--level", default="evidence", choices=("files", "evidence", "rerun"), help="default evidence")
    one.add_argument("--sample", type=int, default=300, metavar="N", help="samples that a re-run draws (default 300)")
    one.add_argument("--seed", type=int, help="of the re-run, which then does not count for the rank (default: one that nobody could know)")
    one.add_argument("--time-limit", metavar="TIME", help="what one entry may take, for example 30m (default 2h)")
    one.add_argument("--most-memory", metavar="SIZE", help="what one entry may need, for example 8g (default 4g)")
    one.add_argument("--head", metavar="HASH", help="a ledger line that must still be there; shows that the end was not cut off")
    one.add_argument("--no-record", action="store_true", help="write nothing into the ledger")
    one.add_argument("--json", action="store_true", help="print JSON")
    _where(one)

    one = action("challenge", "add stronger adversarial examples for an entry; each is judged")
    one.add_argument("entry", metavar="ENTRY", help="name or id")
    one.add_argument("--witnesses", required=True, metavar="FILE|RUN", help="run folder, or safetensors with index and image or parameters")
    one.add_argument("--by", required=True, metavar="NAME", help="who found them")
    one.add_argument("--json", action="store_true", help="print JSON")
    _where(one)

    one = action("challenge-all", "run an attack on every entry; its hits become challenges")
    one.add_argument("--attack", required=True, metavar="SPEC", help="for example apgd:steps=500,restarts=5")
    one.add_argument("--by", required=True, metavar="NAME", help="who runs it")
    one.add_argument("--seed", type=int, default=0, help="default 0")
    one.add_argument("--json", action="store_true", help="print JSON")
    _where(one)

    one = action("show", "the table: re-run entries ranked, the others below")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--csv", action="store_true", help="print comma-separated values")

    one = action("site", "write a static site that needs neither server nor network")
    one.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    one.add_argument("--reports", default="auto", choices=("auto", "all", "none"), help="full reports of entries (auto: of 50 at most)")
    _data(one)
    _root(one)

    one = command(commands, "compare", "two runs or entries, sample by sample")
    one.add_argument("first", metavar="A", help="run folder, or an entry written as BOARD/NAME")
    one.add_argument("second", metavar="B", help="the same")
    one.add_argument("--eps", metavar="EPS", help="budget (default: the largest that both report)")
    one.add_argument("--json", action="store_true", help="print JSON")


def _where(one: argparse.ArgumentParser) -> None:
    one.add_argument("--allow-code", action="store_true", help="allow models and data that are code; you run it")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    _data(one)
    _root(one)


def _root(one: argparse.ArgumentParser) -> None:
    one.add_argument("--data-root", metavar="DIR", help="where data sets lie (or set ROBUSTKIT_DATA)")


def _data(one: argparse.ArgumentParser) -> None:
    one.add_argument("--data", metavar="DATA", help="the board's samples, where they are neither bundled nor in its folder")
