# SPDX-License-Identifier: Apache-2.0
"""The report of bench-coldstart: tables in Markdown, plots as SVG written by hand."""
import json
import math
import os

from bench import markdown, median, num, p99

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COLOURS = {"mayfly": "#0b6e4f", "mayfly, shell": "#1fa774", "mayfly, shell, working set": "#8bd3a8",
           "mayflyctl clone": "#3a6ea5",
           "mayflyctl clone --pool": "#7fb2e5", "firecracker": "#c8553d", "firecracker, shell": "#e8a598",
           "floor": "#888888"}
ORDER = list(COLOURS)


def ticks(lo, hi):
    """1, 2, 5, 10, ... for a logarithmic axis."""
    out = []
    for e in range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1):
        out += [m * 10 ** e for m in (1, 2, 5) if lo <= m * 10 ** e <= hi]
    return out


class Plot:
    """Lines over two logarithmic axes."""

    W, H, L, R, T, B = 760, 420, 70, 190, 40, 50

    def __init__(self, title, x, y):
        self.title, self.x, self.y, self.lines = title, x, y, []

    def line(self, name, points, colour):
        self.lines.append((name, [p for p in points if p[1] and p[1] > 0], colour))

    def svg(self):
        xs = [p[0] for _, ps, _ in self.lines for p in ps]
        ys = [p[1] for _, ps, _ in self.lines for p in ps]
        x0, x1, y0, y1 = min(xs), max(xs), min(ys) * 0.8, max(ys) * 1.25
        x1 = x1 if x1 > x0 else x0 * 2

        def at(x, y):
            w, h = self.W - self.L - self.R, self.H - self.T - self.B
            return (self.L + w * math.log(x / x0) / math.log(x1 / x0),
                    self.T + h * (1 - math.log(y / y0) / math.log(y1 / y0)))
        out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.W} {self.H}" font-family="sans-serif" '
               f'font-size="12"><rect width="{self.W}" height="{self.H}" fill="white"/>',
               f'<text x="{self.L}" y="22" font-size="15">{self.title}</text>']
        for t in ticks(y0, y1):
            _, y = at(x0, t)
            out.append(f'<line x1="{self.L}" x2="{self.W - self.R}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                       f'<text x="{self.L - 6}" y="{y + 4:.1f}" text-anchor="end">{t:g}</text>')
        for t in sorted(set(xs)):
            x, _ = at(t, y0)
            out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{self.T}" y2="{self.H - self.B}" stroke="#eee"/>'
                       f'<text x="{x:.1f}" y="{self.H - self.B + 16}" text-anchor="middle">{t:g}</text>')
        out.append(f'<text x="{(self.L + self.W - self.R) / 2}" y="{self.H - 12}" text-anchor="middle">{self.x}</text>'
                   f'<text x="16" y="{(self.T + self.H - self.B) / 2}" text-anchor="middle" '
                   f'transform="rotate(-90 16 {(self.T + self.H - self.B) / 2})">{self.y}</text>')
        for i, (name, points, colour) in enumerate(self.lines):
            xy = [at(*p) for p in points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in xy]
            y = self.T + 18 * i + 8
            out.append(f'<rect x="{self.W - self.R + 12}" y="{y - 9}" width="12" height="12" fill="{colour}"/>'
                       f'<text x="{self.W - self.R + 30}" y="{y + 2}">{name}</text>')
        return "\n".join(out) + "</svg>\n"


def names_of(samples):
    seen = {v for by in samples.values() for v in by}
    return [n for n in ORDER if n in seen]


def table(samples, first):
    names = names_of(samples)
    lines = [[first] + names + (["to Firecracker"] if "firecracker" in names else []) +
             (["to the floor"] if "floor" in names else [])]
    for row, by in samples.items():
        line = [str(row)]
        for n in names:
            line.append(f"{num(median(by[n]))} ({num(p99(by[n]))})" if n in by else "-")
        ours = median(by["mayfly"] if "mayfly" in by else next(iter(by.values())))
        if "firecracker" in names:
            pair = [(m, f) for m, f in (("mayfly", "firecracker"), ("mayfly, shell", "firecracker, shell"))
                    if m in by and f in by]
            line.append(", ".join(f"{median(by[m]) / median(by[f]):.2f}" for m, f in pair) or "-")
        if "floor" in names:
            line.append(f"{ours / median(by['floor']):.1f}" if "floor" in by else "-")
        lines.append(line)
    return markdown(lines)


