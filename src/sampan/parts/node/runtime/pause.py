"""The sandbox's first process: a program of a few machine instructions that waits and reaps.

It is process 1 of the pod's pid namespace, so it must outlive the containers, reap what they orphan, and cost nothing: a
static ELF file of about two hundred bytes and one page of memory. There is no compiler on users' machines, so the bytes are
put together here::

    again: wait4(-1, NULL, 0, NULL)      reap; returns -ECHILD at once when there is no child
           if result > 0: goto again
           pause()                       until a signal; SIGCHLD interrupts it
           goto again

``pause`` returns only after a signal handler ran, so SIGCHLD gets an empty one (rt_sigaction with a restorer).
Without one for SIGTERM, process 1 ignores it: a sandbox ends by SIGKILL.
"""

from __future__ import annotations

import platform
import struct

_BASE = 0x400000
_HEADER = 64 + 56


def _x86_64() -> bytes:
    # data after the code: struct sigaction {handler, flags SA_RESTORER|SA_NOCLDSTOP, restorer, mask}
    code = bytearray()
    code += bytes.fromhex("b80d000000")  # mov eax, 13 (rt_sigaction)
    code += bytes.fromhex("bf11000000")  # mov edi, 17 (SIGCHLD)
    code += bytes.fromhex("488d35") + b"AAAA"  # lea rsi, [rip+action]
    action_at = len(code)
    code += bytes.fromhex("31d2")  # xor edx, edx
    code += bytes.fromhex("41ba08000000")  # mov r10d, 8
    code += bytes.fromhex("0f05")  # syscall
    again = len(code)
    code += bytes.fromhex("b83d000000")  # mov eax, 61 (wait4)
    code += bytes.fromhex("48c7c7ffffffff")  # mov rdi, -1
    code += bytes.fromhex("31f6 31d2 4531d2 0f05".replace(" ", ""))  # wait4(-1, 0, 0, 0)
    code += bytes.fromhex("4885c0")  # test rax, rax
    code += b"\x7f" + struct.pack("b", again - (len(code) + 2))  # jg again
    code += bytes.fromhex("b822000000 0f05".replace(" ", ""))  # pause()
    code += b"\xeb" + struct.pack("b", again - (len(code) + 2))  # jmp again
    handler = len(code)
    code += b"\xc3"  # ret
    restorer = len(code)
    code += bytes.fromhex("b80f000000 0f05".replace(" ", ""))  # rt_sigreturn()
    while len(code) % 8:
        code += b"\x90"
    action = len(code)
    start = _BASE + _HEADER
    code += struct.pack("<QQQQ", start + handler, 0x04000001, start + restorer, 0)
    at = action_at - 4
    code[at : at + 4] = struct.pack("<i", action - action_at)
    return bytes(code)


def _arm64() -> bytes:
    # arm64 needs no restorer: the kernel's vdso has one
    body = [
        0xD28010C8,  # 0  mov x8, #134 (rt_sigaction)
        0xD2800220,  # 1  mov x0, #17 (SIGCHLD)
        0,  # 2  adr x1, action, once its place is known
        0xD2800002,  # 3  mov x2, #0
        0xD2800103,  # 4  mov x3, #8
        0xD4000001,  # 5  svc #0
        0xD2802088,  # 6  again: mov x8, #260 (wait4)
        0x92800000,  # 7  mov x0, #-1
        0xD2800001,  # 8  mov x1, #0
        0xD2800003,  # 9  mov x3, #0
        0xD4000001,  # 10 svc #0        (x2 is 0 still)
        0xF100001F,  # 11 cmp x0, #0
        0x54000000 | ((6 - 12) & 0x7FFFF) << 5 | 0xC,  # 12 b.gt again
        # arm64 has no pause; ppoll(NULL, 0, NULL, NULL) waits for a signal too
        0xD2800928,  # 13 mov x8, #73 (ppoll)
        0xD2800000,  # 14 mov x0, #0
        0xD2800001,  # 15 mov x1, #0
        0xD2800002,  # 16 mov x2, #0
        0xD2800003,  # 17 mov x3, #0
        0xD4000001,  # 18 svc #0
    ]
    body.append(0x14000000 | ((6 - len(body)) & 0x3FFFFFF))  # b again
    handler = len(body)
    body.append(0xD65F03C0)  # ret
    if len(body) % 2:
        body.append(0xD503201F)  # nop
    action = len(body)
    body[2] = 0x10000001 | (action - 2) << 5
    start = _BASE + _HEADER
    code = struct.pack(f"<{len(body)}I", *body)
    return code + struct.pack("<QQQ", start + handler * 4, 1, 0)


def program(machine: str | None = None) -> bytes:
    """The ELF file for a machine (as ``platform.machine`` names it; None: this one).

    Raises:
        KeyError: no program for that machine.
    """
    number, code = {
        "x86_64": (62, _x86_64),
        "aarch64": (183, _arm64),
        "arm64": (183, _arm64),
    }[machine or platform.machine()]
    body = code()
    size = _HEADER + len(body)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _BASE + _HEADER, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    # one segment, readable and executable, from the start of the file
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + body
