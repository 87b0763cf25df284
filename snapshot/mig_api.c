// SPDX-License-Identifier: Apache-2.0
// Requests of migration, from the API to a job of the helper.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "snapshot/mig_os.h"
#include "snapshot/wset.h"
#include "vmm/log.h"

static struct mig_run *get(struct vm *vm)
{
    return *vm_migration(vm);
}

static void *map(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void run_free(struct mig_run *r)
{
    if (!r)
        return;
    for (int i = 0; i < 2; i++) {
        close_fdp(&r->fd[i]);
        close_fdp(&r->next[i]);
    }
    close_fdp(&r->arbiter);
    fds_close(&r->fds);
    if (r->bits)
        munmap(r->bits, r->bits_size);
    munmap(r, r->map_size);
}

int mig_alloc_bits(struct mig_run *r, struct err *e)
{
    struct mig *m = &r->m;

    m->mem = vm_mem(r->vm);
    m->npages = m->mem->size / PAGE_SIZE;
    m->nwords = pages_words(m->mem);
    r->bits_size = m->nwords * 16;
    if (!(r->bits = map(r->bits_size)))
        return err_set(e, ENOMEM, "no memory for bitmaps");
    m->todo = r->bits;
    m->aux = m->todo + m->nwords;
    atomic_store(&m->st.total_pages, m->npages);
    return 0;
}

// The buffers lie behind the struct; what a migration does not touch costs nothing.
static struct mig_run *run_new(struct vm *vm, enum mig_role role, struct err *e)
{
    size_t head = ALIGN_UP(sizeof(struct mig_run), PAGE_SIZE), buf = MIG_HEAD + MIG_PAYLOAD;
    size_t size = head + 2 * buf + MIG_PAYLOAD + MIG_BLOB_MAX;
    struct mig_run *r = map(size), *old = get(vm);
    const struct vm_lineage *l = vm_lineage(vm);

    if (!r) {
        err_set(e, ENOMEM, "no memory for a migration");
        return NULL;
    }
    uint8_t *p = (uint8_t *)r + head;
    struct mig *m = &r->m;
    r->vm = vm;
    r->map_size = size;
    r->fd[0] = r->fd[1] = r->next[0] = r->next[1] = r->arbiter = r->uffd = -1;
    m->io = &mig_os_io;
    m->ctx = r;
    m->stage = p;
    m->ch[0].buf = p + MIG_PAYLOAD;
    m->ch[1].buf = m->ch[0].buf + buf;
    m->blob = m->ch[1].buf + buf;
    atomic_store(&m->st.role, role);
    memcpy(m->self, l->seed, sizeof(l->seed));
    memset(m->self + sizeof(l->seed), 0xff, MIG_ID - sizeof(l->seed));
    memcpy(m->uuid, old && old->m.known ? old->m.uuid : m->self, MIG_ID);
    m->known = old && old->m.known;
    m->epoch = m->known ? old->m.epoch : 1;
    return r;
}

static int take_channel(const char *path, const char *field, struct passed_fds *fds, struct err *e)
{
    char *end;
    struct stat st;
    unsigned long n = strncmp(path, "fd:", 3) ? ~0UL : strtoul(path + 3, &end, 10);

    if (!fds || n >= fds->n || path[3] < '0' || path[3] > '9' || *end || fds->fd[n] < 0)
        return err_set(e, EINVAL,
                       "channels.%s: must be fd:N, a descriptor that came with this request",
                       field);
    if (fstat(fds->fd[n], &st) || !S_ISSOCK(st.st_mode))
        return err_set(e, EINVAL, "channels.%s: not a connected socket", field);
    return steal_fd(&fds->fd[n]);
}

static int take_channels(const struct migration_channels *c, struct passed_fds *fds, int fd[2],
                         struct err *e)
{
    fd[MIG_URGENT] = take_channel(c->urgent, "urgent", fds, e);
    fd[MIG_BULK] = fd[MIG_URGENT] < 0 ? -1 : take_channel(c->bulk, "bulk", fds, e);
    return MIN(fd[0] < 0 ? fd[0] : fd[1], 0);
}

static int open_arbiter(struct mig_run *r, const char *path, bool without, struct passed_fds *fds,
                        struct err *e)
{
    r->m.arbitrated = path[0];
    atomic_store(&r->m.st.arbitrated, r->m.arbitrated);
    if (!path[0] && !without)
        return err_set(e, EINVAL, "arbiter: missing; allow_unarbitrated goes without one");
    if (path[0] && (r->arbiter = path_open(r->vm, path, "arbiter", O_RDWR, fds, e)) < 0)
        return r->arbiter;
    if (!path[0])
        LOG_W(vm_log(r->vm), "migration without an arbiter: a link that dies at the commit leaves "
                             "it to the operator");
    return 0;
}

static void job(void *arg)
{
    struct mig_run *r = arg;
    bool source = atomic_load(&r->m.st.role) == MIG_SOURCE;
    int rc = source ? mig_source(&r->m) : mig_target(&r->m);

    if (rc)
        LOG_W(vm_log(r->vm), "migration: %s", r->m.e.msg);
    else
        LOG_I(vm_log(r->vm), "migration: done, downtime %llu us",
              (unsigned long long)atomic_load(&r->m.st.downtime_us));
}

// A migration that is over makes room for the next.
static int start(struct mig_run *r, struct err *e)
{
    struct mig_run *old = get(r->vm);

    atomic_store(&r->m.st.state, MIG_ACTIVE);
    *vm_migration(r->vm) = r;
    wset_stop(r->vm);
    if (vm_job(r->vm, job, r)) {
        *vm_migration(r->vm) = old;
        return err_set(e, EBUSY, "the helper thread is busy");
    }
    run_free(old);
    return 0;
}

static void run_freep(struct mig_run **r)
{
    run_free(*r);
}

static struct mig_run *steal_run(struct mig_run **r)
{
    struct mig_run *v = *r;
    *r = NULL;
    return v;
}

static void new_session(struct mig_run *r)
{
    struct vm_lineage *l = vm_lineage(r->vm);
    uint64_t k[3] = {le64_get(l->secret), le64_get(l->secret + 8), ++l->made};

    le64_put(r->m.session, XXH64(k, sizeof(k), k[0]));
    le64_put(r->m.session + 8, XXH64(k, sizeof(k), k[1]));
}

int migration_send(struct vm *vm, const struct migration_send *s, struct passed_fds *fds,
                   struct err *e)
{
    int rc = migration_refuse(vm, e);
    if (rc == 0)
        rc = mig_small_pages(&vm_config(vm)->machine, e);
    _cleanup_(run_freep) struct mig_run *r = rc ? NULL : run_new(vm, MIG_SOURCE, e);

    if (!r)
        return rc ? rc : -ENOMEM;
    struct mig *m = &r->m;
    if ((rc = take_channels(&s->channels, fds, r->fd, e)) ||
        (rc = open_arbiter(r, s->arbiter, s->allow_unarbitrated, fds, e)) ||
        (rc = mig_alloc_bits(r, e)))
        return rc;
    m->mode = s->mode;
    atomic_store(&m->st.mode, m->mode);
    m->late_pull = s->on_timeout == MIG_LATE_POSTCOPY;
    m->verify = s->verify == MIG_VERIFY_RAM;
    m->downtime_ns = (s->downtime_ms ? s->downtime_ms : 300) * MIG_MS;
    m->timeout_ns = (s->timeout_ms ? s->timeout_ms : 600000) * MIG_MS;
    m->bytes_s = s->bandwidth_mib_s * MIB;
    new_session(r);
    rc = start(r, e);
    if (rc == 0)
        steal_run(&r);
    return rc;
}

int migration_receive(struct vm *vm, const struct migration_receive *x, struct passed_fds *fds,
                      struct err *e)
{
    int rc = migration_refuse(vm, e);
    _cleanup_(run_freep) struct mig_run *r = rc ? NULL : run_new(vm, MIG_TARGET, e);

    if (!r)
        return rc ? rc : -ENOMEM;
    r->m.lease_ns = (x->lease_ms ? x->lease_ms : 10000) * MIG_MS;
    r->rx = *x;
    if ((rc = take_channels(&x->channels, fds, r->fd, e)) ||
        (rc = open_arbiter(r, x->arbiter, x->allow_unarbitrated, fds, e)))
        return rc;
    r->fds = *fds; // taps and disks of the overrides are opened much later
    rc = start(r, e);
    if (rc) {
        r->fds.n = 0;
        return rc;
    }
    fds->n = 0;
    steal_run(&r);
    return 0;
}

static struct mig_run *active(struct vm *vm, struct err *e)
{
    struct mig_run *r = get(vm);

    if (!r || !vm_job_runs(vm))
        err_set(e, EPERM, "no migration is under way");
    return r && vm_job_runs(vm) ? r : NULL;
}

int migration_recover(struct vm *vm, const struct migration_channels *c, struct passed_fds *fds,
                      struct err *e)
{
    struct mig_run *r = get(vm);
    bool again = r && atomic_load(&r->m.st.role) == MIG_TARGET &&
                 atomic_load(&r->m.st.state) == MIG_DONE &&
                 !vm_job_runs(vm); // a source that never heard that all is here asks again

    if (!again && !(r = active(vm, e)))
        return -EPERM;
    if (!again && atomic_load(&r->m.st.state) != MIG_PAUSED)
        return err_set(e, EPERM, "the migration's link is not down");
    if (atomic_load(&r->brought))
        return err_set(e, EBUSY, "a recovery is under way");
    int rc = take_channels(c, fds, r->next, e);
    if (rc) {
        close_fdp(&r->next[0]);
        r->next[0] = r->next[1] = -1;
        return rc;
    }
    atomic_store(&r->brought, true);
    if (again)
        return vm_job(vm, job, r);
    vm_wake_helper(vm);
    return 0;
}

int migration_cancel(struct vm *vm, struct err *e)
{
    struct mig_run *r = active(vm, e);

    if (!r)
        return -EPERM;
    bool undecided = atomic_load(&r->m.st.state) == MIG_UNKNOWN && !r->m.arbitrated;
    if (!undecided && atomic_load(&r->m.st.stage) >= MIG_S_COMMIT)
        return err_set(e, EPERM, "the microVM changes hands already: too late to cancel");
    atomic_store(undecided ? &r->m.give_up : &r->m.cancel, true);
    vm_wake_helper(vm);
    return 0;
}

int migration_finalize(struct vm *vm, struct err *e)
{
    struct mig_run *r = get(vm);
    uint32_t state = r ? atomic_load(&r->m.st.state) : MIG_IDLE;

    if (state == MIG_DONE && atomic_load(&r->m.st.role) == MIG_SOURCE) {
        vm_over(vm, VM_EXIT_OK, "the microVM has moved");
        return 0;
    }
    if (state != MIG_PAUSED && state != MIG_UNKNOWN)
        return err_set(e, EPERM, "there is nothing to finalize");
    if (atomic_load(&r->m.st.role) == MIG_SOURCE)
        vm_over(vm, VM_EXIT_OK, "the microVM is given up here");
    atomic_store(&r->m.give_up, true);
    vm_wake_helper(vm);
    return 0;
}

const struct migration_status *migration_status(struct vm *vm, const char **why)
{
    const struct mig_run *r = get(vm);

    *why = r ? r->m.e.msg : "";
    return r ? &r->m.st : NULL;
}

int migration_refuse(struct vm *vm, struct err *e)
{
    const struct mig_run *r = get(vm);

    if (!r)
        return 0;
    if (vm_job_runs(vm))
        return err_set(e, EBUSY, "a migration is under way");
    if (atomic_load(&r->m.st.role) == MIG_SOURCE && r->m.running)
        return err_set(e, EPERM, "the microVM runs elsewhere");
    return 0;
}

bool migration_end(struct vm *vm)
{
    struct mig_run *r = get(vm);

    if (!r)
        return true;
    // A thread that waits for a page would be given zeros if the userfaultfd were closed in good order.
    if (r->m.armed)
        return false;
    atomic_store(&r->m.stop, true);
    while (vm_job_runs(vm)) { // it may wait for an answer of this very thread
        vm_wake_helper(vm);
        vm_answer(vm);
        poll(NULL, 0, 1);
    }
    run_free(r);
    *vm_migration(vm) = NULL;
    return true;
}