def density_table(rows):
    head = ["clones", "answered", "again later", "first to last, ms", "asked again, ms", "MemAvailable", "slab",
            "page tables", "kernel stacks", "PSS", "monitor alone, RSS", "monitor alone, PSS", "wake-ups a second",
            "a namespace", "all gone, ms"]
    keys = ["n", "answered", "again", "total_ms", "again_ms", "available_kib", "slab_kib", "tables_kib", "stack_kib",
            "pss_kib", "own_rss_kib", "own_pss_kib", "wakes_per_s", "netns_kib", "end_ms"]
    return markdown([head] + [["-" if r[k] is None else str(r[k]) if k in ("n", "answered", "again") else num(r[k])
                               for k in keys] for r in rows])


def fan_plot(fan):
    p = Plot("N restores at once: first spawn to last answer", "clones", "ms")
    for name in names_of(fan):
        p.line(name, [(int(n), median(by[name])) for n, by in fan.items() if name in by], COLOURS[name])
    return p.svg()


def density_plot(rows):
    p = Plot("Memory a clone costs the host", "clones alive and answering", "KiB each")
    for key, name, colour in (("available_kib", "MemAvailable", "#0b6e4f"), ("slab_kib", "slab", "#3a6ea5"),
                              ("pss_kib", "PSS of the monitor", "#1fa774"), ("tables_kib", "page tables", "#c8553d"),
                              ("netns_kib", "a namespace and tap", "#888888")):
        p.line(name, [(r["n"], r[key]) for r in rows], colour)
    return p.svg()


def density_time_plot(rows):
    p = Plot("N clones: time until all have answered", "clones", "ms")
    p.line("restored and answered", [(r["n"], r["total_ms"]) for r in rows], "#0b6e4f")
    p.line("asked again", [(r["n"], r["again_ms"]) for r in rows], "#3a6ea5")
    p.line("all gone", [(r["n"], r["end_ms"]) for r in rows], "#c8553d")
    return p.svg()


def shell_ratio(r, row, *ours):
    return min(median(r["clocks"][row][v]) for v in ours) / median(r["clocks"][row]["firecracker, shell"])


def at(r, n):
    return next(row for row in r["density"] if row["n"] == n)


def all_answered(r):
    return max(row["n"] for row in r["density"] if row["answered"] == row["again"] == row["n"])


def clock(row, v):
    return lambda r: median(r["clocks"][row][v])


def larger(row, v):
    return lambda r: median(r["clocks"][row + ", 1024 MiB"][v]) - median(r["clocks"][row + ", 128 MiB"][v])


def made(row):
    return lambda r: median(r["create"][row]["mayfly"])


LOAD, PACKET, WRITTEN = "load asked to answered", "load asked to guest's first packet", "load asked to 16 MiB written"
SPAWN, SHELL, SET = "spawn to guest's first packet", "mayfly, shell", "mayfly, shell, working set"
LIVE = "live, 1024 MiB with 24 MiB touched, %s: guest stopped, ms"
KERNEL = ("the kernel's part, by a trace: the file mapped beneath a memory slot, the tap attached, the vCPU's first state, "
          "one wake-up of the device thread")
DISK = "two files and their folder are made durable on this disk; without that it is the next row"
LAST = "other work on the two CPUs while the last pages are written and the vCPU is woken: the monitor's own log tells less"
# What is asked for, how it is found, the most (or least) that is right, and why it is not when it is not.
GOALS = (
    ("load answered, with a shell, ms", clock(LOAD + ", 128 MiB", SHELL), "<=", 0.6, KERNEL),
    ("the same, of Firecracker's", lambda r: shell_ratio(r, LOAD + ", 128 MiB", SHELL), "<=", 0.1, KERNEL),
    ("load to the guest's first packet, with a shell, ms", clock(PACKET + ", 128 MiB", SHELL), "<=", 1.0, KERNEL),
    ("spawn to the guest's first packet, ms", clock(SPAWN + ", 128 MiB", "mayfly"), "<=", 3.0, KERNEL),
    ("the same with a shell, ms", clock(PACKET + ", 128 MiB", SHELL), "<=", 1.5, KERNEL),
    ("load to 16 MiB written, of Firecracker's", lambda r: shell_ratio(r, WRITTEN, SHELL, SET), "<=", 0.4,
     "4,096 faults on a page of the file, each copied: the same work for both; a working set takes part of it ahead"),
    ("1 GiB slower than 128 MiB, with a shell, ms", larger(PACKET, SHELL), "<=", 0.2,
     "the shell has its memory slot, but a larger file is mapped over it, for which KVM looks through the slot"),
    ("1 GiB slower than 128 MiB, without, ms", larger(SPAWN, "mayfly"), "<=", 0.5,
     "the memory slot is made for 128 MiB at the start and again for 1 GiB, since its size is known at the load"),
    ("100 clones, first spawn to last byte, ms", lambda r: median(r["fan"]["100"]["mayfly"]), "<=", 100,
     "two CPUs, and each clone takes milliseconds of them: its process, VM, threads, filters; no call stands out in a profile"),
    ("full snapshot, 1 GiB with 16 MiB touched, ms", made("full, 1024 MiB with 16 MiB touched, ms"), "<=", 60,
     "two files are made durable on this disk"),
    ("its files, MiB on disk", made("full, 1024 MiB, MiB on disk"), "<=", 20, "pages that are no zeros"),
    ("diff after 1 MiB written, ms", made("diff of a clone after 1 MiB written, ms"), "<=", 3, DISK),
    ("the same, files on tmpfs, ms", made("diff of a clone after 1 MiB written, files on tmpfs, ms"), "<=", 3,
     "the page map is walked and each page written; a millisecond where nothing else runs"),
    ("live, 1 GiB, booted: guest stopped, ms", made(LIVE % "booted"), "<=", 10, LAST),
    ("live, 1 GiB, a clone: guest stopped, ms", made(LIVE % "a clone"), "<=", 10, LAST),
    ("monitor alone at 100 clones, RSS, KiB", lambda r: at(r, 100)["own_rss_kib"], "<=", 1024, "its text and stacks"),
    ("monitor alone at 100 clones, PSS, KiB", lambda r: at(r, 100)["own_pss_kib"], "<=", 205,
     "what each monitor wrote of its own: stacks, heap, relocated data, thread descriptors"),
    ("clones alive and answering", all_answered, ">=", 4000, "as many as were asked for"),
    ("wake-ups of an idle clone, a second", lambda r: r["density"][-1]["wakes_per_s"], "<=", 0.05,
     "a metrics line each minute"),
)


