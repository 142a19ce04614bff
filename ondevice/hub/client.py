"""The one place that speaks to the Hugging Face Hub, through huggingface_hub, imported when it is
used.

The client has its own login (`hf auth login`, HF_TOKEN), its own cache and its endpoint variable; a
token is never asked for, held or passed on here, and `redacted` keeps it out of every text that
comes from the client. Both majors of the client (1.x on httpx, 2.x on httpx2) are met at one seam,
`_heard`: what goes wrong becomes a `UserError` that says what to do, a `Conflict`, or `NoReply`,
after which one looks again before trying again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ondevice.common import bounded
from ondevice.common.disk import as_full
from ondevice.common.errors import UserError
from ondevice.common.redact import redacted
from ondevice.hub.limits import TooMuch, TooSlow, limited, over_http

T = TypeVar("T")
Kind = Literal["model", "dataset"]
WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 15)  # between tries
SILENCE_S = 120.0  # the client itself would wait for ever
LONGEST_WAIT_S = 120.0  # that a server may ask for
TRAILER = "ondevice-push: "  # before a push's id in its commit's description
MOST_FILES = 100_000  # of a repository
_NOT_THE_HUB = "does the network ask you to sign in first? a page in a browser would show it"
_MAY_NOT = "take a name of your own, or a token that may write there"


class NoReply(Exception):
    """No reply, or one that says to come back later: what was asked may have been done. `wait`
    seconds were asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(reason)


class RepoNotFound(UserError):
    """There is no such repository, or this account may not see it: the Hub does not say which."""


class Offline(UserError):
    """The client was told to ask nobody."""


class Conflict(UserError):
    """What is there is somebody else's: a branch that has moved since its head was read, a tag at
    another commit.
    """


@dataclass(frozen=True)
class Account:
    """Who is logged in; `organisations` are those that the account belongs to."""

    name: str
    organisations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remote:
    """A repository as it was found."""

    head: str
    private: bool


@dataclass(frozen=True)
class RemoteFile:
    """A file in a commit. `sha256` of a large one, `blob` (git's SHA-1) of every other."""

    path: str
    size: int
    blob: str
    sha256: str = ""

    def holds(self, size: int, sha256: str, blob: str) -> bool:
        """Whether it has this content."""
        return self.size == size and (self.sha256 == sha256 if self.sha256 else self.blob == blob)


@dataclass(frozen=True)
class Sending:
    """A file to send: a path, or bytes."""

    path: str
    source: Path | bytes


