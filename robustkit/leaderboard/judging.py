"""Judging claimed witnesses, as the board's modules import it; the code stands in evaluation, which knows no board."""

from robustkit.evaluation.judge_witnesses import judge_rows as judge_rows
from robustkit.evaluation.judge_witnesses import parameters_of as parameters_of
