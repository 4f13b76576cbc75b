from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from retort.common.errors import UserError
from retort.common.workers import cores, workers

OF = ("the test", "Do something")
PARENT = """
import sys, time
from retort.common.workers import workers
import os
if __name__ == "__main__":
    with workers(2, "it", "") as pool:
        list(pool.map(time.sleep, [0.01, 0.01, 0.01, 0.01]))
        print(*(process.pid for process in pool._pool._processes.values()), flush=True)
        time.sleep(60)
"""


def process_of(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def fall(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # a zombie, where nobody collects orphans, has ended
        return file.read().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_one_process_is_this_one() -> None:
    with workers(1, *OF) as pool:
        assert set(pool.map(process_of, range(2))) == {os.getpid()}


def test_results_are_in_order_and_nobody_stays() -> None:
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    with workers(2, *OF) as pool:
        assert list(pool.map(str, range(20))) == [str(number) for number in range(20)]
        pids = set(pool.map(process_of, range(4)))
    assert os.getpid() not in pids
    assert not any(lives(pid) for pid in pids)
    assert os.environ.get("OPENBLAS_NUM_THREADS") == threads


def test_a_killed_process_is_reported() -> None:
    with (
        workers(2, *OF) as pool,
        pytest.raises(UserError, match=r"process of the test was killed\. Do something"),
    ):
        list(pool.map(fall, range(2)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_none_outlives_a_killed_parent(tmp_path: object) -> None:
    (script := tmp_path / "parent.py").write_text(PARENT)  # type: ignore[operator]
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert pids
    wait_until(lambda: not any(lives(pid) for pid in pids))


def test_cores_are_those_that_may_be_used() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
