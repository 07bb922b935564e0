"""`robustkit leaderboard ...` and `robustkit compare`: read the words, call the library, print the answer."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from robustkit.core.plain_text import harmless
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
    print(f"  {harmless(name)}", file=sys.stderr)


def _keep(board: Leaderboard, as_json: bool = False) -> None:
    """The head of the ledger, which alone can show later that nothing was cut off its end."""
    print(f"keep the ledger's head, for verify --head: {board.ledger().head}", file=sys.stderr if as_json else sys.stdout)


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
    board = _board(args)
    entry = board.submit(args.run_folder, name=args.name, **about, **_where(args))
    print(entry.id)
    _keep(board)
    return 0


def _verify(args: argparse.Namespace) -> int:
    board, options = _board(args), {}
    if args.level == "rerun":
        options = {"sample": args.sample, "seed": args.seed}
    options |= {"time_limit": args.time_limit, "most_memory": args.most_memory}
    found = board.verify(args.entry, level=args.level, head=args.head, record=not args.no_record, tick=_say, **options, **_where(args))
    if args.json:
        print(json.dumps([vars(one) | {"ok": one.ok} for one in found], indent=1))
    else:
        for one in found:
            what = one.name if not one.entry else f"{one.name} ({one.entry[:10]})"
            print(harmless(f"{'ok     ' if one.ok else 'FAILED ' if one.problems else 'not checked '}{what}{_measured(one.measured)}"))
            again = one.measured.get("rerun", {})
            by_hand = [] if again.get("counts", True) else ["its seed was given by hand: it does not count for the rank"]
            notes = by_hand + [f"{check['status']}: {check['check']}: {check['message']}" for check in again.get("checks", [])]
            for line in (*one.problems, *([one.missing] if one.missing else []), *again.get("left_out", []), *notes):
                print(harmless(f"    {line}"))
    with contextlib.suppress(RobustkitError):  # said above
        head = board.ledger().head
        told = f"ledger {head}"
        if args.head is None:
            told = f"without --head nobody can see whether the ledger's end was cut off; keep this head for the next time: {head}"
        print(told, file=sys.stderr if args.json else sys.stdout)
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
    board = _board(args)
    found = board.challenge(args.entry, args.witnesses, by=args.by, **_where(args))
    _judged([found], args.json)
    _keep(board, args.json)
    return 0 if found.accepted else 1


def _challenge_all(args: argparse.Namespace) -> int:
    board = _board(args)
    found = board.challenge_all(args.attack, by=args.by, seed=args.seed, tick=_say, **_where(args))
    _judged(found, args.json)
    _keep(board, args.json)
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

    from robustkit.leaderboard.standings import CAUTION
    from robustkit.tables import terminal

    n, told, console = board.definition.n, board.definition, terminal()

    def plain(text: str) -> Text:
        """What the stream can carry, and no terminal obeys."""
        return Text(harmless(text).replace(SPACE, " ").encode(console.encoding, "replace").decode(console.encoding))

    console.print(Text(f"{told.title}: {told.data['spec']}, threat {told.threat}, suite {told.suite}", style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=14)
    for name in ("robust\nat least", "attacked\nagain", "sub-\nmitted", "best\nknown", "clean", "certi-\nfied"):
        table.add_column(name, justify="right", min_width=7)
    for name in ("state", "checks", "id"):
        table.add_column(name, no_wrap=name != "checks", min_width=6)
    for one in rows:
        again = "–" if one.attacked_again is None else f"{one.attacked_again} of {one.called_robust}"
        shares = [percent(share, n) for share in (one.robust_at_least, one.suite, one.best_known, one.clean, one.certified)]
        words = (one.name, shares[0], again, *shares[1:], one.state, one.diagnostics or "–", one.id[:6])
        table.add_row("" if one.rank is None else str(one.rank), *(plain(word) for word in words))
    console.print(table)
    for one in rows:
        for line in (one.problem, one.note, _proven(one, n)):
            if line:
                console.print(plain(f"{one.name}: {line}"), style="dim")
    left = sum(one.rank is None for one in rows)
    if left:
        console.print(plain(f"{left} unranked: robustkit leaderboard verify --level rerun --board {board.path}"))
    console.print(plain(CAUTION), style="dim")


def _proven(one: Standing, n: int) -> str:
    """What stands behind the figures, where there is something to say."""
    parts = [f"certificates {one.guarantee}"] if one.guarantee else []
    for kind, share in (("statistically", one.certified_statistical), ("conditionally", one.certified_conditional)):
        parts += [f"{percent(share, n)} certified {kind}"] if share else []
    if one.hidden_at_most is not None:
        parts.append(f"re-run: at most {percent(one.hidden_at_most)} of the samples not attacked again would break in the suite (95 %)")
    parts += [f"surface {one.surface}"] if one.surface == "declared" else []
    parts += [f"its authors claim {percent(one.claimed, n)}, unchecked"] if one.claimed is not None else []
    parts += [f"challenged by {', '.join(one.challengers)}"] if one.challengers else []
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
    terminal().print(f"McNemar p = {found.p_value:.3g}; {told}.\n{harmless(found.verdict)}.")
    return 0
