"""ProfileService."""

from __future__ import annotations

from tailorbird.engine import Engine
from tailorbird.engine.errors import CallerError
from tailorbird.server.handlers.waiting import reach
from tailorbird.server.messages.pairs import identifiers_from
from tailorbird.server.messages.profiles import profile_message
from tailorbird.server.messages.wire import decode
from tailorbird.server.positions import Positions
from tailorbird.server.transport import CallContext
from tailorbird.v1 import profile_service_pb2


class ProfileHandlers:
    """Reads profiles on the event loop."""

    def __init__(self, engine: Engine, positions: Positions) -> None:
        self._engine = engine
        self._positions = positions

    async def get_profile(self, request_bytes: bytes, context: CallContext) -> bytes:
        """Answer GetProfile."""
        message = decode(profile_service_pb2.GetProfileRequest, request_bytes)
        identifiers = identifiers_from(message.identifiers)
        if not identifiers:
            raise CallerError("MISSING_IDENTIFIER", "expected at least one identifier, got none in identifiers")
        await reach(self._positions, message.min_position, context)
        return profile_message(self._engine.profile(identifiers, at=message.at_ms)).SerializeToString()
