"""The writer: `python -m tailorbird.server.processes.writer PLAN`. Owns the log and every write; workers relay to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys

import uvloop

from tailorbird.engine import Engine
from tailorbird.engine.errors import TailorbirdError
from tailorbird.server.handlers import write_table
from tailorbird.server.metrics import Metrics
from tailorbird.server.observers import observing
from tailorbird.server.processes.gathering import Figures
from tailorbird.server.processes.intake import Intake
from tailorbird.server.processes.parent import Parent, Report, tell_failure
from tailorbird.server.processes.plan import NO_DESCRIPTOR, Plan, read_plan
from tailorbird.server.serve import log_stray
from tailorbird.server.upkeep import Upkeep
from tailorbird.server.writer import GroupWriter

LOG = logging.getLogger("tailorbird.server.processes.writer")  # run as `__main__`

NICE = 10  # a decision goes before a write where they want one core
LOOK_S = 0.1  # at whether the engine's writer has stopped for good


async def write(engine: Engine, plan: Plan) -> int:
    """Write until the supervisor says so or is gone, workers first; return the exit code."""
    parent = Parent(plan.parent)
    limits = plan.options.limits
    asyncio.get_running_loop().set_exception_handler(log_stray)
    writer = GroupWriter(engine, limits)
    intake = Intake(engine, writer, write_table(engine, writer), limits)
    metrics = None
    if plan.options.metrics:
        tenant, several = plan.tenant, len(plan.tenants) > 1
        metrics = Metrics({tenant: engine}, writers={tenant: writer}, tells_tenants=several)
    figures = Figures(metrics, plan.figures)
    upkeep = asyncio.create_task(Upkeep(engine, writer).run())
    await intake.start(plan.relay(plan.tenant))
    await figures.start()
    parent.tell(Report(kind="ready"))
    was_told = await parent.until_told([upkeep, asyncio.create_task(_until_failed(engine))])
    # Only a new start can tell what of the last group is durable, so a writer that failed makes room for one.
    why = "it is stopping" if was_told else engine.writer.failure or "it has failed"
    await intake.stop(limits.grace_s if was_told else 0.0, why)
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    await writer.close()
    await figures.stop()
    if not was_told:
        LOG.error("the writer stops and is to be started anew: %s", why)
    return 0 if was_told else 1


async def _until_failed(engine: Engine) -> None:
    """Return when the engine's writer has stopped for good."""
    while not engine.writer.failed:
        await asyncio.sleep(LOOK_S)


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    plan = read_plan(arguments)
    supervisor = os.getppid()
    with contextlib.suppress(OSError):
        os.nice(NICE)
    lock = None if plan.lock == NO_DESCRIPTOR else plan.lock
    with contextlib.ExitStack() as stack:
        stack.enter_context(observing(plan.options.observers.of_no_calls(), plan.name))
        try:
            engine = stack.enter_context(Engine.open(plan.tenants[plan.tenant], lock=lock))
            runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            for note in engine.recovery:
                LOG.warning("%s", note)
            return runner.run(write(engine, plan))
        except TailorbirdError as error:
            tell_failure(plan.parent, error)
            LOG.error("the writer cannot work", exc_info=error)
            return 1
        except Exception as error:  # told while there still is a log without values
            LOG.critical("an exception that nobody caught", exc_info=error)
            return 1
        finally:
            if os.getppid() != supervisor:  # It was killed, and nobody else is left to clear up.
                shutil.rmtree(plan.run, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