def goals(result):
    """The issue of every goal whose part was run."""
    lines = [["goal", "asked for", "measured", "", "why missed"]]
    for what, find, sign, limit, cause in GOALS:
        try:
            x = find(result if "fan" not in result else result | {"fan": {str(k): v for k, v in result["fan"].items()}})
        except (KeyError, StopIteration, ValueError):
            continue
        met = x <= limit if sign == "<=" else x >= limit
        lines.append([what, f"{sign} {limit:,}", num(x) if x else "0", "met" if met else "MISSED", "" if met else cause])
    return markdown(lines).replace("| --- | --- | --: | --: | --: |", "| --- | --: | --: | --- | --- |", 1)


INTRO = """# Cold starts

Written by `make bench-coldstart`: {facts}.

Everything ran side by side in turns on one machine, so ratios hold where absolute times move with what else the
machine does; parts that were run one by one (`ADD=1`) share this page, and the facts above are the last one's. The guest is `tests/guest`'s `function.elf`, one vCPU, one tap, one drive (Mayfly: with a copy-on-write
layer), page cache warm unless said. "shell" means that the monitor was started before the clock. The floor is bare
`ioctl`s in a C program: a process, a VM over a private map of the same memory file, a vCPU that wrote one byte; nothing
is parsed, confined or asked over a network. Firecracker runs without seccomp filters here. Median (p99), milliseconds.
{skipped}"""


def write_report(result, args):
    out = args.out or os.path.join(ROOT, "docs", "benchmarks")
    os.makedirs(out, exist_ok=True)
    facts = "; ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in result["facts"].items()
                      if k != "secs")
    text = INTRO.format(facts=facts, skipped=(result["skipped"] + ".\n") if result["skipped"] else "")
    text += f"\n## Goals\n\n{goals(result)}\n"
    if "clocks" in result:
        text += f"\n## One restore\n\n{table(result['clocks'], 'clock')}\n"
    if "fan" in result:
        text += ("\n## Many at once\n\nFirst spawn (shells: first request) to the last guest's packet; `mayflyctl clone`: "
                 f"to the last byte of the last HTTP answer.\n\n{table(result['fan'], 'clones')}\n\n"
                 "![many at once](coldstart-fan.svg)\n")
        save(out, "coldstart-fan.svg", fan_plot(result["fan"]))
    if "create" in result:
        text += f"\n## Making snapshots\n\n{table(result['create'], 'what')}\n"
    if "density" in result:
        text += ("\n## How many\n\nEvery clone answered HTTP over its own tap, in a network namespace of its own, when it "
                 "was restored and again five seconds later. KiB are what the host had less of, for each clone "
                 f"(namespaces were made before and are given apart).\n\n{density_table(result['density'])}\n\n"
                 "![memory](coldstart-memory.svg)\n\n![time](coldstart-time.svg)\n")
        save(out, "coldstart-memory.svg", density_plot(result["density"]))
        save(out, "coldstart-time.svg", density_time_plot(result["density"]))
    save(out, "coldstart.md", text)
    with open(os.path.join(args.build, "bench", "coldstart.json"), "w") as f:
        json.dump(result, f, indent=1)
    print(f"written: {os.path.join(out, 'coldstart.md')}")


def save(folder, name, text):
    with open(os.path.join(folder, name), "w") as f:
        f.write(text)
