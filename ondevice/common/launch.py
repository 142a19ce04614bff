"""Runs one of our modules as a program: `python -P launch.py MODULE WORDS…`, as `processes.py`
starts every Python.

With -P nothing is imported from the working folder, whatever lies there (`yaml.py`, `numpy.py`). A
checkout that is not installed would then not be found either: `keep_own_packages` finds our own
packages where this file lies, and nothing else there.

Run by its path, before anything of ours can be imported: it uses the standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = ("ondevice", "ondevice_torch", "ondevice_mlx", "ondevice_tui")


class OwnPackages:
    """Finds our packages beside this one: in one folder once they are installed, in three of a
    checkout.
    """

    folders = [os.path.join(CHECKOUT, part) for part in ("", "backends", "tui")]

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every other name, and for a package that is not beside this one: the usual
        search goes on.
        """
        if name in PACKAGES:
            return PathFinder.find_spec(name, cls.folders)
        return None


def keep_own_packages() -> None:
    """From now on our packages come from where this file lies, whatever the search path says."""
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)


def leave_working_folder() -> None:
    """What `-P` does, for a process that was started without it: the working folder is searched no
    more.

    For a program started with `-m`, whose search path begins with that folder.
    """
    if not sys.flags.safe_path:
        keep_own_packages()
        del sys.path[0]


def main() -> None:
    """Runs the module that the first word names, with the words behind it."""
    import runpy

    module = sys.argv.pop(1)
    keep_own_packages()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
