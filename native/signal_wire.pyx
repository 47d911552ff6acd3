"""Signals between the wire and the engine, without a message object in between.

`SignalDecoder` reads the batches that our clients send and protobuf's own codec would accept, into what
`server/messages/signals.py` makes of their messages. Of anything else - damaged bytes, unknown fields, a name given twice, a
property without a value - it says nothing, and the caller asks protobuf's codec, whose word on it is the last.
`OutcomeEncoder` writes what protobuf would write, byte for byte (tests/server/test_signal_codec.py).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from tailorbird.native.wire cimport Encoder, number_of, tb_length_read, tb_varint_read

# Keys: field number << 3 | wire type.
cdef enum:
    SIGNALS = 0x0A
    STREAM_SOURCE = 0x12
    ACKNOWLEDGEMENT = 0x18
    # of Signal
    TYPE = 0x0A
    EVENT_TIME_MS = 0x10
    IDENTIFIERS = 0x1A
    MESSAGE_ID = 0x22
    PROPERTIES = 0x2A
    PRODUCTS = 0x32
    CONTEXT = 0x3A
    SOURCE = 0x42
    SOURCE_OFFSET = 0x48
    CONSENT = 0x52
    # of Identifier, ContextEntry and Property
    NAME = 0x0A
    TEXT_VALUE = 0x12
    DOUBLE_VALUE = 0x19
    INT_VALUE = 0x20
    BOOL_VALUE = 0x28
    # of ProductLine, whose first texts are fields 1 to 6
    LINE_TEXTS = 7
    PRICE = 0x39
    QUANTITY = 0x40
    POSITION = 0x48
    COUPON = 0x52
    EXTRA = 0x5A

cdef tuple TEXT_NAMES = ("product_id", "sku", "name", "category", "brand", "variant", "coupon")
cdef tuple NUMBER_NAMES = ("price", "quantity", "position")
cdef frozenset LINE_NAMES = frozenset(TEXT_NAMES + NUMBER_NAMES)
cdef uint64_t ACKNOWLEDGEMENT_MAX = 2
cdef Py_ssize_t CHOICES_KEPT = 256


class Unusual(Exception):
    """These bytes are left to protobuf's codec."""


@cython.final
cdef class SignalDecoder:
    """Makes signals by `signal`, called with keywords, and what they say about consent by `choice`, called with an encoded
    ConsentChoice; whatever `choice` returns is kept for other signals with the same bytes, its `refused` are left to protobuf.
    """

    cdef object signal, choice, refused
    cdef dict choices

    def __init__(self, signal not None, choice not None, tuple refused not None):
        self.signal, self.choice, self.refused = signal, choice, refused
        self.choices = {}

    def decode_batch(self, bytes data not None, Py_ssize_t signals_max, bint is_stream):
        """Return (signals, source) of an IngestRequest or IngestStreamRequest, or None where protobuf's codec must be asked: see
        the module; also for more than `signals_max` signals."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(data)
        cdef size_t length
        cdef uint8_t key
        cdef uint64_t acknowledgement
        cdef list signals = []
        cdef str source = ""
        try:
            while at < end:
                key = at[0]
                at += 1
                if key == SIGNALS and len(signals) < signals_max:
                    if not tb_length_read(&at, end, &length):
                        return None
                    signals.append(self._signal(at, at + length))
                    at += length
                elif key == STREAM_SOURCE and is_stream:
                    source = text_at(&at, end)
                elif key == ACKNOWLEDGEMENT:  # Every known one is kept, see Acknowledgement in signal_service.proto.
                    if not tb_varint_read(&at, end, &acknowledgement) or acknowledgement > ACKNOWLEDGEMENT_MAX:
                        return None
                else:
                    return None
        except (Unusual, UnicodeDecodeError):
            return None
        return signals, source

    def decode(self, bytes data not None):
        """Return the signal of an encoded Signal, or None where protobuf's codec must be asked."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
        try:
            return self._signal(at, at + PyBytes_GET_SIZE(data))
        except (Unusual, UnicodeDecodeError):
            return None

    cdef object _signal(self, const uint8_t* at, const uint8_t* end):
        cdef str type_ = "", message_id = "", source = ""
        cdef int64_t event_time = 0, source_offset = -1
        cdef dict identifiers = {}, properties = {}, context = {}
        cdef list products = None
        cdef object consent = None
        cdef size_t length
        cdef uint8_t key
        while at < end:
            key = at[0]
            at += 1
            if key == PROPERTIES:
                put_property(&at, end, properties)
            elif key == IDENTIFIERS:
                put_pair(&at, end, identifiers)
            elif key == CONTEXT:
                put_pair(&at, end, context)
            elif key == PRODUCTS:
                if products is None:
                    products = []
                products.append(line_at(&at, end))
            elif key == TYPE:
                type_ = text_at(&at, end)
            elif key == EVENT_TIME_MS:
                event_time = number_at(&at, end)
            elif key == MESSAGE_ID:
                message_id = text_at(&at, end)
            elif key == SOURCE:
                source = text_at(&at, end)
            elif key == SOURCE_OFFSET:
                source_offset = number_at(&at, end)
                if source_offset < 0:
                    raise Unusual
            elif key == CONSENT and consent is None and tb_length_read(&at, end, &length):
                consent = self._consent(PyBytes_FromStringAndSize(<const char*>at, length))
                at += length
            else:
                raise Unusual
        if products is not None:
            if "products" in properties:
                raise Unusual
            properties["products"] = products
        return self.signal(
            type=type_, event_time=event_time, identifiers=identifiers, message_id=message_id, properties=properties,
            context=context, source=source, source_offset=source_offset, consent=consent,
        )

    cdef object _consent(self, bytes encoded):
        choice = self.choices.get(encoded)
        if choice is None:
            try:
                choice = self.choice(encoded)
            except self.refused:
                raise Unusual from None
            if len(self.choices) >= CHOICES_KEPT:
                self.choices.clear()
            self.choices[encoded] = choice
        return choice


