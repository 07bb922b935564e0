"""Whether a run is an answer to the board's question: the same data, threat, goal and seed, and the attacks that are demanded."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from robustkit import registry
from robustkit.errors import RobustkitError
from robustkit.leaderboard.subject import Subject
from robustkit.spec import number, parse
from robustkit.threats import load_threat


def question(record: dict[str, Any], summary: dict[str, Any], subject: Subject) -> Iterator[str]:
    """What keeps a run from being an answer to the board's question."""
    board, told_ = subject.definition, record["specification"]
    if record["status"] != "complete":
        yield f"the run is {record['status']!a}: only complete runs count; the same robustkit evaluate command completes it"
    for entry in summary["diagnostics"]:
        if entry["check"] == "contradiction" or (entry["check"] == "repeatable" and entry["status"] == "error"):
            yield f"the run is not sound: {entry['message'][:200]}"
    try:
        same = load_threat(told_["threat"]).family == board.load_threat().family
    except RobustkitError:
        same = False
    if not same or number_of(told_["eps"]) != number(board.eps):
        asked = f"{told_['threat'][:80]} with budgets {', '.join(told_['eps'])[:80]}"
        yield f"the run is about {asked}, the board about {board.threat}: evaluate with --threat {board.threat}"
    if told_["data"]["digest"] != board.data["digest"]:
        yield f"the run is about other data ({told_['data']['spec'][:80]}): evaluate on {board.data['spec']}"
    for key in ("goal", "labels", "seed"):
        if told_[key] != getattr(board, key):
            yield f"{key} is {told_[key]!a}, the board's is {getattr(board, key)!a}"
    yield from floor(record, summary, subject)


def floor(record: dict[str, Any], summary: dict[str, Any], subject: Subject) -> Iterator[str]:
    """Attacks that the board demands and the run has not run to their end."""
    named = [(str(stage["method"]), stage) for stage in record["specification"]["stages"] if stage["mode"] == "settle"]
    ended = [stage["spec"] for stage in summary["stages"] if stage["complete"] and stage["kind"] == "attack"]
    for attack, version in subject.definition.attacks(subject.classifier.classes or 0):
        wanted = str(attack.spec)
        ran = [
            stage["version"]
            for text, stage in named
            if _same_attack(text, wanted) and number_of([stage["eps"]]) == number(subject.definition.eps)
        ]
        if not ran:
            yield f"the attack {wanted} was not run: the board demands suite {subject.definition.suite}"
        elif max(ran) < version:
            yield f"the attack {wanted} was run in version {max(ran)}, the board demands {version}: evaluate again"
        elif not any(_same_attack(text, wanted) for text in ended):
            yield f"the attack {wanted} was not run to its end"


def _same_attack(text: str, wanted: str) -> bool:
    """Whether two specifications mean one attack; one that the board does not know by name is not even made."""
    try:
        return text == wanted or (parse(text).name == parse(wanted).name and str(registry.make("attack", text).spec) == wanted)
    except RobustkitError:
        return False


def number_of(texts: list[str]) -> Fraction | None:
    """The largest budget of a run, None where there is none."""
    try:
        return max(number(text) for text in texts)
    except (ValueError, RobustkitError):
        return None
