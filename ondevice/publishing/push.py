"""Sends what a plan says, as one commit: nobody ever downloads half a checkpoint.

    read the head → keep pending-push.json → large files, one by one → one commit on top of that head
    → hashes compared → tag → pending-push.json removed

The head that was read is the commit's parent: where somebody else has pushed in between, the Hub
refuses and a person is told. After a lost reply the commit is looked for by its mark before it is
tried again. Interrupted anywhere, the remote has the whole commit or none, and `resume` goes on.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ondevice.common.errors import Interrupted, UserError
from ondevice.common.json_files import to_json
from ondevice.common.progress import size
from ondevice.common.sanitize import to_stderr
from ondevice.config.hub import PushConfig
from ondevice.hub import client as hub_client
from ondevice.hub.client import (
    Conflict,
    Hub,
    NoReply,
    RemoteFile,
    RepoNotFound,
    Sending,
    git_blob,
    git_blob_of,
    given_up,
    retry_delay,
    with_retries,
)
from ondevice.preferences.sqlite_store import ratings_file
from ondevice.publishing.plan import (
    Plan,
    PlannedFile,
    check_planned,
    pending,
    plan_push,
    plan_text,
    replaced,
)
from ondevice.publishing.push_files import content, real_file
from ondevice.publishing.target import find_target

LARGE_BYTES = 1_000_000  # from here on a file is worth being told of by itself
Tell = Callable[[Mapping[str, Any]], None]
"""What hears each step: {"event": …, …}; `plan`, `file` (sent so far, of all), `wait`, `commit`,
`verify`, `done`.
"""


def push(cfg: PushConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Does what `cfg` says; returns {"repo", "url", "commit", "private", "tag", "bytes", "files"},
    of a dry run the plan. Raises UserError, or Interrupted where a push was stopped that `resume`
    goes on with."""
    cfg.check()
    if tell is None:
        tell = _line if cfg.lines else _say
    if cfg.dry_run:
        return {**_planned(cfg).told(), **_login()}
    plan = _planned(cfg)
    client = Hub(plan.kind)
    account = with_retries(client.account, plan.repo)
    if "/" not in plan.repo:  # the card names the whole address
        plan = _planned(dataclasses.replace(cfg, repo_id=f"{account.name}/{plan.repo}"))
    tell({"event": "plan", **plan.told()})
    if not _agreed(cfg):
        raise UserError("nothing was sent", hint="--yes does not ask")
    kind = " --dataset" if cfg.dataset else ""
    again = f"ondevice push {cfg.model}{kind} --resume goes on with it"
    try:
        done = send(plan, client, tell)
    except KeyboardInterrupt:
        message = "stopped; nothing was sent"
        if plan.pending.is_file():
            message = f"stopped. {again}"
        raise Interrupted(message) from None
    except UserError as error:
        if not plan.pending.is_file() or "--resume" in error.hint:
            raise
        raise UserError(
            error.message, where=error.where, hint="; ".join(filter(None, (error.hint, again)))
        ) from None
    if cfg.lines:
        return {}  # its last line says it
    return done


def send(plan: Plan, client: Hub, tell: Tell) -> dict[str, Any]:
    """Sends a plan, or goes on with one that was begun (`plan.parent` is known). Raises UserError;
    Conflict where all has arrived and only its tag is taken."""
    repo = plan.repo

    def wait(reason: str) -> None:
        tell({"event": "wait", "reason": reason})

    plan = plan.hashed()
    if not plan.parent:
        with_retries(lambda: client.create(repo, not plan.public), repo, wait)
    try:
        remote = with_retries(lambda: client.look(repo), repo, wait)
    except RepoNotFound:
        raise UserError(
            "the name is taken by what this account may not see",
            where=repo,
            hint="give another name",
        ) from None
    if not remote.private and not plan.public:
        raise UserError(
            "is public already, and this push was not to be",
            where=repo,
            hint="--public sends it for everyone to see, or give another name",
        )
    if not plan.parent:
        present = with_retries(lambda: client.files(repo, remote.head), repo, wait)
        removed = replaced([file.path for file in present], plan.files)
        plan = dataclasses.replace(plan, parent=remote.head, removed=removed)
    plan.keep()
    commit = _land(plan, client, remote.head, tell)
    tell({"event": "verify", "commit": commit})
    _verify(plan, client, commit, wait)
    _tag(plan, client, commit, wait)
    plan.pending.unlink(missing_ok=True)
    done = {
        "repo": repo,
        "url": client.address(repo),
        "commit": commit,
        "private": remote.private,
        "tag": plan.tag,
        "bytes": plan.size,
        "files": len(plan.files),
        "removed": list(plan.removed),
    }
    tell({"event": "done", **done})
    return done


def _tag(plan: Plan, client: Hub, commit: str, wait: Callable[[str], None]) -> None:
    """Raises Conflict where the tag is taken."""
    if not plan.tag:
        return
    try:
        with_retries(lambda: client.tag(plan.repo, plan.tag, commit), plan.repo, wait)
    except Conflict as conflict:
        plan.pending.unlink(missing_ok=True)  # all has arrived: there is nothing to go on with
        raise Conflict(
            conflict.message,
            where=plan.repo,
            hint=f"all has arrived as commit {commit[:12]}; push again with another --tag",
        ) from None


def render(result: Mapping[str, Any]) -> str | None:
    """A result for people: the address, or the plan of a dry run. None where each step was told as
    a line.
    """
    if not result:
        return None
    if "url" in result:
        return str(result["url"])
    login = result.get("login") or {}
    return f"{plan_text(result, size)}\n  {login.get('text', '')}".rstrip()


