"""What is imported after the first screen stands, and by whom: only the main thread imports.

Two threads that import at the same time wait for each other's module locks. Packages that import
themselves in circles (numpy does) then end in `_DeadlockError`, and so would the app. So a thread
is handed functions whose modules are there already: those of the thread that reads the runs before
it starts, all others before any screen but the first is made. The one exception is a library that
no other thread ever imports, and only where a person names a file that needs it (pyarrow,
datasets).
"""

from __future__ import annotations

import importlib
import sys

FOR_READING_RUNS = (
    "yaml",
    "encodings.utf_8_sig",
    "ondevice.config.load",
    "ondevice.config.recipe",
    "ondevice.preferences.database",
    "ondevice.runs.trash",
    "ondevice.runs.rename",
    "ondevice.runs.differences",
)
# In the order in which a person may want them. Each is imported between two keys: none takes long
# by itself.
AHEAD = (
    *FOR_READING_RUNS,
    "ondevice_tui.screens.train",
    "ondevice_tui.screens.ladder",
    "ondevice_tui.screens.new_run",
    "ondevice_tui.screens.start",
    "ondevice_tui.screens.confirm",
    "ondevice_tui.screens.run_cards",
    "ondevice_tui.screens.help",
    "numpy",
    "numpy.random",
    "numpy.ma",
    "email.parser",  # by which importlib.metadata reads our version, for each vote
    "ondevice_tui.screens.rewards",
    "ondevice.config.corpus",
    "ondevice.data.builtin",
    "ondevice.data.formats",
    "ondevice.data.rows",
    "ondevice.inference.pair_sampling",
    "ondevice.preferences.history",
    "ondevice.preferences.rating_queue",
    "ondevice.preferences.own_keys",
    "ondevice_tui.screens.rate",
    "ondevice.inference.conversations",
    "ondevice_tui.screens.chat",
    "ondevice_tui.screens.push",
    "ondevice_tui.screens.choose_model",
    "ondevice_tui.screens.choose_chat",
    "ondevice_tui.screens.sample_pairs",
    "ondevice_tui.screens.vote_statistics",
    "ondevice_tui.screens.review",
    "ondevice.config.verbs",
    "ondevice.seam.doctor",
    "ondevice.preferences.pairs",
    "ondevice.preferences.agreement",
    "ondevice.preferences.strengths",
    "ondevice.preferences.vote_statistics",
    "ondevice.preferences.import_rows",
    "ondevice.preferences.exported_votes",
    "ondevice.preferences.import_export",
    "ondevice.rating_rounds.standing",
    "ondevice.rating_rounds.process",
    "ondevice_tui.screens.rounds",
    "ondevice.reports.results",
    "ondevice.reports.report",
)


def waiting() -> list[str]:
    """What is still to be imported."""
    return [name for name in AHEAD if name not in sys.modules]


def load(*names: str) -> None:
    """Imports these modules. For the main thread only; costs nothing where they are there."""
    for name in names:
        importlib.import_module(name)


def load_all() -> None:
    """Imports all that is still to be imported: before a screen is made that may start threads."""
    load(*AHEAD)
