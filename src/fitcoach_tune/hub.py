"""Downloads from the Hugging Face Hub, and its many failures as one clear error."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitcoach_tune.errors import AccessError, ConfigError

_WITHOUT_HUB = {
    "model": "use --config offline, which needs no account and no Hub",
    "dataset": "use --dataset builtin:fitness, which needs no account and no Hub",
    "adapter": "name the folder of a run on this machine",
}


def download(repo_id: str, revision: str | None, patterns: Sequence[str], *, what: str) -> Path:
    """Download (or find in the cache) the files of a Hub repository that match; returns the snapshot folder.

    The folder's name is the resolved commit. A repository may hold anything: files in its folders are never fetched.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; the main branch if None.
        patterns: of the files' names, such as `model*.safetensors`.
        what: "model" or "adapter", for messages.

    Raises:
        AccessError: says which of not found, not logged in, licence not accepted or no network it is, or what else
            the Hub's client says.
        ConfigError: `repo_id` cannot be an id.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(repo_id, revision=revision, allow_patterns=[*patterns], ignore_patterns=["*/*"])
    except Exception as error:
        failure = access_error(error, repo_id, revision, what)
        if failure is error:
            why = f"{type(error).__name__}: {without_secrets(' '.join(str(error).split()))}"
            failure = AccessError(f"it cannot be downloaded: {why}", where=f"{what} {repo_id}", hint="try again")
        raise failure from None
    return Path(found)


def without_secrets(text: str) -> str:
    """The text with addresses cut before their query, which may be a signature, and without Hub tokens."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = re.sub(r"\bhf_\w+", "hf_…", text)
    own = os.environ.get("HF_TOKEN", "").strip()  # of whatever form
    return text.replace(own, "…") if own else text


def access_error(error: Exception, repo_id: str, revision: str | None, what: str) -> Exception:
    """Turn a failure of the Hub's client into an `AccessError` that says what to do.

    Args:
        error: what the client raised; its causes are looked at, too.
        repo_id: what was asked for.
        revision: of it.
        what: "model", "dataset" or "adapter".

    Returns:
        the `AccessError`; a `ConfigError` where `repo_id` cannot be an id; `error` itself where access did not fail.
    """
    from huggingface_hub import errors

    links, status = _causes(error), status_of(error)
    where = f"{what} {repo_id}" + (f"@{revision}" if revision else "")
    page = f"https://huggingface.co/{'datasets/' if what == 'dataset' else ''}{repo_id}"

    def is_any(*kinds: type) -> bool:
        return any(isinstance(link, kinds) for link in links)

    if is_any(errors.GatedRepoError) and status == 401:
        why, hint = "it is gated, and you are not logged in", f"accept its licence at {page} and run `hf auth login`"
    elif is_any(errors.GatedRepoError):
        why, hint = "you are logged in, but its licence is not accepted yet", f"accept it at {page}"
    elif is_any(errors.RevisionNotFoundError):
        return AccessError("the Hub has no such branch, tag or commit of it", where=where, hint=f"look at {page}")
    # Without a login the Hub answers 401 for what does not exist, too; only a bad login is called by its name.
    elif is_any(errors.RepositoryNotFoundError) or (status == 401 and "Invalid credentials" not in str(error)):
        why, hint = "not found on the Hub, or it is private", f"look at {page}; if it is private, run `hf auth login`"
    elif is_any(errors.HFValidationError):
        return ConfigError("not a valid Hub id (owner/name)", where=where, hint="check its spelling")
    elif status in (401, 403):
        why, hint = "the Hub refuses your login", "check it with `hf auth whoami`"
    elif status is not None:
        why, hint = f"the Hub answered with HTTP {status}", "try again later"
    elif is_unreachable(error):
        why, hint = "there is no network to the Hub, and no copy in the cache", "connect and try again"
    else:
        return error
    return AccessError(why, where=where, hint=f"{hint}, or {_WITHOUT_HUB[what]}")


def is_unreachable(error: Exception) -> bool:
    """Whether a request got no answer: no network, a time-out, or offline mode (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import errors

    silent = (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    # The client's HTTP library has changed its name before, and is nobody's dependency but the client's.
    return status_of(error) is None and any(
        isinstance(link, silent) or type(link).__module__.startswith("httpx") for link in _causes(error)
    )


def is_offline(error: Exception) -> bool:
    """Whether offline mode (`HF_HUB_OFFLINE`) is why there was no answer."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(link, OfflineModeIsEnabled) for link in _causes(error))


def status_of(error: Exception) -> int | None:
    """The HTTP status that the Hub answered with, if it answered."""
    response = _response(error)
    return None if response is None else response.status_code


def server_message(error: Exception) -> str | None:
    """What the Hub says about its refusal, if anything."""
    return next((text for link in _causes(error) if (text := getattr(link, "server_message", None))), None)


def retry_after(error: Exception) -> float | None:
    """Seconds after which the Hub wants to be asked again: `Retry-After`, or of `RateLimit` what an empty window has
    left.
    """
    response = _response(error)
    if response is None:
        return None
    if (seconds := response.headers.get("Retry-After", "").strip()).isdigit():
        return float(seconds)
    window = re.search(r";\s*r=0\s*;\s*t=(\d+)", response.headers.get("RateLimit", ""))
    return float(window.group(1)) if window else None


def check_repo_id(repo_id: str, where: str) -> str:
    """The id, if it can be one.

    Raises:
        ConfigError: it is not owner/name, or has characters that the Hub does not allow.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") == 1:
            return repo_id
        what = "it must be owner/name"
    except HFValidationError as error:
        what = str(error).split(": '")[0]
    raise ConfigError(f"not a valid Hub id: {what}", where=f"{where} {repo_id}", hint="such as YOUR_NAME/fitness-coach")


def _causes(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__
    return links


def _response(error: Exception) -> Any:
    responses = (getattr(link, "response", None) for link in _causes(error))
    return next((response for response in responses if response is not None), None)
