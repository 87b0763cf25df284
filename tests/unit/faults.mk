# SPDX-License-Identifier: Apache-2.0
# The calls that test_faults makes fail, wherever in the rooms they stand.
LDLIBS_test_faults := -Wl,--wrap=malloc,--wrap=calloc,--wrap=mmap,--wrap=eventfd,--wrap=ioctl,--wrap=fcntl,--wrap=pthread_create,--wrap=syscall
