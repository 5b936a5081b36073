"""A launcher and the worker that it has started speak to each other without a file, through a real Ray."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import wait_until


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_progress_and_the_wish_to_stop_arrive() -> None:
    import ray
    from ray.experimental import internal_kv

    from lgd.distributed.messages import NAMESPACE, LauncherEnd, Messages

    told: list[dict[str, Any]] = []
    launcher = LauncherEnd(Messages(), told.append)
    other = LauncherEnd(Messages(), lambda _: pytest.fail("another launch's progress"))

    def work(messages: Messages) -> str:
        import time

        from lgd.distributed.messages import WorkerEnd

        end = WorkerEnd(messages)
        asked = end.asked_to_stop()
        end.report({"step": 1})
        while not end.asked_to_stop():
            time.sleep(0.05)
        return "stopped at once" if asked else "stopped when asked"

    ended = ray.remote(num_cpus=0)(work).remote(launcher.messages)

    def poll() -> bool:
        launcher.poll()
        other.poll()
        return bool(told)

    wait_until(poll)
    # What was told is told once.
    launcher.poll()
    assert told == [{"step": 1}]
    launcher.stop.set()
    launcher.poll()
    assert ray.get(ended, timeout=60) == "stopped when asked"
    launcher.messages.remove()
    assert internal_kv._internal_kv_list(launcher.messages.key, namespace=NAMESPACE) == []
