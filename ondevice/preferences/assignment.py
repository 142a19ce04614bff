"""Who is asked what, where several people rate in one database.

Whoever is shown a pair claims it, in the transaction that chose it. A pair goes to nobody else
once as many people as the project wants (`overlap`) have rated it or have it before them; two at
once get the same pair only where that number allows it. With an overlap of 0 everybody is asked
everything. Nobody is asked twice: a second window of the same person gets what the first one has
before it last of all. Pairs whose better answer is known measure raters: everybody gets them.

A claim ends with the vote, when the rater leaves or their program ends, however that ends, and by
itself after LEASE_S.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ondevice.common.clock import clock
from ondevice.preferences.sqlite_store import Store
from ondevice.preferences.votes import SETTLED, SIMULATED

LEASE_S = 600.0


@dataclass(frozen=True)
class Taken:
    """`by_others`: enough other people rate or have rated these; `by_me`: they stand before this
    rater in another window."""

    by_others: frozenset[int]
    by_me: frozenset[int]


def new_session() -> str:
    """A name for one opening of a program; it says which process that is."""
    return f"{int(clock() * 1000):x}-{os.getpid()}"


def _is_over(session: str) -> bool:
    """Whether the process of this session has ended. (A database lies on a local disk, so that it
    is one of this machine; where that cannot be told, it has not.)"""
    process = session.rpartition("-")[2]
    return process.isdecimal() and len(process) < 10 and not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal: only whether one could be sent
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _drop_ended(ratings: Store, session: str) -> None:
    """Takes away the claims of programs that were killed."""
    for row in ratings.rows("SELECT session FROM claim WHERE session <> ?", (session,)):
        if _is_over(row["session"]):
            ratings.rows("DELETE FROM claim WHERE session = ?", (row["session"],))


def taken(ratings: Store, rater: str, session: str, overlap: int) -> Taken:
    """What this rater is not asked now."""
    _drop_ended(ratings, session)
    now = clock()
    mine = ratings.rows(
        "SELECT item FROM claim WHERE rater = ? AND session <> ? AND until > ?",
        (rater, session, now),
    )
    by_others: frozenset[int] = frozenset()
    if overlap:
        rows = ratings.rows(
            "SELECT item FROM ("
            " SELECT item, rater FROM live WHERE action = 'vote' AND rater <> :rater"
            "  AND substr(rater, 1, :settled) <> :settled_name"
            "  AND substr(rater, 1, :simulated) <> :simulated_name"
            " UNION SELECT item, rater FROM claim WHERE rater <> :rater AND until > :now"
            ") WHERE item IN (SELECT id FROM item WHERE kind = 'normal') "
            "GROUP BY item HAVING count(*) >= :overlap",
            {
                "rater": rater,
                "now": now,
                "overlap": overlap,
                "settled": len(SETTLED),
                "settled_name": SETTLED,
                "simulated": len(SIMULATED),
                "simulated_name": SIMULATED,
            },
        )
        by_others = frozenset(row["item"] for row in rows)
    return Taken(by_others, frozenset(row["item"] for row in mine))


def claim(ratings: Store, item: int, rater: str, session: str) -> None:
    """This session shows the item, and no other one any more."""
    ratings.rows(
        "INSERT INTO claim(item, rater, session, until) VALUES (?, ?, ?, ?) ON CONFLICT(session) "
        "DO UPDATE SET item = excluded.item, rater = excluded.rater, until = excluded.until",
        (item, rater, session, clock() + LEASE_S),
    )


def release(ratings: Store, session: str) -> None:
    """This session shows nothing; claims of programs that are gone go with it."""
    with ratings.transaction():
        ratings.rows("DELETE FROM claim WHERE session = ? OR until < ?", (session, clock()))
