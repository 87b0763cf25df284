// SPDX-License-Identifier: Apache-2.0
// mayflyctl: which subcommand.
#include <signal.h>

#include "api-socket/ctl/mig.h"
#include "vmm/version.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"get", cmd_raw, "PATH              ask a monitor: mayflyctl --socket S get /"},
    {"put", cmd_raw, "PATH [JSON]       tell a monitor; --fd FILE hands over a descriptor"},
    {"patch", cmd_raw, "PATH [JSON]"},
    {"delete", cmd_raw, "PATH"},
    {"snapshot", cmd_snapshot, "describe FILE [--json] | merge BASE DIFF OUT"},
    {"pool", cmd_pool, "run | take | release | status: idle monitors, ready for a load"},
    {"netns", cmd_netns, "make | remove: namespaces with taps, ahead of clones"},
    {"clone", cmd_clone, "N microVMs of one snapshot"},
    {"ask", cmd_ask, "the clones that clone --keep left, each through its own tap"},
    {"end", cmd_end, "what clone --keep left running"},
    {"migrate", cmd_migrate, "HOST:PORT   move a running microVM to another host"},
    {"receive", cmd_receive, "wait there for one, or with --dir for as many as come"},
    {"drain", cmd_drain, "DIR --to HOST:PORT: move every microVM of a directory of sockets"},
    {"serve", cmd_serve, "a snapshot, to any number of other hosts"},
    {"pull", cmd_pull, "HOST:PORT   start a microVM of it there, before its memory has come"},
};

static int usage(FILE *to)
{
    fprintf(to, "usage: mayflyctl COMMAND ... (COMMAND --help says more)\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].help);
    return to == stdout ? 0 : 2;
}

#ifdef MAYFLY_SANITIZE
// A command ends soon, and what it holds with it.
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

int main(int argc, char **argv)
{
    int at = 1;

    signal(SIGPIPE, SIG_IGN);
    // Options may stand before the command, too.
    while (at < argc && !strncmp(argv[at], "--", 2)) {
        if (!strcmp(argv[at], "--help"))
            return usage(stdout);
        if (!strcmp(argv[at], "--version")) {
            printf("mayflyctl v%s\n", MAYFLY_VERSION);
            return 0;
        }
        at += strchr(argv[at], '=') ? 1 : 2;
    }
    for (size_t i = 0; at < argc && i < ARRAY_SIZE(commands); i++) {
        if (strcmp(argv[at], commands[i].name))
            continue;
        // A command sees its own name first, then every other argument.
        char *name = argv[at];
        memmove(argv + 1, argv, (size_t)at * sizeof(*argv));
        argv[0] = argv[1];
        argv[1] = name;
        return commands[i].run(argc - 1, argv + 1);
    }
    return usage(stderr);
}
