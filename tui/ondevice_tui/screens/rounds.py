"""Rounds: how the versions stand against the start, live, and the loop that trains them begun and
ended. What is shown is read in a thread; the loop is a process of its own that ends with the app.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from ondevice.common.errors import UserError
from ondevice.config.rounds import RoundsConfig
from ondevice.preferences.database import Ratings
from ondevice.preferences.sqlite_store import FILE
from ondevice.rating_rounds.places import RoundsFolder, batch_of, start_model, status_of
from ondevice.rating_rounds.process import ask_to_end, start_loop
from ondevice.rating_rounds.standing import FEW, Rounds, Standing, standing
from ondevice_tui.live_sampling import rater_name
from ondevice_tui.moved_keys import moved
from ondevice_tui.screens.page import Card
from ondevice_tui.widgets.safe import SafeText, cell, content, line, lines, titled

if TYPE_CHECKING:
    from ondevice_tui.screens.rate_sharing import SharingPage

LOOK_S = 1.0
BAR = 24  # cells from 0 to 100 %
EVERY = (10, 20, 30, 50, 80, 120)
HELP = "g begins or ends · + − votes a version · esc closes"


class RoundsCard(Card[RoundsConfig | None]):
    """`run` is the run's folder, `rater` who rates there."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g", "turn", "begin or end"),
        Binding("plus,equals_sign", "every(1)", "more votes"),
        Binding("minus", "every(-1)", "fewer votes"),
        Binding("j,down", "scroll(2)", "scroll", show=False),
        Binding("k,up", "scroll(-2)", "up", show=False),
        Binding("escape,q,v", "close", "close", key_display="esc"),
        *moved(s="g"),
    ]

    def __init__(self, run: Path, rater: str) -> None:
        super().__init__()
        self.folder = RoundsFolder(run)
        self.rater = rater
        self.trouble = ""
        self._told = content("")
        self._process: subprocess.Popen[bytes] | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="card") as card:
            card.can_focus = False
            titled(card, "rounds: rate, learn, see it get better", HELP)
            yield SafeText("reading …", id="rounds-text")

    def on_mount(self) -> None:
        self.set_interval(LOOK_S, self._look)
        self._look()

    def _look(self) -> None:
        self.run_worker(self._read, thread=True, group="rounds", exclusive=True)

    def _read(self) -> None:
        """In a thread, with a connection of its own."""
        try:
            cfg = self._settings()
            found = None
            if (self.folder.run.path / FILE).is_file():
                with Ratings.open(self.folder.run.path) as ratings:
                    found = standing(self.folder, ratings, simulated=cfg.simulated)
            told = told_of(found, cfg, status_of(self.folder), self.folder.busy, self.trouble)
        except UserError as problem:
            told = content(str(problem))
        if self.is_attached:
            self.app.call_from_thread(self._show, told)

    def _show(self, told: Content) -> None:
        self._told = told
        if self.is_attached:
            self.query_one("#rounds-text", SafeText).update(self._told)

    def _settings(self) -> RoundsConfig:
        """What the loop was begun with last, else the usual settings."""
        if self.folder.settings.is_file():
            return self.folder.kept_settings()
        return RoundsConfig(run=str(self.folder.run.path), rater=self.rater)

    def action_turn(self) -> None:
        """Begins the loop, or ends it."""
        self.trouble = ""
        try:
            if self.folder.busy:
                ask_to_end(self.folder)
            else:
                cfg = self._settings()
                start_model(cfg)
                self.folder.keep_settings(replace(cfg, rater=self.rater))
                self._process = start_loop(self.folder)
        except (UserError, OSError) as problem:
            self.trouble = str(problem)
        self._look()

    def action_every(self, by: int) -> None:
        """Another number of votes for a version, which the loop reads when it begins."""
        if self.folder.busy:
            self.trouble = "a loop at work keeps its number of votes: g ends it, g begins it anew"
            self._look()
            return
        try:
            cfg = self._settings()
            at = min(range(len(EVERY)), key=lambda n: abs(EVERY[n] - cfg.every))
            every = EVERY[min(max(at + by, 0), len(EVERY) - 1)]
            self.folder.keep_settings(replace(cfg, every=every))
        except (UserError, OSError) as problem:
            self.trouble = str(problem)
        self._look()

    def action_close(self) -> None:
        self.dismiss(self._settings() if self.folder.busy else None)

    def action_scroll(self, by: int) -> None:
        self.query_one("#card", VerticalScroll).scroll_relative(y=by, animate=False)


