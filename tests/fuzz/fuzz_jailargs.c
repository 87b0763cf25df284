// SPDX-License-Identifier: Apache-2.0
// Fuzz: mayfly-jail's command line. What is accepted cannot name a place outside the jail's own tree.
#include "jail/cmd/args.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool good)
{
    if (!good)
        abort();
}

static bool climbs(const char *s)
{
    return s[0] == '/' || !strncmp(s, "../", 3) || strstr(s, "/../") || !strcmp(s, "..") ||
           (strlen(s) > 2 && !strcmp(s + strlen(s) - 3, "/.."));
}

static void judge_list(const struct args *a)
{
    must(a->n_cgroup <= MAX_LIST && a->n_tap <= MAX_LIST && a->n_dir <= MAX_LIST);
    for (size_t i = 0; i < a->n_cgroup; i++) {
        size_t eq = strcspn(a->cgroup[i], "=");
        must(a->cgroup[i][eq] && !memchr(a->cgroup[i], '/', eq));
        must(a->cgroup[i][0] != '.' && strcspn(a->cgroup[i], ".") < 32 && eq < 100);
    }
    for (size_t i = 0; i < a->n_tap; i++)
        must(a->tap[i][0] && strlen(a->tap[i]) < 16 && !strchr(a->tap[i], '/'));
    for (size_t i = 0; i < a->n_dir; i++)
        must(a->dir[i][0] == '/' && !climbs(strrchr(a->dir[i], '/') + 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct args a;
    struct err e = {0};
    char *text = malloc(size + 1), *argv[256];
    int argc = 0;
    must(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    argv[argc++] = text;
    for (size_t i = 0; i < size && argc < 255; i++)
        if (text[i] == '\n') {
            text[i] = '\0';
            argv[argc++] = text + i + 1;
        }
    argv[argc] = NULL;
    int rc = jail_args_parse(&a, argc, argv, &e);
    must(rc == 0 || (rc == -EINVAL && e.msg[0]));
    if (!rc && !a.version && !a.help) {
        size_t n = strlen(a.id);
        must(n >= 1 && n <= 64 && !strpbrk(a.id, "/._ \t"));
        must(a.exec_name[0] && !strchr(a.exec_name, '/') && !climbs(a.exec_name));
        must(!a.parent_cgroup || !climbs(a.parent_cgroup));
        must(a.n_rest <= 64);
        judge_list(&a);
    }
    free(text);
    return 0;
}
