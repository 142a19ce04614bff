"""The tables of ratings.db. A statement each, so that all of them can be made in one transaction."""

from __future__ import annotations

VERSION = 3  # PRAGMA user_version: a program refuses a file of a higher one
APPLICATION = (
    0x6F645F72  # PRAGMA application_id ("od_r"): what tells our file from any other of SQLite's
)

_VOTE = (
    "id",
    "item",
    "rater",
    "session",
    "action",
    "outcome",
    "ranking",
    "strength",
    "shown",
    "undoes",
    "reason",
    "note",
    "seen_end",
    "dwell_ms",
    "at",
    "app",
)
COLUMNS = {
    "item": (
        "id",
        "batch",
        "prompt",
        "prompt_sha",
        "shown",
        "kind",
        "gold",
        "repeat_of",
        "meta",
        "created",
    ),
    "response": ("item", "slot", "text", "source", "meta"),
    "vote": _VOTE,
    "live": _VOTE,
    "project": ("name", "value"),
    "claim": ("item", "rater", "session", "until"),
    "score": ("id", "item", "slot", "rater", "session", "scale", "score", "at", "app"),
}
"""The tables and the view by name, with their columns in order: what a file is checked for when it
is opened.
"""

# What is agreed on by all who rate in this file (`project.py`): a setting each.
_PROJECT = """
CREATE TABLE project(
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL CHECK(json_valid(value))
) STRICT"""
# Who is being asked what just now (`assignment.py`). It holds up to `until`: a program that is
# killed keeps nobody from a pair for long.
_CLAIM = """
CREATE TABLE claim(
  item INTEGER NOT NULL REFERENCES item(id),
  rater TEXT NOT NULL,
  session TEXT NOT NULL PRIMARY KEY,           -- each asks one thing at a time
  until REAL NOT NULL
) STRICT"""
# What raters say of single answers on the project's scales (`rubric.py`).
_SCORE = (
    """
CREATE TABLE score(
  id INTEGER PRIMARY KEY,
  item INTEGER NOT NULL,
  slot INTEGER NOT NULL,
  rater TEXT NOT NULL,
  session TEXT NOT NULL,
  scale TEXT NOT NULL,
  score INTEGER NOT NULL CHECK(score BETWEEN 0 AND 5),  -- 0: taken back
  at REAL NOT NULL,
  app TEXT NOT NULL,
  FOREIGN KEY(item, slot) REFERENCES response(item, slot)
) STRICT""",
    "CREATE INDEX score_item ON score(item, rater)",
    """
CREATE TRIGGER score_no_update BEFORE UPDATE ON score
BEGIN SELECT RAISE(ABORT, 'scores are append-only'); END""",
    """
CREATE TRIGGER score_no_delete BEFORE DELETE ON score
BEGIN SELECT RAISE(ABORT, 'scores are append-only'); END""",
)

