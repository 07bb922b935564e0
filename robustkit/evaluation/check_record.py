"""run.json and summary.json against each other: one run has one question, one model, one data set, one order of stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from robustkit.errors import RobustkitError
from robustkit.report.recompute import old_rule
from robustkit.spec import digest, number
from robustkit.store import canonical_json


def check_digest(record: Mapping[str, Any]) -> Iterator[str]:
    """The specification is the one that its digest names."""
    if record.get("digest") != digest(canonical_json(record["specification"]), 32):
        yield "run.json: its specification was changed, the digest does not fit"


def check_record(record: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[str]:
    """What both say is the same, and the summary's stages are those of the specification, in their order."""
    said = record["specification"]
    yield from check_digest(record)
    for key in ("threat", "goal", "labels", "seed"):
        if summary.get(key) != said.get(key):
            yield f"summary.json: {key} is {_shown(summary.get(key))}, run.json says {_shown(said.get(key))}"
    if _budgets(summary.get("eps")) != _budgets(said.get("eps")):
        yield f"summary.json: eps is {_shown(summary.get('eps'))}, run.json says {_shown(said.get('eps'))}"
    for what, keys in (("model", ("spec", "sha256")), ("data", ("spec", "digest"))):
        for key in keys:
            mine, theirs = (dict(one.get(what) or {}).get(key) for one in (summary, said))
            if mine != theirs:
                yield f"summary.json: the {what}'s {key} is {_shown(mine)}, run.json says {_shown(theirs)}"
    yield from _stages(said["stages"], summary["stages"])


def told_of_old_rule(record: Mapping[str, Any]) -> str:
    """One line for a run that was judged by an older rule, "" for others."""
    if not old_rule(record["specification"]):
        return ""
    return (
        "judged by the old rule: a hit had to err by a margin, so adversarial examples may have been thrown away and "
        "robust accuracy is an upper bound only; the same command computes the run anew"
    )


def _stages(planned: list[Mapping[str, Any]], shown: list[Mapping[str, Any]]) -> Iterator[str]:
    """The stages in the order of the plan; a probe is shown only where it has found something, added attacks come last."""
    wanted = [(str(one["method"]), str(one["eps"])) for one in planned if one.get("mode") != "probe"]
    told = [(str(one["spec"]), str(one["eps"])) for one in shown if not str(one["name"]).endswith(" probe")]
    for place, (mine, theirs) in enumerate(zip(told, wanted)):
        if mine != theirs:
            yield (
                f"summary.json: stage {place} is {_shown(mine[0])} at {_shown(mine[1])}, "
                f"run.json has {_shown(theirs[0])} at {_shown(theirs[1])} there"
            )
            return


def _budgets(texts: Any) -> list[Any]:
    try:
        return sorted(number(str(text)) for text in texts)
    except (RobustkitError, TypeError):
        return [texts]


def _shown(value: Any) -> str:
    return ascii(value)[:100]
