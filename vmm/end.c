// SPDX-License-Identifier: Apache-2.0
// How a microVM ends, and how its process says so.
#include "vmm/vm_priv.h"

#include <sys/stat.h>

// The monitor itself touched memory whose file was cut short. Whatever thread this is, there is no
// going on, and nothing here may take a lock.
// #syscalls:vcpu pwritev2(0) exit_group
// #syscalls:device pwritev2(0) exit_group
// #syscalls:control pwritev2(0) exit_group
// #syscalls:helper pwritev2(0) exit_group
static void on_sigbus(int sig)
{
    static const char text[] = "mayfly: " MEMORY_GONE "\n";

    (void)sig;
    if (fd_write(STDERR_FILENO, text, sizeof(text) - 1) >= 0 || errno)
        _exit(VM_EXIT_MEMORY);
}

void vm_catch_sigbus(void)
{
    signal(SIGBUS, on_sigbus);
}

bool vm_ended(const struct vm *vm)
{
    return atomic_load(&vm->ended) > 1;
}

enum vm_exit vm_exit_status(const struct vm *vm, const char **why)
{
    int v = atomic_load(&vm->ended);

    // KVM may tell of memory that is gone as a triple fault or a failed instruction.
    struct stat st;
    if (v > 1 && vm->lineage.origin == MEM_FILE && !fstat(vm->lineage.mem_fd, &st) &&
        (uint64_t)st.st_size < vm->mem.size) {
        *why = MEMORY_GONE;
        return VM_EXIT_MEMORY;
    }
    *why = v > 1 ? vm->end_text : "";
    return v > 1 ? (enum vm_exit)(v - 2) : VM_EXIT_OK;
}

// 0: running; 1: someone is writing the text; 2 + status: ended.
void vm_end(struct vm *vm, enum vm_exit how, const char *text)
{
    int none = 0;
    uint64_t one = 1;

    if (!atomic_compare_exchange_strong(&vm->ended, &none, 1))
        return;
    snprintf(vm->end_text, sizeof(vm->end_text), "%s", text);
    vcpu_halt(vm->vcpu, vm->nvcpus);
    atomic_store(&vm->ended, 2 + (int)how);
    if (fd_write(vm->exit_fd, &one, sizeof(one)) < 0)
        LOG_E(&vm->log, "cannot tell the control thread that the microVM ended");
}

void vm_stop(struct vm *vm, const char *why)
{
    vm_end(vm, VM_EXIT_OK, why);
}