SCHEMA = (
    """
CREATE TABLE item(
  id INTEGER PRIMARY KEY,
  batch TEXT NOT NULL,
  prompt TEXT NOT NULL,                        -- a user's message, or JSON of a list of messages: meta.form says which
  prompt_sha TEXT NOT NULL,                    -- sha256 of prompt
  shown TEXT NOT NULL CHECK(json_valid(shown)),  -- slots left to right, drawn when queued
  kind TEXT NOT NULL DEFAULT 'normal' CHECK(kind IN ('normal', 'gold', 'repeat')),
  gold INTEGER CHECK(gold BETWEEN 0 AND 3),    -- the slot that is known to be best
  repeat_of INTEGER REFERENCES item(id),
  meta TEXT NOT NULL DEFAULT '{}' CHECK(json_valid(meta)),
  created REAL NOT NULL,
  CHECK((kind = 'gold') = (gold IS NOT NULL)),
  CHECK((kind = 'repeat') = (repeat_of IS NOT NULL))
) STRICT""",
    """
CREATE TABLE response(
  item INTEGER NOT NULL REFERENCES item(id),
  slot INTEGER NOT NULL CHECK(slot BETWEEN 0 AND 3),
  text TEXT NOT NULL,
  source TEXT NOT NULL DEFAULT '',             -- the checkpoint that wrote it, never shown before the vote
  meta TEXT NOT NULL DEFAULT '{}' CHECK(json_valid(meta)),
  PRIMARY KEY(item, slot)
) STRICT""",
    """
CREATE TABLE vote(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  item INTEGER NOT NULL REFERENCES item(id),
  rater TEXT NOT NULL,
  session TEXT NOT NULL,
  action TEXT NOT NULL CHECK(action IN ('vote', 'skip', 'undo', 'note', 'flag')),
  outcome TEXT CHECK(outcome IN ('ranked', 'tie', 'all_bad')),
  ranking TEXT CHECK(ranking IS NULL OR json_valid(ranking)),  -- slots, best first; others come after, in no order
  strength INTEGER CHECK(strength IN (1, 2)),  -- 2: much better
  shown TEXT CHECK(shown IS NULL OR json_valid(shown)),        -- slots as this rater saw them
  undoes INTEGER UNIQUE REFERENCES vote(id),
  reason TEXT,
  note TEXT,
  seen_end INTEGER CHECK(seen_end IN (0, 1)),  -- whether every response was shown to its end
  dwell_ms INTEGER,
  at REAL NOT NULL,
  app TEXT NOT NULL,
  CHECK((action = 'vote') = (outcome IS NOT NULL)),
  CHECK((outcome IS 'ranked') = (ranking IS NOT NULL)),
  CHECK((action = 'undo') = (undoes IS NOT NULL))
) STRICT""",
    "CREATE INDEX item_batch ON item(batch)",
    "CREATE INDEX item_prompt ON item(prompt_sha)",
    "CREATE INDEX item_repeat_of ON item(repeat_of)",
    "CREATE INDEX vote_item ON vote(item, rater)",
    "CREATE INDEX vote_rater ON vote(rater)",
    """
CREATE TRIGGER vote_no_update BEFORE UPDATE ON vote
BEGIN SELECT RAISE(ABORT, 'votes are append-only'); END""",
    """
CREATE TRIGGER vote_no_delete BEFORE DELETE ON vote
BEGIN SELECT RAISE(ABORT, 'votes are append-only'); END""",
    # INSERT OR REPLACE deletes without asking the trigger above.
    """
CREATE TRIGGER vote_no_replace BEFORE INSERT ON vote
WHEN EXISTS (SELECT 1 FROM vote WHERE id = NEW.id OR undoes = NEW.undoes)
BEGIN SELECT RAISE(ABORT, 'votes are append-only'); END""",
    """
CREATE TRIGGER vote_undo BEFORE INSERT ON vote
WHEN NEW.action = 'undo' AND NOT EXISTS (
  SELECT 1 FROM vote
  WHERE id = NEW.undoes AND item = NEW.item AND rater = NEW.rater AND action IN ('vote', 'skip'))
BEGIN SELECT RAISE(ABORT, 'an undo takes back a vote or skip of the same rater and item'); END""",
    # The newest vote or skip of each (item, rater) that was not undone.
    """
CREATE VIEW live AS
SELECT v.* FROM vote v
WHERE v.action IN ('vote', 'skip')
  AND NOT EXISTS (SELECT 1 FROM vote u WHERE u.undoes = v.id)
  AND NOT EXISTS (
    SELECT 1 FROM vote n
    WHERE n.item = v.item AND n.rater = v.rater AND n.id > v.id AND n.action IN ('vote', 'skip')
      AND NOT EXISTS (SELECT 1 FROM vote u WHERE u.undoes = n.id))""",
    _PROJECT,
    _CLAIM,
    *_SCORE,
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)

UPGRADES: dict[int, tuple[str, ...]] = {
    1: (_PROJECT, _CLAIM, "PRAGMA user_version = 2"),
    2: (*_SCORE, "PRAGMA user_version = 3"),
}
"""By the version of a file: what makes it one of the next version. Nothing that a file holds is
changed or moved."""
