# SPDX-License-Identifier: Apache-2.0
"""Kernel images made by hand: a few instructions in a 64-bit ELF or a bzImage, and broken variants of them."""
import struct

COM1, I8042, SLEEP = 0x3f8, 0x64, 0x600
LOAD = 0x100000


def out(port, value):
    return struct.pack("<BBHBBB", 0x66, 0xba, port, 0xb0, value, 0xee)  # mov dx, port; mov al, value; out dx, al


POWER_OFF = out(SLEEP, 5 << 2 | 0x20)
# mov dx, COM1; mov al, [rbx]; out dx, al; inc ebx
PUT = bytes.fromhex("66baf803 8a03 ee ffc3")


def say(text):
    return b"".join(out(COM1, c) for c in text.encode())


def say_zero_page_string(offset):
    """Prints the zero-terminated string that the 32-bit word at offset of the zero page points to."""
    return (b"\x8b\x9e" + struct.pack("<I", offset) +     # mov ebx, [rsi + offset]
            bytes.fromhex("803b00 740b") + PUT +          # next: cmp byte [rbx], 0; je done; put
            b"\xeb\xf0")                                 # jmp next


def say_initrd():
    return (bytes.fromhex("8b9e18020000 8b8e1c020000") +  # mov ebx, [rsi + ramdisk_image]; mov ecx, [... size]
            PUT + bytes.fromhex("ffc9 75f3"))             # next: put; dec ecx; jnz next


def echo_until_newline():
    return bytes.fromhex("66bafd03 ec a801 74f7"          # next: wait for a byte: in al, LSR; test al, 1; jz
                         "66baf803 ec ee 3c0a 75ed")      # in al, RBR; out THR, al; cmp al, newline; jne next


def scancodes_until(last):
    """Sends what the keyboard controller says to COM1, up to a byte; then pulls its reset line."""
    return (bytes.fromhex("e464 a801 74fa"                # next: in al, 0x64; test al, 1; jz next
                          "e460 66baf803 ee 3c") + bytes([last]) +  # in al, 0x60; out THR, al; cmp al, last
            bytes.fromhex("75ef b0fe e664"))              # jne next; out 0x64, 0xfe


HALT = bytes.fromhex("fa f4 ebfc")


def elf(code, segments=None, entry=LOAD, kind=2, machine=62, cls=2, phentsize=56, phnum=None, phoff=64):
    """An ELF64 without a PVH note. segments: (paddr, filesz, memsz, offset) or None for one that fits."""
    data_at = 0x1000
    segments = segments or [(LOAD, len(code), len(code), data_at)]
    head = struct.pack("<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", cls, 1, 1, 0, kind, machine, 1, entry, phoff, 0, 0, 64,
                       phentsize, len(segments) if phnum is None else phnum, 0, 0, 0)
    ph = b"".join(struct.pack("<IIQQQQQQ", 1, 7, off, pa, pa, fsz, msz, 0x1000) for pa, fsz, msz, off in segments)
    return (head + ph).ljust(data_at, b"\0") + code


def bzimage(code, version=0x20f, xload=1, pref=LOAD, init_size=0x10000, sects=1, flags=1):
    h = bytearray((sects + 1) * 512)
    struct.pack_into("<B", h, 0x1f1, sects)
    struct.pack_into("<H", h, 0x1fe, 0xaa55)
    struct.pack_into("<BB4sH", h, 0x200, 0xeb, 0x6a, b"HdrS", version)
    struct.pack_into("<B", h, 0x211, flags)
    struct.pack_into("<I", h, 0x22c, 0x7fffffff)
    struct.pack_into("<H", h, 0x236, xload)
    struct.pack_into("<QI", h, 0x258, pref, init_size)
    return bytes(h) + b"\0" * 0x200 + code