cdef str text_at(const uint8_t** at, const uint8_t* end):
    """Read a text, and move behind it. Raises Unusual, UnicodeDecodeError."""
    cdef size_t length
    if not tb_length_read(at, end, &length):
        raise Unusual
    text = PyUnicode_DecodeUTF8(<const char*>at[0], length, NULL)
    at[0] += length
    return text


cdef int64_t number_at(const uint8_t** at, const uint8_t* end) except? -1:
    cdef uint64_t number
    if not tb_varint_read(at, end, &number):
        raise Unusual
    return <int64_t>number


cdef double double_at(const uint8_t** at, const uint8_t* end) except? -1:
    cdef double number
    if end - at[0] < 8:
        raise Unusual
    memcpy(&number, at[0], 8)
    at[0] += 8
    if not isfinite(number):
        raise Unusual
    return number


cdef const uint8_t* message_end(const uint8_t** at, const uint8_t* end) except NULL:
    """Move to the message whose length stands at `at`, and return its end."""
    cdef size_t length
    if not tb_length_read(at, end, &length):
        raise Unusual
    return at[0] + length


cdef int put_pair(const uint8_t** at, const uint8_t* end, dict pairs) except -1:
    """Put a message of a name and a value into a dict where the name is new."""
    cdef const uint8_t* stop = message_end(at, end)
    cdef str name = "", value = ""
    cdef uint8_t key
    while at[0] < stop:
        key = at[0][0]
        at[0] += 1
        if key == NAME:
            name = text_at(at, stop)
        elif key == TEXT_VALUE:
            value = text_at(at, stop)
        else:
            raise Unusual
    if name in pairs:
        raise Unusual
    pairs[name] = value
    return 0


cdef int put_property(const uint8_t** at, const uint8_t* end, dict properties) except -1:
    """Put a Property into a dict where its name is new."""
    cdef const uint8_t* stop = message_end(at, end)
    cdef str name = ""
    cdef object value = None
    cdef uint8_t key
    while at[0] < stop:
        key = at[0][0]
        at[0] += 1
        if key == NAME:
            name = text_at(at, stop)
        elif key == TEXT_VALUE:
            value = text_at(at, stop)
        elif key == DOUBLE_VALUE:
            value = double_at(at, stop)
        elif key == INT_VALUE:
            value = number_at(at, stop)
        elif key == BOOL_VALUE:
            value = number_at(at, stop) != 0
        else:
            raise Unusual
    if value is None or name in properties:
        raise Unusual
    properties[name] = value
    return 0


cdef dict line_at(const uint8_t** at, const uint8_t* end):
    """Read a ProductLine: texts that say something, numbers that are there, then what else it has."""
    cdef const uint8_t* stop = message_end(at, end)
    cdef dict line = {}, extra = None
    cdef Py_ssize_t i
    cdef uint8_t key
    texts = [None] * LINE_TEXTS
    price = quantity = position = None
    while at[0] < stop:
        key = at[0][0]
        at[0] += 1
        if key == PRICE:
            price = double_at(at, stop)
        elif key == QUANTITY:
            quantity = number_at(at, stop)
        elif key == POSITION:
            position = number_at(at, stop)
        elif key == COUPON:
            texts[LINE_TEXTS - 1] = text_at(at, stop)
        elif key == EXTRA:
            if extra is None:
                extra = {}
            put_property(at, stop, extra)
        elif key & 7 == 2 and 1 <= key >> 3 < LINE_TEXTS:
            texts[(key >> 3) - 1] = text_at(at, stop)
        else:
            raise Unusual
    for i in range(LINE_TEXTS):
        if texts[i]:
            line[TEXT_NAMES[i]] = texts[i]
    if price is not None:
        line["price"] = price
    if quantity is not None:
        line["quantity"] = quantity
    if position is not None:
        line["position"] = position
    if extra is not None:
        if not LINE_NAMES.isdisjoint(extra):
            raise Unusual
        line.update(extra)
    return line


@cython.final
cdef class OutcomeEncoder(Encoder):
    """Writes what became of signals. `statuses` are the engine's members in the order of their numbers on the wire, from 1."""

    cdef tuple statuses

    def __init__(self, tuple statuses not None):
        self.statuses = statuses

    def encode(self, outcomes, int64_t position, source_offset=None):
        """Return an answer with these outcomes; `source_offset` is IngestStreamResponse's."""
        cdef size_t start
        self.used = 0
        for outcome in outcomes:
            start = self._open(1)
            self._number(1, number_of(self.statuses, outcome.status))
            self._text(2, outcome.reason)
            self._text(3, outcome.message)
            self._number(4, outcome.position)
            self._close(start)
        self._number(2, position)
        if source_offset is not None:
            self._key_and_number(3, source_offset)
        return self._encoded()
