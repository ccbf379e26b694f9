"""Importing the library is quick to do and drags nothing heavy along."""

import subprocess
import sys

ITS_OWN_AND_THE_WIRE = {"fluxsmith", "fluxsmith_text", "google", "grpc", "grpc_status"}
LARGEST_DIFFERENCE_S = 0.3


def in_a_fresh_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_but_itself_and_the_wire() -> None:
    code = "import grpc, sys; before = set(sys.modules); import fluxsmith; print(*(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in in_a_fresh_interpreter(code).split()}
    assert loaded - set(sys.stdlib_module_names) <= ITS_OWN_AND_THE_WIRE


def test_import_is_within_a_third_of_a_second_of_the_wire_alone() -> None:
    # CPU time of the one thread that imports, the least of several: a busy machine adds to it little.
    code = "import time, grpc; began = time.process_time(); import fluxsmith; print(time.process_time() - began)"
    times_s = [float(in_a_fresh_interpreter(code)) for _ in range(3)]
    assert min(times_s) < LARGEST_DIFFERENCE_S, times_s
