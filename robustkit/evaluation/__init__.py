"""From question to answer, and back: one run, and the checks of a run that somebody else has made."""
