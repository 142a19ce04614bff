"""The command `rounds`: a person at a keyboard in front of the loop, the loop alone, or a look at
how the versions stand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ondevice.common.errors import Interrupted, UserError
from ondevice.common.json_files import read_json
from ondevice.common.sanitize import sanitize, to_stderr
from ondevice.config.ratings import RateConfig
from ondevice.config.rounds import RoundsConfig
from ondevice.preferences import assignment
from ondevice.preferences.database import Ratings
from ondevice.preferences.own_keys import own_keys
from ondevice.preferences.repair import open_for_rating
from ondevice.preferences.sqlite_store import FILE
from ondevice.preferences.terminal import Session, login
from ondevice.preferences.terminal_keys import Keys
from ondevice.preferences.votes import Item
from ondevice.rating_rounds.loop import Loop
from ondevice.rating_rounds.places import RoundsFolder, batch_of, start_model, status_of
from ondevice.rating_rounds.process import end_loop, start_loop, stop_training
from ondevice.rating_rounds.standing import standing
from ondevice.runs.folder import StopRequest
from ondevice.runs.logs import log_tail

LOOK_S = 0.2  # between two looks for pairs


def rounds(cfg: RoundsConfig, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """How the versions stand, after rating or without. `tell` hears what the loop says where it is
    `headless`. Raises UserError: no tuned model, no rounds to show, a loop at work already where it
    is to be this one; Interrupted on Ctrl-C."""
    cfg.check()
    folder = RoundsFolder(cfg.run)
    if cfg.show:
        folder.kept_settings()
        return state(folder, cfg)
    start_model(cfg)
    folder.keep_settings(cfg)
    if cfg.headless:
        _loop(folder, cfg, tell or to_stderr)
    else:
        _rate(folder, cfg)
    return state(folder, cfg)


def state(folder: RoundsFolder, cfg: RoundsConfig) -> dict[str, Any]:
    """How the versions stand, as plain values, and what the loop does now."""
    with Ratings.open(folder.run.path / FILE, create=True) as ratings:
        found = standing(folder, ratings, simulated=cfg.simulated)
    return {
        **found.mapping(),
        "every": cfg.every,
        "now": str(status_of(folder).get("now", "")),
    }


def _loop(folder: RoundsFolder, cfg: RoundsConfig, tell: Callable[[str], None]) -> None:
    """The loop in this process, until it is stopped or has learned from as many votes as are asked
    for."""
    with folder.locked() as free, StopRequest() as stop:
        if not free:
            raise UserError(
                "is at work already", where=str(folder.path), hint="end it first, or only rate"
            )
        folder.stop.unlink(missing_ok=True)
        loop = Loop(cfg, say=tell)

        def ended() -> bool:
            return stop.requested or folder.stop.exists() or bool(cfg.until and _enough(loop))

        try:
            loop.run(ended)
        finally:
            stop_training(folder)
        tell(state(folder, cfg)["sentence"])
        if stop.requested:
            raise Interrupted(f"stopped; ondevice rounds {folder.run.path} goes on there")


def _enough(loop: Loop) -> bool:
    """Whether a version is there that has learned from `until` votes."""
    with Ratings.open(loop.folder.run.path / FILE, create=True) as ratings:
        now = standing(loop.folder, ratings, simulated=loop.cfg.simulated)
    ready = [one.learned for one in now.versions if one.state in ("ready", "refused")]
    return max(ready, default=0) >= loop.cfg.until


# ---- a person at a keyboard ----------------------------------------------------------------------


class RoundsSession(Session):
    """Rating in front of the loop: when a version has come, or more is known of it, that is said
    before the next pair."""

    def __init__(
        self, ratings: Ratings, keys: Keys, cfg: RateConfig, look: Callable[[], str]
    ) -> None:
        super().__init__(ratings, keys, cfg, own_keys(cfg.keys))
        self._look = look
        self._said = ""

    def _show(self, item: Item) -> None:
        news = self._look()
        if news != self._said:
            self._said = news
            print(f"\n{sanitize(news, newlines=False)}", flush=True)
        super()._show(item)


def _rate(folder: RoundsFolder, cfg: RoundsConfig) -> None:
    process = start_loop(folder)
    rate = RateConfig(
        ratings=str(folder.run.path),
        rater=cfg.rater,
        batch=batch_of(cfg),
        repeat_share=cfg.repeat_share,
        seed=cfg.seed if cfg.repeat_share else 0,
    )
    try:
        opened, remarks = open_for_rating(rate.ratings, create=True)
        with opened as ratings, Keys() as keys:
            for line in remarks:
                print(line, flush=True)

            def look() -> str:
                now = standing(folder, ratings, simulated=cfg.simulated)
                return now.sentence

            while _wait_for_pairs(folder, process, ratings, rate):
                session = RoundsSession(ratings, keys, rate, look)
                try:
                    session.run()
                finally:
                    with suppress(UserError):  # held by another program: the claim ends by itself
                        assignment.release(ratings, session.name)
                if _waiting(ratings, rate):
                    break  # the rater left
    except KeyboardInterrupt:
        raise Interrupted("interrupted; every vote is saved, and the rounds go on there") from None
    finally:
        end_loop(folder, process)


def _waiting(ratings: Ratings, rate: RateConfig) -> bool:
    """Whether a pair waits that was not skipped."""
    rater = rate.rater.strip() or login()
    return any(not one.skipped for one in ratings.waiting(rater, rate.batch))


def _wait_for_pairs(
    folder: RoundsFolder,
    process: subprocess.Popen[bytes] | None,
    ratings: Ratings,
    rate: RateConfig,
) -> bool:
    """True once a pair waits. Raises UserError where the loop has ended without one."""
    told = False
    while not _waiting(ratings, rate):
        if not told:
            print("the first pairs are being written …", file=sys.stderr, flush=True)
            told = True
        if process is not None and process.poll() is not None:
            said = read_json(folder.status).get("now") or log_tail(folder.log, 1)
            raise UserError(
                f"the loop has ended: {sanitize(str(said), newlines=False)}", where=str(folder.log)
            )
        if process is None and not folder.busy:
            raise UserError(
                "the loop has ended elsewhere",
                where=str(folder.path),
                hint="the same command again",
            )
        time.sleep(LOOK_S)
    return True
