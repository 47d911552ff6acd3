"""The service as several processes on one data directory.

    supervisor.py ─┬─ writer.py    one: owns the log and every write; intake.py takes what workers relay
                   ├─ worker.py    decides on a read-only engine; relay.py hands writes to the writer
                   └─ worker.py    they share the port

`child.py` is a process as the supervisor sees it, `parent.py` the supervisor as a process sees it, `plan.py` what a process is
started with. `frames.py` is the wire between relay and intake, `servings.py` what a worker has served until it is written,
`gathering.py` the figures of all processes on one port.
"""