class Hub:
    """The client, for repositories of one kind. Every method raises UserError (Conflict is one) or
    Unheard, nothing else that the client might."""

    def __init__(self, kind: Kind = "model", *, bars: bool = False) -> None:
        from huggingface_hub import HfApi, try_to_load_from_cache  # up to 190 ms
        from huggingface_hub.utils.logging import set_verbosity_error
        from huggingface_hub.utils.tqdm import disable_progress_bars  # up to 190 ms

        if not bars:
            disable_progress_bars()
        set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings hold signed addresses
        self.kind = kind
        self._api = HfApi()
        self._cached = try_to_load_from_cache
        self._operations: dict[str, Any] = {}

    def account(self) -> Account:
        """Raises UserError where nobody is logged in, or the token may only read."""
        with _heard("the Hub"):
            found = self._api.whoami()
            token = (found.get("auth") or {}).get("accessToken") or {}
            name = _text(found["name"])
            may_write = token.get("role") != "read"
            organisations = tuple(_text(org["name"]) for org in found.get("orgs") or ())
        if not may_write:
            raise UserError(
                "the token of this login may only read",
                where=name,
                hint="make one that may write at https://huggingface.co/settings/tokens, then "
                "`hf auth login`",
            )
        return Account(name, organisations)

    def create(self, repo: str, private: bool) -> None:
        """Makes the repository where it is not there yet."""
        from huggingface_hub.errors import HfHubHTTPError  # up to 190 ms

        with _heard(repo):
            try:
                self._api.create_repo(repo, repo_type=self.kind, private=private, exist_ok=True)
            except HfHubHTTPError as error:
                if _status(error) in (403, 404):
                    raise UserError(
                        f"this account may not make a repository for {repo.partition('/')[0]!r}",
                        where=repo,
                        hint=_MAY_NOT,
                    ) from None
                raise

    def look(self, repo: str, revision: str = "main") -> Remote:
        with _heard(repo):
            found = self._api.repo_info(repo, repo_type=self.kind, revision=revision)
            return Remote(_text(found.sha), bool(found.private))

    def files(self, repo: str, commit: str) -> list[RemoteFile]:
        """Every file of a commit. Raises UserError for an entry that is neither a file nor a folder
        of files: a symbolic link or a submodule."""
        from huggingface_hub.hf_api import RepoFile  # up to 190 ms

        found: list[RemoteFile] = []
        others: list[str] = []
        with _heard(repo):
            tree = self._api.list_repo_tree(
                repo, repo_type=self.kind, revision=commit, recursive=True
            )
            for number, entry in enumerate(tree):
                if number >= MOST_FILES:
                    raise UserError(f"has more than {MOST_FILES:,} files", where=repo)
                if isinstance(entry, RepoFile):
                    found.append(_remote_file(entry))
                else:
                    others.append("" + entry.path)  # a TypeError where it is no text
        folders = set()
        for file in found:
            for end, sign in enumerate(file.path):
                if sign == "/":
                    folders.add(file.path[:end])
        for path in others:  # git knows no empty folders
            if path not in folders:
                raise UserError(
                    f"{path!r} is a symbolic link or a submodule",
                    where=repo,
                    hint="only plain files are taken",
                )
        return found

    def upload(self, repo: str, file: Sending) -> None:
        """Sends a large file's bytes ahead of the commit that names it; one that is there already
        is not sent again. What the Hub keeps in git itself travels with the commit."""
        with _heard(repo):
            self._api.preupload_lfs_files(
                repo, [self._addition(file)], repo_type=self.kind, free_memory=False
            )

    def commit(
        self,
        repo: str,
        files: Iterable[Sending],
        removed: Iterable[str],
        *,
        parent: str,
        message: str,
        mark: str,
    ) -> str:
        """One commit on top of `parent`, or Conflict; returns its id. Tried once: after Unheard,
        `find` tells.
        """
        from huggingface_hub import CommitOperationDelete  # up to 190 ms

        operations = [
            *(CommitOperationDelete(path) for path in removed),
            *map(self._addition, files),
        ]
        with _heard(repo):
            done = self._api.create_commit(
                repo,
                operations,
                commit_message=message,
                repo_type=self.kind,
                commit_description=f"{TRAILER}{mark}",
                parent_commit=parent,
            )
            oid = _text(done.oid)
        self._operations.clear()
        return oid

    def find(self, repo: str, mark: str) -> str | None:
        """The commit of the push with this mark; None: it has not landed."""
        with _heard(repo):
            for commit in self._api.list_repo_commits(repo, repo_type=self.kind):
                if f"{TRAILER}{mark}" in f"{commit.title}\n{commit.message}":
                    return _text(commit.commit_id)
        return None

    def tag(self, repo: str, tag: str, commit: str) -> None:
        """Raises Conflict where the tag names another commit."""
        with _heard(repo):
            self._api.create_tag(repo, tag=tag, revision=commit, repo_type=self.kind, exist_ok=True)
        if self.look(repo, tag).head != commit:
            raise Conflict(f"the tag {tag!r} is there already, at another commit", where=repo)

    def download(self, repo: str, commit: str, file: RemoteFile) -> Path:
        """The file in the client's cache, where an interrupted download goes on. No more comes than
        its commit states."""
        with _heard(repo, size=file.size), over_http():
            return Path(
                self._api.hf_hub_download(repo, file.path, repo_type=self.kind, revision=commit)
            )

    def has(self, repo: str, commit: str, file: RemoteFile) -> bool:
        """Whether the file is in the client's cache already. Nobody is asked."""
        found = self._cached(repo, file.path, cache_dir=None, revision=commit, repo_type=self.kind)
        return isinstance(found, str)

    def snapshot(self, repo: str, wanted: Sequence[str], revision: str | None = None) -> Path:
        """The files of a revision, or of the newest commit, in the client's cache, those at the top
        whose names `wanted` means; where the Hub is not to be asked or does not answer, what the
        cache has, else Offline or Unheard."""
        with _heard(repo), over_http():
            return Path(
                self._api.snapshot_download(
                    repo,
                    repo_type=self.kind,
                    revision=revision,
                    allow_patterns=list(wanted),
                    ignore_patterns=["*/*"],
                )
            )

    def address(self, repo: str) -> str:
        from huggingface_hub import constants  # up to 190 ms

        if self.kind == "dataset":
            repo = f"datasets/{repo}"
        return f"{constants.ENDPOINT}/{repo}"

    def _addition(self, file: Sending) -> Any:
        """The client's operation: one and the same for every try, since it knows what has arrived."""
        from huggingface_hub import CommitOperationAdd  # up to 190 ms

        if file.path not in self._operations:
            self._operations[file.path] = CommitOperationAdd(file.path, file.source)
        return self._operations[file.path]


