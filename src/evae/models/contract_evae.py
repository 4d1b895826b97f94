"""The input contract: checks of counts, genes and labels, whose messages say what to do.

Counts must be raw: non-negative, finite integers. An unknown name raises an error that names near matches.
This file needs numpy only. The processor and the data conversion share it.
"""

import difflib
from collections.abc import Container, Iterable, Sequence

import numpy as np


class EvaeError(ValueError):
    """Bad input that the user can fix; the message says how.

    The command line prints it as one line and exits with code 2.
    """


def check_raw_counts(values: np.ndarray, source: str = "the counts") -> None:
    """Raise `EvaeError` unless `values` are raw counts.

    Args:
        values: the stored values of a count matrix, any shape; of a sparse matrix its nonzero entries.
        source: what to call the values in the message, for example a file and a layer.
    """
    values = np.asarray(values)
    if values.size == 0 or values.dtype.kind in "ub":
        return
    if values.dtype.kind not in "if":
        raise EvaeError(f"{source} hold {values.dtype} values; give raw counts as integers or floats.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise EvaeError(f"{source} hold NaN or infinite values; drop those cells or genes first.")
    if values.min() < 0:
        raise EvaeError(
            f"{source} hold negative values, so they look scaled or centred; give the raw counts "
            "(often in a layer named 'counts' or in adata.raw)."
        )
    if values.dtype.kind == "f":
        fractional = values != np.floor(values)
        if fractional.any():
            example = float(values[fractional].flat[0])
            kind = "log-normalised" if values.max() < 20 else "normalised or ambient-corrected"
            raise EvaeError(
                f"{source} hold fractional values such as {example:.4g}, so they look {kind}; give the raw "
                "integer counts (often in a layer named 'counts' or in adata.raw)."
            )


def number_of(n: int, one: str, several: str | None = None) -> str:
    """A count with what is counted: "1 pair", "1,234 pairs".

    Args:
        n: how many.
        one: the words for one, a verb among them where it differs ("cell has").
        several: the words for another number; `one` with an s if None.
    """
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def near_matches(name: str, known: Sequence[str], limit: int = 3) -> str:
    """A sentence with the entries of `known` nearest to `name`, or with the first few if none is near."""
    if not known:
        return "There are none."
    lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=limit, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(f"'{lower[c]}'" for c in close) + "?"
    shown = ", ".join(f"'{k}'" for k in list(known)[:5])
    return f"Known are {shown}" + (f" and {len(known) - 5} more." if len(known) > 5 else ".")


def look_up(names: Iterable[str], known: Sequence[str], kind: str) -> np.ndarray:
    """The index in `known` of every name, as int64 of shape (names,).

    Args:
        names: what to look up.
        known: the vocabulary.
        kind: what a name is, for the message ("perturbation", "cell type", "gene").

    Raises:
        EvaeError: a name is not in the vocabulary; near matches are named.
    """
    index = {str(k): i for i, k in enumerate(known)}
    names = [str(n) for n in names]
    for name in names:
        if name not in index:
            raise EvaeError(f"unknown {kind} '{name}'. {near_matches(name, known)}")
    return np.array([index[n] for n in names], dtype=np.int64)


def split_names(text: str, known: Container[str], sign: str = ",") -> list[str]:
    """Split a text such as `STAT1,JAK2` into names.

    A name may itself hold the sign, so the longest known names are found first:
    `1,10-decanediol,JAK2` is two names if `1,10-decanediol` is known. Unknown text is split at every sign.
    """
    pieces = _pieces(text, known, sign)
    names = [n for piece, is_known in pieces for n in ([piece] if is_known else piece.split(sign))]
    return list(dict.fromkeys(n.strip() for n in names if n.strip()))


def parts_of(name: str, known: Container[str], control: str | None = None, sign: str = "+") -> list[str]:
    """The perturbations that a name combines, without the control: `KLF1+TGFBR2` is KLF1 and TGFBR2.

    A name is a combination if at least one of its parts is a known name. The longest known names are found first, and
    text between two known names is one part. So `(+)-ibuprofen` is one compound, and `TNF+(+)-ibuprofen` is TNF with
    that compound.

    Args:
        name: a label.
        known: names of perturbations, with or without `name` itself.
        control: the control's name; it is always known.
        sign: separator of the parts; "" if no name is a combination.
    """
    pieces = _pieces(name, known, sign, control, whole=False) if sign else []
    if len(pieces) < 2 or not all(piece for piece, _ in pieces):
        return [name]
    parts = [p for piece, is_known in pieces for p in (parts_of(piece, known, control, sign) if is_known else [piece])]
    return [part for part in parts if part != control] or [name]


def _pieces(
    text: str, known: Container[str], sign: str, control: str | None = None, whole: bool = True
) -> list[tuple[str, bool]]:
    """`text` split at signs into known names, the longest first, and the text between them; True marks known names.

    Args:
        whole: whether `text` as a whole may be the known name.
    """
    tokens, pieces, start = text.split(sign), list[tuple[str, bool]](), 0
    rest: list[str] = []
    while start < len(tokens):
        stops = range(len(tokens), start, -1)
        spans = [
            (stop, sign.join(tokens[start:stop]).strip())
            for stop in stops
            if whole or (start, stop) != (0, len(tokens))
        ]
        stop, piece = next(((s, p) for s, p in spans if p and (p in known or p == control)), (0, ""))
        if stop:
            pieces += [(sign.join(rest).strip(), False)] * bool(rest) + [(piece, True)]
            rest, start = [], stop
        else:
            rest.append(tokens[start])
            start += 1
    return pieces + [(sign.join(rest).strip(), False)] * bool(rest)


def check_unique(names: Sequence[str], kind: str) -> None:
    """Raise `EvaeError` if a name occurs twice."""
    seen: set[str] = set()
    twice = sorted({str(n) for n in names if str(n) in seen or seen.add(str(n))})  # type: ignore[func-returns-value]
    if twice:
        shown = ", ".join(f"'{t}'" for t in twice[:3])
        raise EvaeError(
            f"{number_of(len(twice), f'{kind} stands', f'{kind}s stand')} more than once ({shown}); make the names "
            "unique first, for example with adata.var_names_make_unique()."
        )
