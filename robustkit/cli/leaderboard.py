"""`robustkit leaderboard ...` and `robustkit compare`: read the words, call the library, print the answer."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from robustkit.errors import Missing, RobustkitError
from robustkit.report.wording import SPACE, percent

if TYPE_CHECKING:
    from robustkit.leaderboard import Leaderboard
    from robustkit.leaderboard.challenge import Judged
    from robustkit.leaderboard.standings import Standing


def leaderboard(args: argparse.Namespace) -> int:
    """Run one of the board's commands."""
    return int(_ACTIONS[args.action](args))


def _board(args: argparse.Namespace) -> Leaderboard:
    from robustkit.leaderboard import Leaderboard

    return Leaderboard(args.board, data=getattr(args, "data", None))


def _say(name: str) -> None:
    print(f"  {name!a}" if not name.isprintable() else f"  {name}", file=sys.stderr)


def _where(args: argparse.Namespace) -> dict[str, Any]:
    return {"device": args.device, "data_root": args.data_root, "allow_code": args.allow_code}


def _init(args: argparse.Namespace) -> int:
    from robustkit.leaderboard import Leaderboard

    options = {"suite": args.suite, "seed": args.seed, "goal": args.goal, "labels": args.labels, "data_root": args.data_root}
    board = Leaderboard.create(args.path, data=args.data, threat=args.threat, **options)
    print(board.path)
    return 0


def _submit(args: argparse.Namespace) -> int:
    about = {"paper": args.paper, "training_data": args.training_data, "claimed": args.claimed, "model": args.model}
    entry = _board(args).submit(args.run_folder, name=args.name, **about, **_where(args))
    print(entry.id)
    return 0


def _verify(args: argparse.Namespace) -> int:
    board, options = _board(args), {}
    if args.level == "rerun":
        options = {"sample": args.sample, "seed": args.seed, "time_limit": args.time_limit}
    found = board.verify(args.entry, level=args.level, head=args.head, record=not args.no_record, tick=_say, **options, **_where(args))
    if args.json:
        print(json.dumps([vars(one) | {"ok": one.ok} for one in found], indent=1))
    else:
        for one in found:
            what = one.name if not one.entry else f"{one.name} ({one.entry[:10]})"
            print(f"{'ok     ' if one.ok else 'FAILED ' if one.problems else 'not checked '}{what}{_measured(one.measured)}")
            for problem in one.problems:
                print(f"    {problem}")
            if one.missing:
                print(f"    {one.missing}")
        with contextlib.suppress(RobustkitError):  # said above
            print(f"ledger {board.ledger().head}")
    if any(one.problems for one in found):
        return 1
    return Missing.exit_code if any(one.missing for one in found) else 0


def _measured(told: dict[str, Any]) -> str:
    if "rerun" in told:
        again = told["rerun"]
        words = f"{again['hits']} of {again['robust']} unbroken samples broke in the re-run of {again['sample']}"
        return f": {words}; hidden at most {percent(again['bound'])} (95 %); {again['certificates']} certificates computed again"
    return f": {told['witnesses']} witnesses judged, {told['passes']} forward passes over the data" if "passes" in told else ""


def _challenge(args: argparse.Namespace) -> int:
    found = _board(args).challenge(args.entry, args.witnesses, by=args.by, **_where(args))
    _judged([found], args.json)
    return 0 if found.accepted else 1


def _challenge_all(args: argparse.Namespace) -> int:
    found = _board(args).challenge_all(args.attack, by=args.by, seed=args.seed, tick=_say, **_where(args))
    _judged(found, args.json)
    return 0


def _judged(found: list[Judged], as_json: bool) -> None:
    from robustkit.tables import listing

    if as_json:
        print(json.dumps([vars(one) for one in found], indent=1).replace("NaN", "null"))
        return
    columns = ["entry", "tried", "accepted", "best known before", "after", "not accepted"]
    rows = []
    for one in found:
        why = one.note or "; ".join(f"{count} {reason}" for reason, count in one.refused.items())
        rows.append([one.name, one.tried, one.accepted, percent(one.before), percent(one.after), why])
    listing("challenge", rows, columns)