def with_retries(
    ask: Callable[[], T], repo: str, told: Callable[[str], None] = lambda reason: None
) -> T:
    """`ask()`, again after a while where there was no reply. For what may be asked twice. `told`
    hears why it waits. Raises UserError in the end."""
    for wait in WAITS_S:
        try:
            return ask()
        except NoReply as trouble:
            told(str(trouble))
            time.sleep(retry_delay(wait, trouble))
    try:
        return ask()
    except NoReply as trouble:
        raise given_up(repo, trouble) from None


def retry_delay(wait: float, trouble: NoReply) -> float:
    """Seconds to wait: ours, or what the server asked for."""
    return min(max(wait, trouble.wait), LONGEST_WAIT_S)


def given_up(repo: str, trouble: NoReply) -> UserError:
    return UserError(
        f"the Hub cannot be reached: {trouble}",
        where=repo,
        hint="is there a network? https://status.huggingface.co tells how the Hub is",
    )


def logged_in() -> bool:
    """Whether the client has a token; the token itself is not looked at."""
    from huggingface_hub import get_token  # up to 190 ms

    return get_token() is not None


def cache_folder() -> Path:
    """Where the client keeps what it has fetched."""
    from huggingface_hub import constants  # up to 190 ms

    return Path(constants.HF_HUB_CACHE)


def cached_card(data_set: str) -> str:
    """The text of a data set's card where the client's cache has it, the newest; empty otherwise.
    Nobody is asked.
    """
    kept = cache_folder() / f"datasets--{data_set.replace('/', '--')}" / "snapshots"
    cards = sorted(kept.glob("*/README.md"))
    # the commit that the branch's name meant last; without it none is known to be the newest
    with suppress(OSError, ValueError):
        commit = bounded.read_text(kept.parent / "refs" / "main", 100).strip()
        cards += [card for card in cards if card.parent.name == commit]
    with suppress(OSError, ValueError, IndexError):
        return bounded.read_text(cards[-1], errors="replace")
    return ""


def git_blob(content: bytes) -> str:
    """The SHA-1 under which git keeps these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def git_blob_of(file: Path) -> str:
    """`git_blob` of a file's bytes, read in pieces."""
    made = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with open(file, "rb") as opened:
        while piece := opened.read(1 << 20):
            made.update(piece)
    return made.hexdigest()