def told_of(
    found: Rounds | None,
    cfg: RoundsConfig,
    status: Mapping[str, Any],
    busy: bool,
    trouble: str = "",
) -> Content:
    """All of it: what goes on, the sentence, the curve and what it cost."""
    rows = [_now(cfg, status, busy)]
    if trouble:
        rows.append(line(("✗ ", "$error"), trouble))
    if found is None:
        rows += [content(""), content("No pair was rated yet: the loop writes the first ones.")]
        return lines(rows)
    rows += [content(""), content(found.sentence, "bold")]
    left = max(cfg.every - found.since, 0)
    rows.append(line((f"{found.usable} usable votes, {left} until the next version", "$muted")))
    if found.versions:
        rows += [
            content(""),
            line(("preferred to the start", "bold $primary"), ("   0 % … ½ … 100 %", "$muted")),
        ]
        rows += [_curve(one, found.current) for one in found.versions]
        rows += [
            content(""),
            line(
                ("what it cost", "bold $primary"),
                ("   exact match, reasoning, bits/byte", "$muted"),
            ),
            _skills("start", found.start, {}),
        ]
        rows += [
            _skills(f"version {one.number}", one.skills, found.start) for one in found.versions
        ]
    for one in found.versions:
        if one.refused:
            rows.append(line((f"version {one.number} {one.state}: ", "$warning"), one.refused))
    return lines(rows)


def _now(cfg: RoundsConfig, status: Mapping[str, Any], busy: bool) -> Content:
    if busy:
        now = str(status.get("now") or "the loop begins")
        return line(("● at work  ", "$success"), now, (f"  · every {cfg.every} votes", "$muted"))
    return line(
        ("○ at rest  ", "$muted"),
        "g begins: answers are written, a version is trained after every ",
        (str(cfg.every), "bold"),
        " usable votes",
    )


def _curve(one: Standing, current: int) -> Content:
    """A version's interval between 0 and 100 %."""
    name = cell(f"version {one.number}", 11)
    mark = "▸ " if one.number == current else "  "
    if one.curve is None or one.blind.of < FEW:
        known = f"not yet known ({one.blind.of} pairs), {one.state}"
        return line(mark, (name, "bold"), (known, "$muted"))
    share, low, high = one.curve
    told = f" {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f}), {one.blind.of} pairs"
    return line(mark, (name, "bold"), (interval(share, low, high), "$primary"), told)


def interval(share: float, low: float, high: float) -> str:
    """`  ├──●──┤  ` with the half marked, in BAR cells."""

    def place(value: float) -> int:
        return min(max(round(value * (BAR - 1)), 0), BAR - 1)

    cells = [" "] * BAR
    cells[place(0.5)] = "┊"
    cells[place(low) : place(high) + 1] = "─" * (place(high) + 1 - place(low))
    cells[place(low)] = "├"
    cells[place(high)] = "┤"
    cells[place(share)] = "●"
    return "".join(cells)


def _skills(name: str, skills: Mapping[str, float], start: Mapping[str, float]) -> Content:
    parts: list[Any] = ["  ", (cell(name, 11), "bold")]
    if not skills:
        return line(*parts, ("not measured", "$muted"))
    for skill in ("exact_match", "reasoning"):
        if skill not in skills:
            parts.append(cell("–", 15))
            continue
        change = ""
        if skill in start:
            change = f" {100 * (skills[skill] - start[skill]):+.1f}"
        parts.append(cell(f"{100 * skills[skill]:.1f} %{change}", 15))
    if "bits_per_byte" in skills:
        parts.append(f"{skills['bits_per_byte']:.3f}")
    return line(*parts)


def open_rounds(screen: SharingPage) -> None:
    """The card of the run that is rated."""
    run = screen.ui.run_folder
    if run is None:
        screen.ui.say(screen.unless_reading("no run yet: esc, then n begins one"))
        return

    def closed(began: RoundsConfig | None) -> None:
        """Where the loop was begun its pairs alone are asked: / asks others again."""
        if began is not None:
            screen.ask_only(batch_of(began))

    screen.app.push_screen(RoundsCard(run.path, screen.rater or rater_name()), closed)