def _planned(cfg: PushConfig) -> Plan:
    if not cfg.resume:
        return plan_push(cfg)
    if cfg.dataset:
        home = ratings_file(cfg.model).parent
    else:
        home = find_target(cfg.model, cfg.stage).home
    plan = pending(home)
    if cfg.repo_id and cfg.repo_id not in (plan.repo, plan.repo.partition("/")[2]):
        raise UserError(
            f"the push that was interrupted goes to {plan.repo}",
            where="repo_id",
            hint="leave the name out, or push without --resume",
        )
    check_planned(cfg, plan)
    return plan


def _login() -> dict[str, Any]:
    """Who is logged in, for the plan: never the token."""
    try:
        name = Hub().account().name
        return {"login": {"name": name, "text": f"logged in as {name}"}}
    except (UserError, NoReply) as error:
        return {"login": {"name": "", "text": str(error)}}


def _land(plan: Plan, client: Hub, head: str, tell: Tell) -> str:
    """The commit's id, made now or by an earlier try. Raises UserError: a conflict, or no reply for
    too long.
    """
    if head != plan.parent:
        return _found(plan, client, tell)
    files = [Sending(file.path, _source(file, plan)) for file in plan.files]
    trouble = NoReply("no reply")
    for wait in (*hub_client.WAITS_S, 0.0):
        try:
            _upload(plan, client, files, tell)
            tell({"event": "commit"})
            return client.commit(
                plan.repo,
                files,
                plan.removed,
                parent=plan.parent,
                message=plan.message,
                mark=plan.mark,
            )
        except Conflict:
            return _found(plan, client, tell)
        except NoReply as error:
            trouble = error
        tell({"event": "wait", "reason": str(trouble)})
        time.sleep(retry_delay(wait, trouble))
        # the reply may be what was lost, and not the commit
        if with_retries(lambda: client.look(plan.repo), plan.repo).head != plan.parent:
            return _found(plan, client, tell)
    raise given_up(plan.repo, trouble)


def _source(file: PlannedFile, plan: Plan) -> Path | bytes:
    """What is sent: of small files the very bytes whose hash was planned, so that nothing can be
    put in their place while large ones are under way."""
    if not file.source:
        return file.text.encode()
    if file.path.endswith(".safetensors"):
        return Path(file.source)
    return content(file.source, Path(plan.folder), file.sha256)


def _found(plan: Plan, client: Hub, tell: Tell) -> str:
    """This push's commit in a branch that has moved. Raises UserError where it was somebody else
    who moved it.
    """
    commit = with_retries(lambda: client.find(plan.repo, plan.mark), plan.repo)
    if commit is None:
        plan.pending.unlink(missing_ok=True)  # what it was to go on top of is not the head any more
        raise UserError(
            "somebody has changed the repository since this push began; nothing was overwritten",
            where=plan.repo,
            hint="look at what came in, then push again without --resume",
        )
    tell({"event": "landed", "commit": commit})
    return commit


def _upload(plan: Plan, client: Hub, files: list[Sending], tell: Tell) -> None:
    """The large files ahead of the commit, each told when it is there; the others travel with the
    commit.
    """
    sent = 0
    for planned, file in zip(plan.files, files, strict=True):
        if planned.size >= LARGE_BYTES or planned.path.endswith(".safetensors"):
            if planned.source:
                real_file(Path(planned.source), Path(plan.folder))
            client.upload(plan.repo, file)
            sent += planned.size
            tell({"event": "file", "path": planned.path, "sent": sent, "of": plan.size})


def _verify(plan: Plan, client: Hub, commit: str, wait: Callable[[str], None]) -> None:
    """Compares every file's hash in the commit with the one here. Raises UserError naming what
    differs.
    """
    remote_files = with_retries(lambda: client.files(plan.repo, commit), plan.repo, wait)
    by_path = {remote.path: remote for remote in remote_files}
    wrong = []
    for file in plan.files:
        remote = by_path.get(file.path)
        if remote is None or not _same(file, remote):
            wrong.append(file.path)
    if wrong:
        raise UserError(
            f"arrived otherwise than it was sent: {', '.join(wrong[:3])}",
            where=plan.repo,
            hint="push again without --resume",
        )


def _same(file: PlannedFile, remote: RemoteFile) -> bool:
    blob = ""
    if not remote.sha256:
        blob = _blob(file)
    return remote.holds(file.size, file.sha256, blob)


def _blob(file: PlannedFile) -> str:
    if file.source:
        return git_blob_of(Path(file.source))
    return git_blob(file.text.encode())


def _agreed(cfg: PushConfig) -> bool:
    """Whether to send: a person at a terminal is asked, unless the settings say so."""
    if cfg.yes or cfg.lines:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _line(event: Mapping[str, Any]) -> None:
    """For programs, on stdout."""
    print(to_json(dict(event)), flush=True)


def _say(event: Mapping[str, Any]) -> None:
    """For people, on stderr."""
    to_stderr(_words(event))


def _words(event: Mapping[str, Any]) -> str:
    match event["event"]:
        case "plan":
            return plan_text(event, size)
        case "file":
            return f"  sent {size(event['sent'])} of {size(event['of'])}  {event['path']}"
        case "wait":
            return f"  waiting: {event['reason']}"
        case "done":
            seen = "private" if event["private"] else "public"
            return f"  done: commit {event['commit'][:12]}, {seen}"
        case "landed":
            return "  it had landed already"
    return {"commit": "  committing", "verify": "  comparing hashes"}[event["event"]]