def _text(value: Any) -> str:
    """Raises TypeError for what is not a text that says something."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r:.40} where a text should be")
    return value


def _remote_file(entry: Any) -> RemoteFile:
    """Raises TypeError or ValueError for an entry of a tree that no Hub has."""
    if not isinstance(entry.path, str) or not isinstance(entry.size, int) or entry.size < 0:
        raise ValueError(f"{entry.path!r:.80} has the size {entry.size!r:.40}")
    sha256 = ""
    if entry.lfs:
        sha256 = _text(entry.lfs.sha256)
    return RemoteFile(entry.path, entry.size, _text(entry.blob_id), sha256)


@contextmanager
def _heard(where: str, size: int | None = None) -> Iterator[None]:
    """The seam: whatever the client raises, and whatever is wrong with what it returns, as one of
    ours. Nothing stands within but questions to the client. `size`: bytes of the file that is asked
    for."""
    from huggingface_hub import get_session  # up to 190 ms

    session = get_session()
    session.timeout = SILENCE_S  # of the client's shared session; it may have been made anew
    try:
        with limited(session, size):
            yield
    except (UserError, NoReply):
        raise
    except Exception as error:
        # the chain is cut: it holds the client's request, its headers among them
        raise _translated(error, where) from None


def _translated(error: BaseException, where: str) -> Exception:
    from huggingface_hub import errors  # up to 190 ms

    cause: BaseException | None = error
    while cause is not None:  # an upload's failure comes wrapped
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return UserError(
                "nobody is logged in to the Hugging Face Hub",
                where=where,
                hint="`hf auth login`, or set HF_TOKEN",
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return Offline(
                "HF_HUB_OFFLINE is set: the Hub is not asked", where=where, hint="unset it"
            )
        if isinstance(cause, errors.HfHubHTTPError):
            return _refused(cause, where)
        if isinstance(cause, TooMuch):
            return UserError(f"the server {cause}", where=where, hint=_NOT_THE_HUB)
        if isinstance(cause, TooSlow):
            return NoReply(f"it hardly sends: {cause}")
        if isinstance(cause, ConnectionError | TimeoutError) or _of_the_network(cause):
            return NoReply(redacted(f"{type(cause).__name__}: {cause}".strip(": ")))
        cause = cause.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) or "Consistency check failed" in str(
        error
    ):
        return NoReply("the download was cut off")
    named = type(error).__module__ == "huggingface_hub.errors"
    if isinstance(error, ValueError) and (named or type(error) is ValueError):
        # metadata or a name that the Hub does not take
        return UserError(redacted(str(error)), where=where)
    if full := as_full(error, cache_folder()):
        return full
    if isinstance(error, OSError):
        said = redacted(error.strerror or str(error)).lower()
        return UserError(f"cannot be fetched: {said}", where=error.filename or where)
    said = redacted(f"{type(error).__name__}: {error}")[:200]
    return UserError(f"what answers is not the Hub ({said})", where=where, hint=_NOT_THE_HUB)


def _of_the_network(error: BaseException) -> bool:
    """Whether it is the HTTP library's, httpx or httpx2, whichever this client stands on."""
    names = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return (
        bool(names & {"httpx", "httpx2", "httpcore", "httpcore2"})
        or type(error).__name__ == "FileMetadataError"
    )


def _status(error: Any) -> int:
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    return 0


def _refused(error: Any, where: str) -> Exception:
    """What the Hub's answer means for a person."""
    from huggingface_hub import errors  # up to 190 ms

    status = _status(error)
    said = redacted(" ".join((getattr(error, "server_message", None) or str(error)).split()))[:300]
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError("there is no such branch, tag or commit", where=where)
    if isinstance(error, errors.EntryNotFoundError):
        return UserError("a file is not there any more", where=where, hint="try again")
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            "its owner asks for consent first", where=where, hint="give it on the repository's page"
        )
    if status == 412:
        return Conflict(f"it has changed meanwhile: {said}", where=where)
    if status in (402, 413, 507) or "quota" in said.lower() or "storage limit" in said.lower():
        return UserError(
            f"there is no room left: {said}",
            where=where,
            hint="https://huggingface.co/settings/billing shows how much is used",
        )
    if status in (408, 409, 425, 429) or status >= 500:
        return NoReply(f"{status} {said}".strip(), _retry_after(error))
    if isinstance(error, errors.RepositoryNotFoundError) and logged_in():
        return RepoNotFound(
            "there is no such repository, or this account may not see it",
            where=where,
            hint="look at its name; a data set takes --dataset",
        )
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        problem = "there is no such repository, or it is private and nobody is logged in"
        if logged_in():
            problem = "the Hub does not know this login"
        return UserError(problem, where=where, hint="`hf auth login`, or set HF_TOKEN")
    if status == 403:
        return UserError("this account may not do that here", where=where, hint=_MAY_NOT)
    return UserError(f"the Hub refused: {said}", where=where)


def _retry_after(error: Any) -> float:
    try:
        return float(error.response.headers.get("Retry-After", 0))
    except (TypeError, ValueError):
        return 0.0
