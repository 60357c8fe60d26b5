"""Files into a repository of the Hub as one commit: who is logged in, what is there, retries, and never two commits.

The Hub's client retries the transfer of files by itself. What it does not retry (the login, the creation of a
repository, the commit) is retried here, and before a commit is sent again the branch's head is compared with what was
sent: an answer that was lost does not make a second commit.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fitcoach_tune import hub
from fitcoach_tune.console import SILENT, Console
from fitcoach_tune.errors import AccessError, MismatchError
from fitcoach_tune.publish import failures
from fitcoach_tune.publish.repository import File, Remote, Sent, Target

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
_PAUSES = (1, 2, 4, 8, 16)  # seconds before each further try


class Uploader:
    """The Hub as one who writes to it sees it.

    Args:
        api: the client; by default the one that `HF_ENDPOINT`, `HF_TOKEN` and the login give.
        sleep: waits that many seconds.
    """

    def __init__(self, ui: Console = SILENT, api: HfApi | None = None, sleep: Callable[[float], None] = time.sleep):
        from huggingface_hub import HfApi

        self.api, self.ui, self.sleep = api or HfApi(), ui, sleep

    def page(self, target: Target) -> str:
        """The repository's address."""
        return f"{self.api.endpoint}/{'datasets/' if target.kind == 'dataset' else ''}{target.repo_id}"

    def log_in(self, target: Target) -> str:
        """Ask the Hub who this is; returns the name.

        Raises:
            AccessError: not logged in, or with a token that may not write there.
        """
        with self._failures(target):
            who = self._patiently(self.api.whoami)
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise AccessError("your token may only read", where=str(target), hint=failures.WRITE_TOKEN)
        owner = target.repo_id.split("/")[0]
        names = [who["name"], *(org["name"] for org in who.get("orgs", []))]
        # A fine-grained token need not show all organisations that it may write to; for those the Hub's answer counts.
        if role == "write" and owner.lower() not in map(str.lower, names):
            raise AccessError(
                f"you are {who['name']}, and there is no namespace {owner} that you can write to",
                where=str(target),
                hint=f"choose one of {', '.join(names)}",
            )
        return who["name"]

    def look(self, target: Target) -> Remote | None:
        """What is there now; None if there is no such repository.

        Raises:
            AccessError: it may not be read, or the Hub cannot be reached.
            MismatchError: it is public, and a private one is asked for.
        """
        with self._failures(target):
            found = self._patiently(lambda: self._look(target))
        if found and target.private and found.private is False:
            raise MismatchError(
                "the repository is there already, and it is public",
                where=str(target),
                hint="make it private in its settings, leave --private out, or choose another name",
            )
        return found

    def _look(self, target: Target) -> Remote | None:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        def info(branch: str | None) -> Any:
            return self.api.repo_info(target.repo_id, repo_type=target.kind, revision=branch, files_metadata=True)

        try:
            found, has_branch = info(target.branch), True
        except RevisionNotFoundError:
            found, has_branch = info(None), False
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        hashes = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in found.siblings or []}
        card = found.card_data.to_dict() if found.card_data else {}
        return Remote(found.sha, has_branch, found.private, card, hashes)

    def read(self, target: Target, remote: Remote, path: str) -> bytes:
        """A file of the repository as it was found. Raises `AccessError`."""
        with self._failures(target), self._client(), tempfile.TemporaryDirectory() as folder:
            where = {"repo_type": target.kind, "revision": remote.head, "local_dir": folder}
            file = self._patiently(lambda: self.api.hf_hub_download(target.repo_id, path, **where))
            return Path(file).read_bytes()

    def check_card(self, target: Target, card: str) -> None:
        """Ask the Hub whether it takes a card's metadata.

        Raises:
            MismatchError: it does not, and says why.
        """
        from huggingface_hub import RepoCard

        with self._failures(target):
            try:
                self._patiently(lambda: RepoCard(card).validate(target.kind))
            except ValueError as error:
                if hub.status_of(error) is None:
                    what = f"the Hub refuses the card: {failures.card_problems(str(error))}"
                    raise MismatchError(what, where=str(target), hint="please report this") from None
                raise

    def send(
        self, target: Target, remote: Remote | None, sent: Sequence[File], removed: Sequence[str], message: str
    ) -> Sent:
        """Make one commit with these files, on top of what was found; the repository and the branch too, if need be.

        Args:
            remote: what `look` found.
            removed: files that the commit takes away, if they are there.

        Raises:
            AccessError: refused, or given up; what had been transferred is not transferred again by the next try.
            MismatchError: the branch has moved since `look`.
        """
        with self._failures(target), self._client():
            remote = remote or self._create(target)
            if not remote.has_branch:
                self._patiently(lambda: self.api.create_branch(
                    target.repo_id, repo_type=target.kind, branch=target.branch, revision=remote.head, exist_ok=True
                ))  # fmt: skip
                remote = self._look(target) or remote
            if remote.holds(sent, removed):
                return Sent(remote.head, self.page(target), unchanged=True)
            return self._commit(target, remote, sent, [path for path in removed if path in remote.hashes], message)

    def _create(self, target: Target) -> Remote:
        # Without --private the account's own setting holds, which may be private.
        self._patiently(lambda: self.api.create_repo(
            target.repo_id, repo_type=target.kind, private=target.private or None, exist_ok=True
        ))  # fmt: skip
        if found := self._patiently(lambda: self._look(target)):
            return found
        raise AccessError(
            "the repository was made, and the Hub does not show it yet", where=str(target), hint=failures.AGAIN
        )

    def _commit(
        self, target: Target, remote: Remote, sent: Sequence[File], removed: Sequence[str], message: str
    ) -> Sent:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        adding = [CommitOperationAdd(file.path, file.source) for file in sent]
        where = {"repo_id": target.repo_id, "repo_type": target.kind, "revision": target.branch}
        self.api.preupload_lfs_files(additions=adding, free_memory=False, **where)

        def commit() -> Sent:
            made = self.api.create_commit(
                operations=[*adding, *map(CommitOperationDelete, removed)],
                commit_message=message,
                parent_commit=remote.head,
                **where,
            )
            return Sent(made.oid, made.commit_url, unchanged=False)

        def landed(error: Exception) -> Sent | None:
            """The commit, if it was made and only the answer was lost."""
            if hub.status_of(error) not in (None, 409, 412) and not failures.is_transient(error):
                return None
            now = self._patiently(lambda: self._look(target))
            if now is None or now.head == remote.head:
                return None
            if now.holds(sent, removed):
                return Sent(now.head, f"{self.page(target)}/commit/{now.head}", unchanged=False)
            raise failures.moved(str(target))

        return self._patiently(commit, landed)

    # -------------------------------------------------------------------------------------------- what goes wrong

    def _patiently(self, call: Callable[[], T], recover: Callable[[Exception], T | None] = lambda _: None) -> T:
        """Call, up to six times while the Hub is busy, out of order or out of reach.

        Args:
            recover: gets each failure first, and may find what the call was for.
        """
        for pause in (*_PAUSES, None):
            try:
                return call()
            except Exception as error:
                if (found := recover(error)) is not None:
                    return found
                wait = failures.pause_for(error, pause)
                if wait is None:
                    raise
                self.ui.warn(f"{failures.reason(error)}; trying again in {wait:g} s")
                self.sleep(wait)
        raise AssertionError("unreachable: the last failure is raised")

    @contextlib.contextmanager
    def _failures(self, target: Target) -> Iterator[None]:
        """Turn whatever the client raises into an error that says what to do."""
        try:
            yield
        except Exception as error:
            raise failures.explain(error, str(target), self.page(target)) from None

    @contextlib.contextmanager
    def _client(self) -> Iterator[None]:
        """The client's bars as the console wants them, and what it logs and warns of as notes of this program."""
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        logger = logging.getLogger("huggingface_hub")
        before = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [_Relay(self.ui)], False
        silenced = self.ui.quiet and not are_progress_bars_disabled()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of what the client's libraries mean to change
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = lambda message, *_, **__: self.ui.warn(hub.without_secrets(str(message)))
                if silenced:
                    disable_progress_bars()
                yield
        finally:
            if silenced:
                enable_progress_bars()
            logger.handlers, logger.propagate = before


class _Relay(logging.Handler):
    """What the client logs, as notes; addresses lose their query, which may hold a signature."""

    def __init__(self, ui: Console):
        super().__init__(logging.WARNING)
        self.ui = ui

    def emit(self, record: logging.LogRecord) -> None:
        self.ui.note(hub.without_secrets(record.getMessage()))
