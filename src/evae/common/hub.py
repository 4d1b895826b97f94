"""What went wrong with the Hub, in one line that says how to fix it."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors, get_token

from evae.models.contract_evae import EvaeError

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
# Classes of the client, of Python, and of httpx, httpx2, requests or urllib3, as the client's version has it.
UNREACHED = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionRefusedError", "ConnectError", "gaierror"}
BROKEN = {"TransportError", "ProtocolError", "RequestException", "ConnectionError", "TimeoutError"}


@contextmanager
def explain_hub_errors(
    name: str, kind: str = "model", revision: str | None = None, pushing: bool = False
) -> Iterator[None]:
    """Turn every failure of the Hub client inside the block into an `EvaeError`.

    Args:
        name: the repository's id, as the user gave it.
        kind: "model" or "dataset".
        revision: the branch, tag or commit that was asked for.
        pushing: whether the block writes to the repository; else it reads.
    """
    try:
        yield
    except EvaeError:
        raise
    except Exception as error:
        advice = explain(error, name, kind, revision, pushing)
        if advice is None:
            raise
        raise EvaeError(advice) from error


def explain(
    error: BaseException, name: str, kind: str = "model", revision: str | None = None, pushing: bool = False
) -> str | None:
    """The line for the user; None for an error that is not the Hub client's."""
    causes = _causes(error)
    lines = (_explain_class(cause, name, kind, revision) for cause in causes)
    if line := next(filter(None, lines), None):
        return line
    statuses = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes]
    if status := next(filter(None, statuses), None):
        return _explain_status(status, name)
    if any(str(cause).startswith(("Invalid filename", "Invalid pointer path")) for cause in causes):
        return f"'{name}' has file names that lead out of the local cache; do not trust it."
    classes = {base.__name__ for cause in causes for base in type(cause).__mro__}
    if classes & UNREACHED:
        return _unreached(name, pushing)
    if classes & BROKEN or any("Consistency check failed" in str(cause) for cause in causes):
        kept = "nothing was committed" if pushing else "what came whole is kept"
        return f"the connection to the Hub broke off at '{name}'; retry, {kept}."
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it came from, the deepest first: it says most."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain[::-1]


def _explain_class(error: BaseException, name: str, kind: str, revision: str | None) -> str | None:
    logged_in = get_token() is not None
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, errors.HFValidationError):
        return f"'{name}' is no Hub id; ids look like name/{kind}, with letters, digits, '-', '_' and '.'."
    if isinstance(error, errors.GatedRepoError):
        first = "ask for access" if logged_in else f"{LOGIN}, then ask for access"
        return f"'{name}' is gated; {first} at {page}"
    if isinstance(error, errors.RepositoryNotFoundError):
        advice = "ask its owner for access" if logged_in else LOGIN
        where = f"there is no folder '{name}', and no {kind} of that name on the Hub, or it is private"
        return f"{where}; check the name, or {advice}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{name}' has no revision '{revision or 'main'}'; give a branch, tag or commit of {page}/tree/main"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"the Hub wants to know who you are; {LOGIN}."
    local = isinstance(error, errors.LocalEntryNotFoundError)  # says only that there was no connection
    if isinstance(error, errors.EntryNotFoundError) and not local:
        return f"'{name}' lacks a file that is needed; give another {kind}, or another revision."
    return None


def _unreached(name: str, pushing: bool) -> str:
    if pushing:
        return f"the Hub cannot be reached to push '{name}'; check the network (and HF_HUB_OFFLINE), then retry."
    return (
        f"the Hub cannot be reached, and '{name}' is neither a local folder nor in the local cache; check the "
        "name and the network (and that HF_HUB_OFFLINE is not set), then retry."
    )


def _explain_status(status: int, name: str) -> str:
    if status == 401:
        logged_in = get_token() is not None
        return f"the Hub does not accept your token; {LOGIN} anew." if logged_in else f"you are not logged in; {LOGIN}."
    if status == 403:
        return f"your token may not do this to '{name}'; {LOGIN} with a token of role write for that namespace."
    if status in (409, 412):
        return f"someone else wrote to '{name}' at the same time; retry."
    if status == 429:
        return "the Hub limits how often you may ask; wait some minutes, then retry."
    if status >= 500:
        return f"the Hub has trouble at the moment (status {status}); wait some minutes, then retry."
    return f"the Hub refused the request about '{name}' (status {status}); check the name and your rights."
