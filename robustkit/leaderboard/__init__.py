"""Leaderboards: folders of evidence that anybody can check. See `Leaderboard`."""

from robustkit.leaderboard.board import Leaderboard
from robustkit.leaderboard.comparing import compare

__all__ = ["Leaderboard", "compare"]