def _show(args: argparse.Namespace) -> int:
    from robustkit.leaderboard.standings import as_csv, as_json

    board = _board(args)
    rows = board.standings()
    if args.json:
        print(as_json(board, rows))
    elif args.csv:
        print(as_csv(rows), end="")
    else:
        _table(board, rows)
    return 0


def _table(board: Leaderboard, rows: list[Standing]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from robustkit.tables import terminal

    n, told, console = board.definition.n, board.definition, terminal()
    console.print(Text(f"{told.title}: {told.data['spec']}, threat {told.threat}, suite {told.suite}", style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=16)
    for name in ("clean", "certified", "best\nknown", "suite", "claimed"):
        table.add_column(name, justify="right", min_width=7)
    for name in ("state", "checks", "surface", "id"):
        table.add_column(name, no_wrap=name != "checks", min_width=6)
    for one in rows:
        shares = (percent(share, n).replace(SPACE, " ") for share in (one.clean, one.certified, one.best_known, one.suite, one.claimed))
        words = (one.name, *shares, one.state, one.diagnostics, one.surface, one.id[:6])
        table.add_row("" if one.rank is None else str(one.rank), *(Text(_plain(word, console.encoding)) for word in words))
    console.print(table)
    for one in rows:
        if one.problem:
            console.print(Text(f"{one.name!a}: {one.problem}"))
    for one in rows:
        if _proven(one):
            console.print(Text(_plain(f"{one.name}: {_proven(one)}", console.encoding), style="dim"))
    left = sum(one.rank is None for one in rows)
    if left:
        console.print(Text(f"{left} unranked: robustkit leaderboard verify --level rerun --board {board.path}"))


def _plain(text: str, encoding: str) -> str:
    """What the stream can carry."""
    return text.encode(encoding, "replace").decode(encoding)


def _proven(one: Standing) -> str:
    """What stands behind the figures, where there is something to say."""
    parts = [f"certificates {one.guarantee}"] if one.guarantee else []
    if one.hidden_at_most is not None:
        parts.append(
            f"re-run: at most {percent(one.hidden_at_most).replace(SPACE, ' ')} of the unbroken samples would break in the suite (95 %)"
        )
    if one.challengers:
        parts.append(f"challenged by {', '.join(one.challengers)}")
    return "; ".join(parts)


def _site(args: argparse.Namespace) -> int:
    print(_board(args).site(args.out, data_root=args.data_root, reports=args.reports))
    return 0


_ACTIONS = {
    "init": _init,
    "submit": _submit,
    "verify": _verify,
    "challenge": _challenge,
    "challenge-all": _challenge_all,
    "show": _show,
    "site": _site,
}


def compare(args: argparse.Namespace) -> int:
    """Compare two runs or entries."""
    from robustkit.leaderboard.comparing import compare as run
    from robustkit.tables import listing, terminal

    found = run(args.first, args.second, eps=args.eps)
    if args.json:
        print(json.dumps(found.document(), indent=1))
        return 0
    n = found.paired
    pairs = (("clean", found.clean), ("robust", found.robust), ("certified", found.certified))
    rows = [[what, *(percent(value, n) for value in pair)] for what, pair in pairs]
    if any(found.caution):
        rows.insert(2, ["robust is", *(words or "checked" for words in found.caution)])
        rows.insert(3, ["robust at most", *(percent(value, n) for value in found.robust_at_most)])
    rows.append(["robust here only", str(found.only_first), str(found.only_second)])
    listing(f"{n} paired samples at eps {found.eps}", rows, ["", found.first, found.second])
    told = (
        "the brackets are disjoint"
        if found.overlap is None
        else f"the brackets overlap from {percent(found.overlap[0], n)} to {percent(found.overlap[1], n)}"
    )
    terminal().print(f"McNemar p = {found.p_value:.3g}; {told}.\n{found.verdict}.")
    return 0
