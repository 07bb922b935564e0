"""What can be typed. Nothing heavy is imported here, so that --help is instant."""

from __future__ import annotations

import argparse
from typing import NoReturn

from robustkit import __version__
from robustkit.cli.leaderboard_arguments import add_leaderboard
from robustkit.errors import BadInput

_MODEL = "zoo:NAME, FILE.safetensors, torchvision:NAME, package.module:callable, FILE.pt2"
_DATA = "digits, mnist, fashion-mnist, cifar10, npz:FILE, folder:DIR; options n=, split=, pick="
_EXITS = "exit codes: 0 done, 1 gate failed or contradiction, 2 bad input, 3 missing, 4 incomplete (resumable), 130 interrupted"

_VERDICTS = "exit codes: 0 all agree, 1 something disagrees, 2 bad input, 3 something could not be checked here"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see: {self.prog} --help)")


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="robustkit", description="How robust is an image classifier? certified <= true <= empirical, per sample.", epilog=_EXITS
    )
    top.add_argument("--version", action="version", version=f"robustkit {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = _command(commands, "evaluate", "bracket a model's robust accuracy with attacks and certificates")
    _subject(one)
    one.add_argument("--suite", default="standard", help="named list of stages (default standard; see: robustkit list suites)")
    one.add_argument("--attack", action="append", metavar="SPEC", help="replaces the suite, for example pgd:steps=100; repeatable")
    one.add_argument("--certifier", action="append", metavar="SPEC", help="replaces the suite's certifiers; none for none; repeatable")
    one.add_argument("--goal", default="untargeted", help="untargeted, targeted:next, targeted:random or accepted-error")
    one.add_argument("--labels", default="given", help="given, or predicted: the stability of the model's own answers")
    one.add_argument("--curve", action="store_true", help="search every sample's radius, for accuracies between the budgets")
    one.add_argument("--adaptive", default="auto", help="auto: use what the defense declares; off: attack it only as deployed")
    one.add_argument("--checks", default="auto", help="auto: the honesty checks; off: for models that take seconds an image")
    one.add_argument("--check-attack", action="store_true", help="also test the attacks on tasks with a known adversarial example")
    one.add_argument("--fail-under", type=_share, metavar="SHARE", help="exit 1 when robust accuracy is below this share")

    one = _command(commands, "certify", "prove a lower end of the bracket")
    _subject(one)
    one.add_argument("--method", action="append", metavar="SPEC", help="certifier; repeatable (default cascade: all, see suite certify)")
    one.add_argument("--curve", action="store_true", help="search every sample's largest proven radius")
    one.add_argument("--fail-under", type=_share, metavar="SHARE", help="exit 1 when certified accuracy is below this share")

    one = _command(commands, "train", "train a model with a recipe and save it as safetensors")
    one.add_argument("recipe", metavar="RECIPE", help="for example pgd:eps=0.3,epochs=4 (see: robustkit list recipes)")
    one.add_argument("--data", default="digits", help=f"{_DATA} (split=train unless said)")
    one.add_argument("--arch", metavar="NAME", help="architecture (default: fits the image size)")
    one.add_argument("--out", required=True, metavar="FILE", help="FILE.safetensors; an interrupted training resumes")
    one.add_argument("--no-evaluation", action="store_true", help="leave out the first look at held-back images")
    _shared(one)

    one = _command(commands, "reprogram", "make a frozen model do another task with one frame around its images (a study)")
    one.add_argument("model", metavar="MODEL", help=f"the victim: {_MODEL}")
    one.add_argument("--task", required=True, metavar="DATA", help=f"images smaller than the victim's: {_DATA}; or counting-squares")
    one.add_argument("--out", required=True, metavar="FILE", help="FILE.safetensors; a picture is drawn beside it")
    one.add_argument(
        "--settings", default="", metavar="LIST", help="epochs, batch, lr, decay, penalty, scale, labels; for example epochs=30,scale=2"
    )
    one.add_argument("--no-control", action="store_true", help="leave out the same training on random weights")
    one.add_argument("--allow-code", action="store_true", help="allow model files whose loaders can run code")
    one.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    _shared(one)

    one = _command(commands, "report", "one self-contained HTML file for one or several runs")
    one.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    one.add_argument("--html", required=True, metavar="FILE", help="where to write it")

    one = _command(commands, "verify", "check a run folder again, from anybody: every witness, every column, every figure")
    one.epilog = f"example: robustkit verify runs/mine --model mine.safetensors --certificates. {_VERDICTS}"
    one.add_argument("run_folder", metavar="RUN", help="folder that robustkit evaluate or certify wrote, finished or not")
    one.add_argument("--model", metavar="MODEL", help=f"the run's model, unless it is bundled or in RUN: {_MODEL}")
    one.add_argument("--data", metavar="DATA", help=f"the run's data, unless it is a known set or in RUN: {_DATA}")
    one.add_argument("--certificates", action="store_true", help="prove every certificate again (statistical ones from new draws)")
    one.add_argument("--allow-code", action="store_true", help="run the code that RUN names as its model or data: only if you trust it")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    one.add_argument("--data-root", metavar="DIR", help="where data sets lie (or set ROBUSTKIT_DATA)")
    one.add_argument("--json", action="store_true", help="print JSON")

    add_leaderboard(commands, _command)

    one = _command(commands, "list", "what is there")
    one.add_argument("what", metavar="WHAT", help="attacks, defenses, certifiers, models, data, suites, threats or recipes")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = _command(commands, "show", "a run, or one thing in full: attack:pgd, certifier:ibp, suite:standard")
    one.add_argument("what", metavar="RUN|KIND:NAME", help="a run folder, or for example suite:standard")
    one.add_argument("--threat", default="linf:0.1", help="for suites: the threat family they are shown for")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = _command(commands, "doctor", "what works on this machine, and what is missing")
    one.add_argument("--data-root", metavar="DIR", help="where data sets lie")
    one.add_argument("--json", action="store_true", help="print JSON")
    return top


def _command(commands: argparse._SubParsersAction[Parser], name: str, about: str) -> Parser:
    one = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".", epilog=_EXITS)
    one.set_defaults(run=name)
    return one


def _subject(one: Parser) -> None:
    one.add_argument("model", nargs="?", metavar="MODEL", help=f"{_MODEL} (default: a bundled small model)")
    one.add_argument("--data", metavar="DATA", help=f"{_DATA} (default digits)")
    one.add_argument("--threat", metavar="THREAT", help="for example linf:8/255 or l2:0.5 (default linf:0.1)")
    one.add_argument("--eps", metavar="LIST", help="budgets to report, for example 2/255,8/255 (default: the threat's)")
    one.add_argument("--batch-size", default="auto", metavar="N|auto", help="rows per batch; results do not depend on it")
    one.add_argument("--processes", default="auto", metavar="N|auto", help="that share an attack on the CPU; results do not depend on it")
    one.add_argument("--out", metavar="DIR", help="run folder (default: under runs/); an unfinished run resumes")
    one.add_argument("--time-limit", metavar="TIME", help="for example 30m or 2h; ends with a valid bracket, exit code 4")
    one.add_argument("--allow-code", action="store_true", help="allow model files whose loaders can run code")
    one.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    one.add_argument("--sound", action="store_true", help="certificates that also hold for float32 rounding, in any order of summation")
    _shared(one)


def _shared(one: Parser) -> None:
    one.add_argument("--seed", type=int, default=0, help="default 0")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    one.add_argument("--data-root", metavar="DIR", help="where data sets lie (or set ROBUSTKIT_DATA)")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: expected a number from 0 to 1, for example 0.4")
    return value
