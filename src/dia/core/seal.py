"""Seals: which model folders this user's account wrote, so that the places they name may be opened.

A place that a stranger's folder names is never looked into. One's own models say where their training images
are, and prove it by a hash with a key that lies in the user's home and nowhere else. Knows texts; knows no
model.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

_BYTES = 32


def seal(*texts: str | None) -> str | None:
    """Seals texts.

    Args:
        texts: what is sealed, in order.

    Returns:
        64 hex digits, which tell nothing of the texts; None where no key can be kept.

    Example:
        >>> mark = seal("scans/normal", None)
        >>> sealed(mark, "scans/normal", None), sealed(mark, "/", None)
        (True, False)
    """
    key = _key(make=True)
    return None if key is None else _mark(key, texts)


def sealed(mark: object, *texts: str | None) -> bool:
    """Returns whether this account sealed these texts.

    Args:
        mark: what `seal` gave, or anything else.
        texts: as for `seal`.
    """
    key = _key(make=False)
    return isinstance(mark, str) and key is not None and hmac.compare_digest(mark, _mark(key, texts))


def _mark(key: bytes, texts: tuple[str | None, ...]) -> str:
    return hmac.new(key, json.dumps(texts).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Returns the account's key, made if there is none; None where it cannot be kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state, "dia", "key")
    with suppress(OSError):
        if make and file.exists() and file.stat().st_size != _BYTES:  # as a full disk leaves it
            file.unlink()
        if make and not file.exists():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = file.with_name(f"key-{secrets.token_hex(8)}")
            new.touch(mode=0o600)
            new.write_bytes(secrets.token_bytes(_BYTES))
            with suppress(FileExistsError):  # another process was first
                os.link(new, file)
            new.unlink()
        key = file.read_bytes()
        return key if len(key) == _BYTES else None
    return None
