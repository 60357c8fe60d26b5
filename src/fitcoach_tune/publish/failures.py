"""What can go wrong while something is sent to the Hub: what is tried again, and what each failure means to a user."""

from __future__ import annotations

import json

from fitcoach_tune import hub
from fitcoach_tune.errors import AccessError, FitcoachTuneError, MismatchError

WRITE_TOKEN = "make a token that may write at https://huggingface.co/settings/tokens, then `hf auth login`"
AGAIN = "run it again: what has been transferred is not transferred again"
_LONGEST_PAUSE = 300  # seconds; the Hub counts requests in windows of five minutes


def is_transient(error: Exception) -> bool:
    """Whether the same call may go well a little later: the Hub is busy, out of order, or out of reach."""
    status = hub.status_of(error)
    if status is not None:
        return status in (408, 409, 429) or status >= 500
    # Not JSON: a gateway's error page where an answer was due.
    return isinstance(error, json.JSONDecodeError) or (hub.is_unreachable(error) and not hub.is_offline(error))


def pause_for(error: Exception, planned: float | None) -> float | None:
    """Seconds to wait before the next try, or None if there should be none.

    The Hub's own wish counts, unless it is for longer than five minutes.
    """
    if planned is None or not is_transient(error):
        return None
    asked = hub.retry_after(error)
    if asked is None:
        return planned
    return asked if asked <= _LONGEST_PAUSE else None


def reason(error: Exception) -> str:
    """A passing failure in a few words."""
    status = hub.status_of(error)
    return f"the Hub answered with HTTP {status}" if status else "the Hub did not answer"


def moved(where: str) -> MismatchError:
    """The branch is no longer at the commit that was looked at."""
    return MismatchError(
        "somebody else has changed the repository in the meantime; nothing was written over it",
        where=where,
        hint="look at what changed, then run it again",
    )


def explain(error: Exception, where: str, page: str) -> Exception:
    """Turn whatever the Hub's client raises into an error that says what to do.

    Args:
        where: what is written to; page: its address.

    Returns:
        `error` itself where it is none of the Hub's.
    """
    from huggingface_hub import errors

    if isinstance(error, FitcoachTuneError):
        return error
    if isinstance(error, errors.LocalTokenNotFoundError):
        return AccessError("you are not logged in", where=where, hint=WRITE_TOKEN)
    if hub.is_offline(error):
        return AccessError("offline mode is on", where=where, hint="unset HF_HUB_OFFLINE, then run it again")
    if isinstance(error, errors.GatedRepoError):
        return AccessError("it is gated, and you have no access to it", where=where, hint=f"ask for it at {page}")
    if (status := hub.status_of(error)) is not None:
        return _refused(error, status, where, page)
    if hub.is_unreachable(error):
        return AccessError("the connection to the Hub failed", where=where, hint=AGAIN)
    if isinstance(error, OSError | RuntimeError | ValueError):  # what hf_xet raises
        return AccessError(f"the transfer failed: {one_line(error)}", where=where, hint=AGAIN)
    return error


def _refused(error: Exception, status: int, where: str, page: str) -> FitcoachTuneError:
    said = hub.server_message(error)
    because = f" ({one_line(said)})" if said else ""
    if status == 412:
        return moved(where)
    if status == 400:
        return MismatchError(f"the Hub refuses what was sent{because}", where=where, hint="please report this")
    what, hint = {
        401: ("the Hub does not accept your token", WRITE_TOKEN),
        403: (f"you may not write there{because}", WRITE_TOKEN),
        404: (f"there is no such namespace or repository{because}", f"look at {page}"),
        409: (f"something else is being written there{because}", AGAIN),
        429: ("the Hub refuses so many requests", f"wait some minutes, then {AGAIN}"),
    }.get(status, (f"the Hub keeps answering with HTTP {status}{because}", AGAIN))
    return AccessError(what, where=where, hint=hint)


def card_problems(text: str) -> str:
    """What the Hub finds wrong with a card, from its answer: `{"errors": [{"message": …}]}`."""
    try:
        return one_line("; ".join(problem["message"] for problem in json.loads(text)["errors"]))
    except (ValueError, KeyError, TypeError):
        return one_line(text)


def one_line(text: object) -> str:
    """A message on one line, without secrets."""
    return " ".join(hub.without_secrets(str(text)).split())
