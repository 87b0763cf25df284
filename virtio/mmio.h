// SPDX-License-Identifier: Apache-2.0
// Internal to virtio/: the steps of a device's life that the register interface triggers. Device
// lock held, but for vio_load's paused device.
#ifndef VIRTIO_MMIO_H
#define VIRTIO_MMIO_H

#include "virtio/virtio.h"

uint64_t vio_offered(const struct vio_dev *d);
// Whether a driver may go on with these features: VERSION_1, and nothing that was not offered.
bool vio_features_ok(const struct vio_dev *d, uint64_t features);
// Makes the ready queues live and the device active. -EINVAL: a ring is not where one can be, or
// the device refuses; nothing is live then.
int vio_activate(struct vio_dev *d);
// Back to the beginning, at once or when what is in flight has landed.
void vio_reset(struct vio_dev *d);

#endif
