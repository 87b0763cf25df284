// SPDX-License-Identifier: Apache-2.0
// The guest's platform in numbers: ports, addresses and interrupt lines, known to devices and to
// ACPI.
#ifndef VMM_DEV_PLATFORM_H
#define VMM_DEV_PLATFORM_H

#define PLAT_IOAPIC      0xfec00000ULL
#define PLAT_LAPIC       0xfee00000ULL
#define PLAT_IOAPIC_PINS 24
#define PLAT_KVM_TSS \
    0xfffbd000ULL // three pages KVM wants below 4 GiB on Intel; identity map page follows
#define PLAT_KVM_IDMAP 0xfffbc000ULL

#define PLAT_BOOT_TIMER  0xc0000000ULL // a byte 123 written here logs the boot time
#define PLAT_VIRTIO      0xc0001000ULL // slot i at PLAT_VIRTIO + i * 0x1000
#define PLAT_VIRTIO_GSI  5             // slot i interrupts on GSI 5 + i (edge)
#define PLAT_GED_GSI     21            // ACPI generic event device: VMGenID, VMClock, power button
#define PLAT_VMCLOCK_GSI 22

#define PLAT_COM1       0x3f8 // 8 ports, GSI 4
#define PLAT_COM1_GSI   4
#define PLAT_I8042_DATA 0x60 // GSI 1
#define PLAT_I8042_CMD  0x64
#define PLAT_I8042_GSI  1
#define PLAT_ACPI_SLEEP 0x600 // 8-bit sleep control register; status register follows at +1
#define PLAT_ACPI_S5    5     // SLP_TYP of S5
#define PLAT_READY      0x0dca // any byte written here: the guest is ready (to be snapshotted, to serve)

// VMGenID and VMClock live in RAM that e820 marks reserved: one page below the RSDP's segment.
#define PLAT_VMGENID 0xd0000ULL
#define PLAT_VMCLOCK 0xd1000ULL

#endif
