"""Two runs of one experiment, runs that need the same stage, and an experiment that is removed while it is trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from retort.common.errors import UserError
from retort.common.files import PARTIAL, clear_partial, contents, write_whole
from retort.common.locks import LOCK, alone_in, check_there, is_busy, one_at_a_time, try_lock
from retort.config.schema import Recipe
from retort.engine.folder import save_whole, tidy
from retort.evaluation.results import add_entries, read_results
from retort.training.run import Outcome, train

ReadRecipe = Callable[..., Recipe]
HOLD = """
import sys, time
from pathlib import Path
from retort.common.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold() -> Callable[[Path], subprocess.Popen[str]]:
    """`hold(folder)`: a process that has the lock of an experiment."""

    def start(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    return start


def silent(*_: object) -> None:
    """Neither progress nor reports."""


class TestLock:
    def test_a_second_process_is_reported_and_a_dead_one_is_no_hindrance(
        self, tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        process = hold(tmp_path / "exp" / "a")
        try:
            assert is_busy(tmp_path / "exp" / "a")
            with (
                pytest.raises(UserError, match=f"another process trains it .process {process.pid} "),
                alone_in(tmp_path / "exp" / "a"),
            ):
                pass
        finally:
            process.kill()
            process.wait()
        assert (tmp_path / "exp" / "a" / LOCK).exists()
        assert not is_busy(tmp_path / "exp" / "a")
        with alone_in(tmp_path / "exp" / "a"):
            pass
        assert not (tmp_path / "exp" / "a").exists()

    def test_who_waits_says_so_and_goes_on(
        self, tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
    ) -> None:
        process, lines = hold(tmp_path / "a"), []

        def waiting(line: str) -> None:
            lines.append(line)
            process.kill()

        with alone_in(tmp_path / "a", waiting):
            assert is_busy(tmp_path / "a")
        process.wait()
        assert len(lines) == 1

    def test_many_take_turns(self, tmp_path: Path) -> None:
        inside, most = [], []

        def work() -> None:
            for _ in range(5):
                with one_at_a_time(tmp_path / "lock"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()

        threads = [Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1] * 20
        assert list(tmp_path.iterdir()) == []

    def test_a_forked_process_does_not_keep_it(self, tmp_path: Path) -> None:
        lock = try_lock(tmp_path / "lock")
        assert lock is not None
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        try:
            assert try_lock(tmp_path / "lock") is None
            os.close(lock.descriptor)  # as when this process is killed
            time.sleep(0.2)
            again = try_lock(tmp_path / "lock")
            assert again is not None
            again.release()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_a_stage_that_needs_itself(self, tmp_path: Path) -> None:
        with (
            alone_in(tmp_path / "a"),
            pytest.raises(UserError, match="depends on its own"),
            alone_in(tmp_path / "a"),
        ):
            pass

    @pytest.mark.parametrize("again", [False, True])
    def test_a_folder_that_was_removed_or_replaced(self, tmp_path: Path, again: bool) -> None:
        folder = tmp_path / "a"

        def work() -> None:
            with alone_in(folder):
                check_there(folder)
                shutil.rmtree(folder)
                if again:
                    folder.mkdir()
                    (folder / LOCK).touch()
                (folder / "b" / "c").write_text("of whatever kind the error is")

        with pytest.raises(UserError, match="removed while"):
            work()

    @pytest.mark.parametrize("place", ["exp", "exp/a", "exp/a/.lock"])
    def test_something_else_is_in_its_place(self, tmp_path: Path, place: str) -> None:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if path.name == LOCK else path.touch()
        with pytest.raises(UserError), alone_in(tmp_path / "exp" / "a"):
            pass


class TestRuns:
    def test_the_second_is_an_error(
        self, tmp_path: Path, read_recipe: ReadRecipe, finished_root: Path
    ) -> None:
        recipe = read_recipe("seed=3", name="other")
        errors: list[UserError] = []

        def second() -> None:
            try:
                train(recipe, finished_root, silent, silent)
            except UserError as error:
                errors.append(error)

        with alone_in(finished_root / "other"):
            thread = Thread(target=second)
            thread.start()
            thread.join()
        assert len(errors) == 1

    def test_a_finished_one_is_opened_though_it_is_locked(
        self, finished_root: Path, read_recipe: ReadRecipe
    ) -> None:
        outcomes: list[Outcome] = []
        recipe = read_recipe()
        with alone_in(finished_root / "tiny"):
            thread = Thread(target=lambda: outcomes.append(train(recipe, finished_root, silent, silent)))
            thread.start()
            thread.join()
        assert outcomes[0].before

    def test_who_needs_what_another_trains_waits_for_it(
        self, finished_root: Path, tmp_path: Path, read_recipe: ReadRecipe, write_recipe: Callable[..., Path]
    ) -> None:
        first = write_recipe()
        shutil.move(finished_root / "tiny", tmp_path / "made")
        recipe = read_recipe(f"training.warm_start={first}", "training.steps=1", name="second")
        notes: list[str] = []
        done: list[Outcome] = []

        def report(_: int, values: dict[str, object]) -> None:
            if "note" in values:
                notes.append(str(values["note"]))

        with alone_in(finished_root / "tiny"):
            second = Thread(target=lambda: done.append(train(recipe, finished_root, silent, report)))
            second.start()
            deadline = time.monotonic() + 30
            while not any("waiting" in note for note in notes) and time.monotonic() < deadline:
                time.sleep(0.05)
            shutil.copytree(tmp_path / "made", finished_root / "tiny", dirs_exist_ok=True)
        second.join()
        assert done[0].steps == 1
        assert sum("waiting" in note for note in notes) == 1

    def test_it_is_removed_meanwhile(
        self, tmp_path: Path, finished_root: Path, read_recipe: ReadRecipe
    ) -> None:
        recipe = read_recipe("seed=3", name="other")

        def report(step: int, values: dict[str, object]) -> None:
            if step == 4:
                # In one step: TensorBoard's thread writes while files are deleted one by one.
                shutil.move(finished_root / "other", tmp_path / "removed")

        with pytest.raises(UserError, match="was removed"):
            train(recipe, finished_root, silent, report)
        assert not (finished_root / "other").exists()

    @pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.json", "rejected.tsv", "init.json"])
    def test_a_folder_in_the_place_of_a_file(
        self, finished_root: Path, read_recipe: ReadRecipe, name: str
    ) -> None:
        recipe = read_recipe(f"training.init={finished_root / 'tiny'}", "training.steps=1", name="other")
        (finished_root / "other" / name).mkdir(parents=True)
        with pytest.raises(UserError):
            train(recipe, finished_root, silent, silent)

    @pytest.mark.parametrize("name", ["checkpoints", "model", "tokenizer"])
    def test_a_file_in_the_place_of_a_folder(
        self, finished_root: Path, read_recipe: ReadRecipe, name: str
    ) -> None:
        (finished_root / "other").mkdir()
        (finished_root / "other" / name).write_text("mine")
        with pytest.raises(UserError):
            train(read_recipe("training.steps=1", name="other"), finished_root, silent, silent)
        assert (finished_root / "other" / name).read_text() == "mine"


class TestLeftovers:
    def test_half_written_files_of_the_dead_go_and_those_of_the_living_stay(self, tmp_path: Path) -> None:
        left, mine = tmp_path / f"{'0' * 32}{PARTIAL}", tmp_path / f"notes{PARTIAL}"
        left.touch()
        mine.touch()
        living = tmp_path / f"{'1' * 32}{PARTIAL}"
        with living.open("xb") as file:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            write_whole(tmp_path / "a.json", "{}")
            assert {path.name for path in tmp_path.iterdir()} == {"a.json", mine.name, living.name}
        clear_partial(tmp_path)
        assert not living.exists()

    def test_a_killed_run_is_tidied_up(self, finished_root: Path, read_recipe: ReadRecipe) -> None:
        folder = finished_root / "tiny"
        before = sorted(folder.rglob("*"))
        (folder / f"{'0' * 32}{PARTIAL}").touch()
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation" / f"{'1' * 32}{PARTIAL}").touch()
        shutil.copytree(folder / "model", folder / "model.partial")
        shutil.copytree(folder / "model", folder / "model.former")
        assert train(read_recipe(), finished_root, silent, silent).before
        assert sorted({*folder.rglob("*")} - {folder / "evaluation"}) == [
            each for each in before if each.name != "evaluation"
        ]

    def test_between_two_renames(self, finished_root: Path) -> None:
        folder = finished_root / "tiny"
        before = contents(folder)
        (folder / "model").rename(folder / "model.former")
        tidy(folder)
        assert contents(folder) == before
        assert not (folder / "model.former").exists()

    def test_what_is_interrupted_leaves_nothing(self, tmp_path: Path) -> None:
        def save(path: Path) -> None:
            path.mkdir()
            (path / "half").touch()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_whole(save, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    def test_the_same_content_stays_as_it_is(self, tmp_path: Path) -> None:
        def save(path: Path) -> None:
            (path / "in").mkdir(parents=True)
            (path / "in" / "it").write_text(text)

        for text in ("a", "a", "b"):
            before = (
                (tmp_path / "model" / "in" / "it").stat().st_ino
                if text == "a" and (tmp_path / "model").exists()
                else 0
            )
            save_whole(save, tmp_path / "model")
            after = (tmp_path / "model" / "in" / "it").stat().st_ino
            assert before in (0, after)
        assert (tmp_path / "model" / "in" / "it").read_text() == "b"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_results_of_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    threads = [Thread(target=add_entries, args=(path, [{"recipe": str(n)}])) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each["recipe"] for each in read_results(path)} == set(map(str, range(12)))
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
    assert json.loads(path.read_text())
