#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our own 6.1 kernel boots: as PVH ELF, as 64-bit ELF without the PVH note, as bzImage; with an initrd and straight
from a root drive; and each ends with exit status 0 when it powers off."""
# timeout: 300
from minimal import every_form

every_form("6.1")
