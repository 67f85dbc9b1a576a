#!/usr/bin/python3
"""Has one thread of a Rust program panic, whatever it was doing: panic_in.py PID THREAD-NAME

The thread is stopped, set down in core::option::unwrap_failed (what `.unwrap()` on a None comes to) and let go. So the
program needs no code for the fault, only its symbols. x86-64.
"""

import ctypes
import os
import subprocess
import sys

ATTACH, DETACH, GETREGS, SETREGS, POKEDATA = 16, 17, 12, 13, 5
REGISTERS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss".split()
WALL = 0x40000000


class Registers(ctypes.Structure):
    """user_regs_struct; its six last fields are segments."""

    _fields_ = [(name, ctypes.c_ulong) for name in REGISTERS + ["fs_base", "gs_base", "ds", "es", "fs", "gs"]]


def ptrace(request, thread, address=0, data=0):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, thread, address, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def named(pid, name):
    """The thread of that name."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/comm") as comm:
            if comm.read().strip() == name:
                return int(thread)
    raise SystemExit(f"{pid} has no thread {name}")


def entry(pid, symbol):
    """Where the function is in memory."""
    program = os.readlink(f"/proc/{pid}/exe")
    listed = subprocess.run(["nm", "-C", program], capture_output=True, text=True, check=True).stdout
    offset = next(int(line.split()[0], 16) for line in listed.splitlines() if line.split()[2:] == [symbol])
    with open(f"/proc/{pid}/maps") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(program))
    return base + offset


def main():
    pid, thread = int(sys.argv[1]), named(int(sys.argv[1]), sys.argv[2])
    function = entry(pid, "core::option::unwrap_failed")
    ptrace(ATTACH, thread)
    os.waitpid(thread, WALL)
    registers = Registers()
    ptrace(GETREGS, thread, 0, ctypes.addressof(registers))
    # Its only argument is where in the source that was: a file of no name, line 0. Below the red zone.
    location = (registers.rsp - 512) & ~0xF
    for word, value in enumerate([location, 0, 0, 0]):
        ptrace(POKEDATA, thread, location + 8 * word, value)
    registers.rdi, registers.rip = location, function
    # As behind a call, from nowhere: a backtrace ends there, and does not follow what happens to lie there.
    registers.rsp = location - 64 - 8
    ptrace(POKEDATA, thread, registers.rsp, 0)
    registers.orig_rax = ctypes.c_ulong(-1).value  # No system call is to be resumed.
    ptrace(SETREGS, thread, 0, ctypes.addressof(registers))
    ptrace(DETACH, thread)


if __name__ == "__main__":
    main()
