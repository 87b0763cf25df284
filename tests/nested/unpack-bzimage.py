#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the ELF kernel out of a bzImage (boot protocol fields payload_offset, payload_length): BZIMAGE OUTPUT"""
import lzma
import struct
import subprocess
import sys


def main():
    with open(sys.argv[1], "rb") as f:
        image = f.read()
    start = (image[0x1f1] + 1) * 512 + struct.unpack_from("<I", image, 0x248)[0]
    data = image[start:start + struct.unpack_from("<I", image, 0x24c)[0]]
    if data.startswith(b"\xfd7zXZ"):
        elf = lzma.LZMADecompressor().decompress(data)    # four bytes of size follow the stream
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        elf = subprocess.run(["zstd", "-dc"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    elif data.startswith(b"\x02\x21\x4c\x18"):
        elf = subprocess.run(["lz4", "-dc"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    else:
        sys.exit(f"unpack-bzimage: payload begins with {data[:6].hex()}, neither xz, zstd nor lz4")
    if not elf.startswith(b"\x7fELF"):
        sys.exit("unpack-bzimage: the payload is no ELF file")
    with open(sys.argv[2], "wb") as f:
        f.write(elf)


main()
