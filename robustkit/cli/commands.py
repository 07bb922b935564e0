"""What the commands do: read the words, call the library, print the answer."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from robustkit.cli.leaderboard import compare as compare
from robustkit.cli.leaderboard import leaderboard as leaderboard
from robustkit.cli.listings import describe, listing_of
from robustkit.errors import BadInput, Missing


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, print the bracket, apply the gate."""
    from robustkit.engine import evaluate as run

    options = {"suite": args.suite, "attacks": args.attack, "certifiers": args.certifier, "goal": args.goal, "labels": args.labels}
    options |= {"curve": args.curve, "adaptive": args.adaptive, "sound": args.sound}
    options |= {"checks": args.checks, "check_attack": args.check_attack}
    return _answer(args, run(args.model, args.data, args.threat, **options, **_options(args)), "robust_accuracy")


def certify(args: argparse.Namespace) -> int:
    """Certify, print the bracket, apply the gate."""
    from robustkit.engine import certify as run

    methods = args.method or "cascade"
    found = run(args.model, args.data, args.threat, method=methods, curve=args.curve, sound=args.sound, **_options(args))
    return _answer(args, found, "certified_accuracy", certifiers=True)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "eps": args.eps.split(",") if args.eps is not None else None,
        "batch_size": _whole(args.batch_size),
        "processes": _whole(args.processes),
        "device": args.device,
        "seed": args.seed,
        "out": args.out,
        "time_limit": args.time_limit,
        "allow_code": args.allow_code,
        "data_root": args.data_root,
        "command": shlex.join(["robustkit", *sys.argv[1:]]),
    }


def _whole(text: str) -> int | str:
    """A whole number where the text is one; what is none is refused later, in words."""
    try:
        return int(text)
    except ValueError:
        return text


def _answer(args: argparse.Namespace, evaluation: Any, gate: str, *, certifiers: bool = False) -> int:
    from robustkit.tables import bracket_table, terminal

    summary = evaluation.summary()
    if args.json:
        print(json.dumps(summary, indent=1, allow_nan=False))
    else:
        bracket_table(summary, certifiers=certifiers)
        terminal().print(f"\nreport      {evaluation.folder / 'report.html'}\nrun folder  {evaluation.folder}")
    if evaluation.status != "complete":
        print(f"robustkit: {evaluation.status}: the bracket so far is valid; the same command goes on", file=sys.stderr)
    if evaluation.contradicted:
        print("robustkit: a witness contradicts a certificate; see the diagnostics", file=sys.stderr)
    if evaluation.exit_code or args.fail_under is None:
        return int(evaluation.exit_code)
    found, name = summary[gate], gate.replace("_", " ")
    if found is None:
        why = f"is not established ({summary['not_established']}), so that --fail-under {args.fail_under} fails"
        print(f"robustkit: {name} {why}", file=sys.stderr)
        return 1
    if found < args.fail_under:
        print(f"robustkit: {name} {found:.4f} is below --fail-under {args.fail_under}", file=sys.stderr)
        return 1
    return 0


def train(args: argparse.Namespace) -> int:
    """Train a recipe; prints where the file is and, on images that it has not seen, a first bracket."""
    from robustkit import registry

    registry.find("defense", "standard")
    from robustkit.defenses.trainer import train as run

    path = run(args.recipe, args.data, arch=args.arch, out=args.out, seed=args.seed, device=args.device, root=args.data_root)
    print(path)
    return 0 if args.no_evaluation else _first_look(args, path)


def _first_look(args: argparse.Namespace, trained: Any) -> int:
    """Evaluate what was trained with the suite quick; where nothing is held back, say so."""
    from robustkit.defenses.provenance import held_back, source
    from robustkit.defenses.recipe import load_recipe
    from robustkit.engine import evaluate as run
    from robustkit.tables import bracket_table, terminal

    question, seen = load_recipe(args.recipe).question(str(trained)), trained.metadata["data"]
    options = {"certifiers": [*question.certifiers], "device": args.device, "seed": args.seed, "data_root": args.data_root}
    try:
        unseen = held_back(seen, question.images, args.data_root)
        found = run(question.model, unseen, question.threat, suite="quick", **options)
    except (BadInput, Missing) as problem:
        print(f"robustkit: not evaluated: {problem}", file=sys.stderr)
        return 0
    bracket_table(found.summary())
    whole = ["robustkit", "evaluate", question.model, "--data", source(seen), "--threat", question.threat]
    whole += [] if question.suite == "standard" else ["--suite", question.suite]
    terminal().print(f"\nA first look, by weak attacks. For a figure to report:\n{shlex.join(whole)}", soft_wrap=True)
    return int(found.exit_code)


