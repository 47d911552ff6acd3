"""`tailorbird keys`: the keys callers of `serve` show."""

from __future__ import annotations

import argparse
import time

from tailorbird.engine.durations import duration_ms
from tailorbird.engine.errors import CallerError
from tailorbird.server.commands.data_directory import add_data_argument, find_data_directory
from tailorbird.server.keys import DEFAULT_TENANT, Key, KeyFile, Scope
from tailorbird.server.moments import moment_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make a key and show it, this once")
    create.add_argument(
        "--scope", action="append", default=[], metavar="SCOPE", help=f"{', '.join(Scope)}; may be repeated"
    )
    create.add_argument("--name", default="", help="whose key it is")
    create.add_argument("--tenant", default=DEFAULT_TENANT, help=f"default {DEFAULT_TENANT}")
    create.add_argument("--expires", metavar="DURATION", default="", help="such as 90d; default never")
    create.add_argument("--calls-per-s-max", type=int, default=0, help="default no limit")
    create.add_argument("--message-bytes-max", type=int, default=0, help="default no limit")
    listing = verbs.add_parser("list", help="show the keys there are, without their secrets")
    revoke = verbs.add_parser("revoke", help="put a key out of force for good")
    revoke.add_argument("id", help="as `keys list` shows it")
    for verb in (create, listing, revoke):
        add_data_argument(verb)


def run(arguments: argparse.Namespace) -> int:
    file = KeyFile(find_data_directory(arguments.data))
    now = time.time_ns() // 1_000_000
    if arguments.verb == "create":
        text, key = file.create(
            [_scope(name) for name in arguments.scope],
            now,
            name=arguments.name,
            tenant=arguments.tenant,
            expires=now + duration_ms(arguments.expires, "--expires") if arguments.expires else 0,
            calls_per_s_max=arguments.calls_per_s_max,
            message_bytes_max=arguments.message_bytes_max,
        )
        print(text)
        print(
            f"key {key.id} for {', '.join(key.scopes)}; it is shown this once: send it as `authorization: Bearer KEY`"
        )
    elif arguments.verb == "revoke":
        print(f"key {file.revoke(arguments.id, now).id} is revoked; a running service refuses it within a second")
    else:
        for key in file.read():
            print(_line(key, now))
    return 0


def _scope(name: str) -> Scope:
    try:
        return Scope(name)
    except ValueError:
        raise CallerError("BAD_ARGUMENT", f"expected a scope of {', '.join(Scope)}, got {name!r} in --scope") from None


def _line(key: Key, now: int) -> str:
    if key.revoked:
        standing = f"revoked {moment_text(key.revoked)}"
    elif key.expires:
        standing = f"{'expired' if key.expires <= now else 'expires'} {moment_text(key.expires)}"
    else:
        standing = "in force"
    return f"{key.id}  {','.join(key.scopes):<28}  {key.tenant}  {standing}  {key.name}".rstrip()
