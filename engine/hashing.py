"""The hash of the state, by which a replay proves that it came to the same."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import lmdb

from tailorbird.engine.store import TABLES, Store


def state_hash(store: Store, txn: lmdb.Transaction[Any]) -> str:
    """Return the BLAKE2b-128 of every row of every table in key order, in hex."""
    digest = blake2b(digest_size=16)
    for name in TABLES:
        digest.update(name.encode() + b"\0")
        for key, value in txn.cursor(db=store.tables[name]):
            if name == "meta" and key != b"head":
                continue
            digest.update(len(key).to_bytes(4, "little") + len(value).to_bytes(4, "little"))
            digest.update(key)
            digest.update(value)
    return digest.hexdigest()