def reprogram(args: argparse.Namespace) -> int:
    """Train a program for a frozen model; print what it gets right and where it is."""
    from robustkit import registry
    from robustkit.tables import listing

    study = importlib.import_module(f"{registry.ROOMS['attack']}.reprogramming_study")
    found = study.reprogram(
        args.model,
        args.task,
        out=args.out,
        settings=f"reprogramming:{args.settings}" if args.settings else "reprogramming",
        control=not args.no_control,
        seed=args.seed,
        device=args.device,
        root=args.data_root,
        allow_code=args.allow_code,
    )
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        listing(f"{found['victim']['spec']} made to do {found['task']['spec']}", study.rows(found), ["what", "found"])
    return 0


def _differences(run: Any) -> None:
    """Say on stderr where the stored summary is not what the columns give; what is shown are the columns' figures."""
    told = run.disagreements()
    for text in told[:5]:
        print(f"robustkit: {run.folder} contradicts itself: {text}", file=sys.stderr)
    if told:
        more = f" ({len(told)} differences in all)" if len(told) > 5 else ""
        print(f"robustkit: a file was changed or is from another run; shown is what the columns give{more}", file=sys.stderr)


def report(args: argparse.Namespace) -> int:
    """Write one HTML report of several runs; prints where it is."""
    from robustkit.report import write_report

    folders = [Path(run) for run in args.runs]
    for folder in folders:
        if not (folder / "summary.json").exists():
            raise Missing(f"{folder} is no finished run folder: there is no summary.json; give folders made by robustkit evaluate")
    print(write_report(folders, Path(args.html)))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check a run folder again; print what disagrees and what could not be checked."""
    from robustkit.evaluation.verify import verify as run

    options = {key: getattr(args, key) for key in ("certificates", "allow_code", "device", "data_root")}
    found = run(args.run_folder, args.model, args.data, **options)
    if args.json:
        print(json.dumps(found.document(), indent=1))
        return found.exit_code
    counted = ", ".join(f"{count} {what}" for what, count in found.measured.items() if count and what != "forwards")
    state = "ok" if found.ok else "FAILED" if found.problems else "not all checked"
    print(f"{state}: {_plain(found.run)} ({counted or 'nothing'} checked)")
    told = [("", found.problems), ("not checked: ", found.unchecked), ("note: ", found.notes)]
    for kind, lines in told:
        for line in lines:
            print(f"    {kind}{_plain(line)}")
    return found.exit_code


def _plain(text: str) -> str:
    """Text that may come from a stranger, as a terminal may show it."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding or "ascii")


def list(args: argparse.Namespace) -> int:
    """Print what there is of one kind."""
    from robustkit.tables import listing

    columns, rows = listing_of(args.what)
    if args.json:
        print(json.dumps([dict(zip(columns, row)) for row in rows], indent=1))
    else:
        listing(args.what, rows, columns)
    return 0


def show(args: argparse.Namespace) -> int:
    """Print a run again, or one thing in full."""
    from robustkit.tables import bracket_table, listing

    folder = Path(args.what)
    if folder.is_dir():
        from robustkit.report.runs import load_run

        run = load_run(folder)
        summary = run.summary
        _differences(run)
        if args.json:
            print(json.dumps(summary, indent=1))
        else:
            bracket_table(summary, certifiers=True)
        return 0
    title, columns, rows = describe(args.what, args.threat)
    if args.json:
        print(json.dumps([dict(zip(columns, row)) for row in rows], indent=1))
    else:
        listing(title, rows, columns)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Print what works here and what is missing, each with its cure."""
    from dataclasses import asdict

    from robustkit.doctor import examine
    from robustkit.tables import listing

    checks = [asdict(check) for check in examine(args.data_root)]
    if args.json:
        print(json.dumps(checks, indent=1))
    else:
        listing("doctor", [[c["name"], c["status"], c["detail"], c["cure"]] for c in checks], ["what", "status", "found", "cure"])
    return 0
