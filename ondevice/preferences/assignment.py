"""Who is asked what, where several people rate in one database.

Whoever is shown a pair claims it, in the transaction that chose it. A pair goes to nobody else
once as many people as the project wants (`overlap`) have rated it or have it before them; two at
once get the same pair only where that number allows it. With an overlap of 0 everybody is asked
everything. Nobody is asked twice: a second window of the same person gets what the first one has
before it last of all. Pairs whose better answer is known measure raters: everybody gets them.

A claim ends with the vote, when the rater leaves, and by itself after LEASE_S: a program that was
killed keeps nobody from a pair for longer.
"""

from __future__ import annotations

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


def taken(ratings: Store, rater: str, session: str, overlap: int) -> Taken:
    """What this rater is not asked now."""
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
