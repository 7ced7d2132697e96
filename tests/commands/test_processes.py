"""Process groups end with their parent, and strangers are not killed."""

import os
import signal
import subprocess

import psutil

from musicgen.commands.processes import Group


def group_of_two():
    """A shell that ignores SIGTERM, and its child, in a process group of their own."""
    command = ["sh", "-c", "trap '' TERM; sleep 600 & echo started; wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"started\n"
    return process, psutil.Process(process.pid).children()


def test_a_process_ends_with_its_group_even_if_it_ignores_the_signal():
    process, children = group_of_two()
    with process.stdout:
        process.terminate()
        Group(process).end(seconds=0.2)
        psutil.wait_procs(children)
    assert process.returncode == -signal.SIGKILL


def test_the_guard_kills_the_group_of_a_process_whose_parent_has_died():
    process, children = group_of_two()
    with process.stdout:
        Group(process).guard.close()
        assert process.wait() == -signal.SIGKILL
        psutil.wait_procs(children)


def test_the_guard_of_an_ended_process_kills_no_group_that_gets_its_number():
    ended = subprocess.Popen(["true"], start_new_session=True)
    stranger, children = group_of_two()
    group = Group(stranger)
    group.process = ended
    with stranger.stdout:
        group.end(seconds=10)
        guards = [
            p
            for p in psutil.process_iter(["cmdline"])
            if (p.info["cmdline"] or [""])[-1] == str(stranger.pid)
        ]
        psutil.wait_procs(guards)
        assert stranger.poll() is None
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()
        psutil.wait_procs(children)
