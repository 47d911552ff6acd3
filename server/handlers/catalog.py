"""CatalogService."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.server.lanes import Lane, lane_of
from tailorbird.server.messages.items import item_from
from tailorbird.server.messages.wire import decode
from tailorbird.server.transport import CallContext
from tailorbird.server.writer import GroupWriter
from tailorbird.v1 import catalog_service_pb2 as api

REMEMBERED_WRITES = 1_024
MESSAGE_ID_BYTES_MAX = 255


class CatalogHandlers:
    """Writes items and remembers the last writes, so that a retry does not undo what came between."""

    def __init__(self, engine: Engine, writer: GroupWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._items_max = engine.configuration.limits.items_per_put_max
        self._positions: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def put_items(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer PutItems."""
        message = decode(api.PutItemsRequest, request_bytes)
        self._check(message.message_id, len(message.items), "items")
        items = [item_from(item) for item in message.items]
        position = await self._write(
            "put",
            message.message_id,
            lambda: self._engine.put_items(items),
            len(request_bytes),
            lane_of(context.method),
        )
        return api.PutItemsResponse(position=position).SerializeToString()

    async def delete_items(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer DeleteItems."""
        message = decode(api.DeleteItemsRequest, request_bytes)
        self._check(message.message_id, len(message.item_ids), "item_ids")
        ids = list(message.item_ids)
        position = await self._write(
            "delete",
            message.message_id,
            lambda: self._engine.delete_items(ids),
            len(request_bytes),
            lane_of(context.method),
        )
        return api.DeleteItemsResponse(position=position).SerializeToString()

    def _check(self, message_id: str, count: int, field: str) -> None:
        if not message_id:
            raise CallerError("MISSING_MESSAGE_ID", "expected a message_id, got none; a retry is recognised by it")
        if len(message_id.encode()) > MESSAGE_ID_BYTES_MAX:
            raise CallerError(
                "MESSAGE_ID_TOO_LONG",
                f"expected a message_id of at most {MESSAGE_ID_BYTES_MAX} bytes, got a longer one",
            )
        if not 1 <= count <= self._items_max:
            raise CallerError(
                "BAD_ITEM_COUNT", f"expected 1 to limits.items_per_put_max = {self._items_max} {field}, got {count}"
            )

    async def _write(self, verb: str, message_id: str, write: Callable[[], int], size_bytes: int, lane: Lane) -> int:
        key = (verb, message_id)

        def once() -> int:
            # On the writer's thread, one at a time: a retry that arrives while the first is being written finds it too.
            position = self._positions.get(key)
            if position is None:
                position = self._positions[key] = write()
                if len(self._positions) > REMEMBERED_WRITES:
                    self._positions.popitem(last=False)
            return position

        return await self._writer.call(once, size_bytes, lane)
