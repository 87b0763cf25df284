# SPDX-License-Identifier: Apache-2.0
"""The report of bench-migration: goals beside what was measured, and plots as SVG written by hand."""
import json
import math
import os

from bench import markdown, median, num, p99
from coldstart_report import ROOT, save

# Row, its goal as words, and the check of it: (rows, samples of the row) -> bool.
GOALS = []


def goal(row, words, ok):
    GOALS.append((row, words, ok))


def at_most(mid, tail=None):
    return lambda rows, x: median(x) <= mid and (tail is None or p99(x) <= tail)


for mem in (128, 1024):
    goal(f"post-copy downtime, {mem} MiB, guest's TSC gap, ms", "<= 3, p99 <= 8", at_most(3, 8))
    goal(f"post-copy downtime, {mem} MiB, source's clock, ms", "<= 3, p99 <= 8", at_most(3, 8))
    goal(f"post-copy downtime, {mem} MiB, outside probe, ms", "", None)
    goal(f"post-copy, {mem} MiB, pages asked for", "", None)
    goal(f"stop and go in place, {mem} MiB, guest's TSC gap, ms", "", None)
goal("pre-copy downtime, idle, guest's TSC gap, ms", "<= 8", at_most(8))
goal("pre-copy downtime, idle, source's clock, ms", "<= 8", at_most(8))
for text in ("guest's TSC gap", "source's clock"):
    goal(f"within the budget, {text}, %", ">= 99 (mean)", lambda rows, x: sum(x) / len(x) >= 99)
    for ms in (10, 20, 50):
        goal(f"of a budget of {ms} ms, {text}, ms", "", None)
for text in ("", "guest sleeps, "):
    goal(f"1 GiB, 16 MiB touched, {text}total, ms", "<= 80", at_most(80))
goal("1 GiB, 937 MiB touched, total, ms", "<= 800, <= QEMU's",
     lambda rows, x: median(x) <= min([800] + [median(rows[r]["qemu"]) for r in rows
                                               if r == "1 GiB, 937 MiB touched, total, ms" and "qemu" in rows[r]]))
goal("1 GiB, 937 MiB touched, guest sleeps, total, ms", "<= 800", at_most(800))
goal("937 MiB over a plain socket, ms", "", None)
goal("throughput / raw socket", ">= 0.6", lambda rows, x: median(x) >= 0.6)
goal("throughput / raw socket, guest polls", "", None)
for side in ("source", "target"):
    goal(f"937 MiB, processor time of the {side}'s thread, ms", "", None)
goal("1 GiB, 937 MiB touched, downtime, guest's TSC gap, ms", "", None)
for load, goals in (("idle", (25, 80)), ("bulk", (60, 250))):
    for clock in ("fault service, {}, monitor's clock", "fault, {}, guest's clock"):
        for q, us in zip((50, 99), goals):
            goal(f"{clock.format(load)}, p{q}, us", f"<= {us}", at_most(us))
    goal(f"faults served, {load}", "", None)
for q in ("p50", "p99"):
    goal(f"a page the host itself adds, guest's clock, {q}, us", "", None)
    goal(f"40 bytes there, a page back, {q}, us", "", None)
goal("raw socket, MiB/s", "", None)
goal("reconnect to pull resumed, ms", "<= 100", at_most(100, 100))
for touched in ("16 MiB", "937 MiB"):
    goal(f"wire / non-zero bytes, {touched}, messages", "<= 1.01", at_most(1.01))
    goal(f"wire / non-zero bytes, {touched}, on the interface", "", None)


def hist_quantile(hist, q):
    """Microseconds; bucket i holds less than 2^i, evenly spread as far as anyone knows."""
    left = sum(hist) * q / 100
    for i, n in enumerate(hist):
        if n and left <= n:
            low = 2 ** (i - 1) if i else 0
            return low + (2 ** i - low) * left / n
        left -= n
    return 2 ** (len(hist) - 1)


def cell(x, row):
    if "%" in row:
        return f"{sum(x) / len(x):.1f} of {len(x)}"
    if "/ non-zero" in row or "/ raw" in row:
        return f"{median(x):.4f} ({max(x):.4f})" if "non-zero" in row else f"{median(x):.2f} ({min(x):.2f})"
    return f"{num(median(x))} ({num(p99(x))})"


def table(rows):
    lines = [["what", "goal", "", "mayfly", "qemu", "raw socket", "to QEMU"]]
    for row, words, ok in GOALS:
        by = rows.get(row)
        if not by:
            continue
        ours = by.get("mayfly")
        verdict = "" if not ok or not ours else "met" if ok(rows, ours) else "**MISSED**"
        ratio = f"{median(ours) / max(median(by['qemu']), 1e-9):.2f}" if ours and "qemu" in by else "-"
        lines.append([row, words or "-", verdict or "-"] + [cell(by[w], row) if w in by else "-"
                                                          for w in ("mayfly", "qemu", "raw")] + [ratio])
    return markdown(lines)


def derived(rows):
    """Goals about two rows at once, as sentences."""
    out = []
    a, b = (rows.get(f"post-copy downtime, {m} MiB, guest's TSC gap, ms") for m in (128, 1024))
    if a and b:
        d = median(b["mayfly"]) - median(a["mayfly"])
        out.append(f"Post-copy downtime grows from 128 MiB to 1 GiB by {d:.2f} ms (goal <= 1): {'met' if d <= 1 else '**MISSED**'}.")
    for load in ("idle", "bulk"):
        f, raw = rows.get(f"fault service, {load}, monitor's clock, p50, us"), rows.get("40 bytes there, a page back, p50, us")
        if f and raw:
            out.append(f"Fault service, {load}: {median(f['mayfly']) / median(raw['raw']):.1f} times a page over the plain socket.")
    return "\n".join(out)


def causes(rows):
    """Of what was missed: what the figures of this run say about why."""
    missed = [r for r, _, ok in GOALS if ok and rows.get(r, {}).get("mayfly") and not ok(rows, rows[r]["mayfly"])]

    def mid(row, who="mayfly"):
        return median(rows[row][who]) if who in rows.get(row, {}) else None

    out, service = [], mid("fault service, idle, monitor's clock, p50, us")
    page = mid("40 bytes there, a page back, p50, us", "raw")
    for mem in (128, 1024):
        gap, clock = (mid(f"post-copy downtime, {mem} MiB, {t}, ms") for t in ("guest's TSC gap", "source's clock"))
        asked = mid(f"post-copy, {mem} MiB, pages asked for")
        if f"post-copy downtime, {mem} MiB, guest's TSC gap, ms" in missed and asked is not None and clock:
            out.append(f"Post-copy downtime, {mem} MiB, guest's gap: the target says that it runs after {clock:.2f} ms by the source's "
                       f"clock. The other {max(gap - clock, 0):.2f} ms its loop waits for pages ({asked:.0f} are asked for in the whole "
                       f"pull) and for a processor: of {os.cpu_count()} there are, source and target push the rest at the same time.")
        stop = mid(f"stop and go in place, {mem} MiB, guest's TSC gap, ms")
        if f"post-copy downtime, {mem} MiB, source's clock, ms" in missed and stop is not None:
            out.append(f"Post-copy downtime, {mem} MiB, source's clock: a stop and go in place, without any migration, takes the guest "
                       f"{stop:.2f} ms in this run.")
    if "within the budget, guest's TSC gap, %" in missed and "within the budget, source's clock, %" not in missed:
        out.append("Within the budget, guest's gap: by the source's clock every one was; the gap has besides what the machine takes from "
                   "the guest without a migration.")
    cpu = [mid(f"937 MiB, processor time of the {s}'s thread, ms") for s in ("source", "target")]
    if any("937 MiB touched" in r or r == "throughput / raw socket" for r in missed) and all(cpu):
        raw = mid("937 MiB over a plain socket, ms", "raw")
        out.append(f"937 MiB, total and throughput: the source's thread takes {cpu[0]:.0f} ms of processor time for them (a sum over each "
                   f"page, the copy into the socket, TCP to both ends), the target's {cpu[1]:.0f} ms (the copy out of it, the sum, "
                   f"a new page of memory for each), the plain socket {raw:.0f} ms in all. Were both threads never "
                   f"without a processor, the total could be {max(cpu):.0f} ms, {raw / max(cpu):.2f} of the socket; here they share "
                   f"{os.cpu_count()} with the guest and with what else runs.")
    if any(r.startswith("fault") and "idle" in r for r in missed) and page:
        out.append(f"Faults, idle: {service or 0:.0f} us by the monitor's clock, and "
                   f"{page:.0f} us for a page over the plain socket between two threads that sleep. A fault goes that way too, and "
                   "through a poll at each end, sums, and a new page of memory; how much of the rest is load this run does not tell.")
    if any(r.startswith("fault") and "bulk" in r for r in missed):
        out.append("Faults under bulk: source, target and guest are three busy threads; on fewer processors one of them always waits "
                   "for the scheduler, and a fault needs all three in turn.")
    return "".join(f"- {x}\n" for x in out)


def frame(w, h, title):
    return [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">'
            f'<rect width="{w}" height="{h}" fill="white"/><text x="70" y="22" font-size="15">{title}</text>']


def timeline_plot(lines):
    """One strip a move: round trips over time, what was never answered at its top."""
    w, strip, left, right = 860, 150, 70, 30
    out = frame(w, 50 + strip * len(lines) + 30, "A client's round trips, one a ms, while its guest moves (512 MiB, 256 touched)")
    t0, t1 = -40.0, max(min(x["samples"][-1][0] * 1e3, x["total_ms"] + 60) for x in lines.values())

    def across(t):
        return left + (w - left - right) * (t - t0) / (t1 - t0)

    for i, (name, x) in enumerate(lines.items()):
        top, high = 45 + strip * i, strip - 40

        def up(ms):
            return top + high * (1 - (math.log10(min(max(ms, 0.02), 200)) - math.log10(0.02)) / 4)
        out.append(f'<text x="{left}" y="{top + 2}" font-size="13">{name}: {x["total_ms"]:.0f} ms</text>')
        for ms in (0.1, 1, 10, 100):
            out.append(f'<line x1="{left}" x2="{w - right}" y1="{up(ms):.1f}" y2="{up(ms):.1f}" stroke="#ddd"/>'
                       f'<text x="{left - 6}" y="{up(ms) + 4:.1f}" text-anchor="end">{ms:g} ms</text>')
        out.append(f'<rect x="{across(0):.1f}" y="{top + 8}" width="{across(x["total_ms"]) - across(0):.1f}" '
                   f'height="{high - 8}" fill="#0b6e4f" opacity="0.08"/>')
        for t, r in x["samples"]:
            if t0 <= t * 1e3 <= t1:
                colour, y = ("#0b6e4f", up(r * 1e3)) if r is not None else ("#c8553d", top + 10)
                out.append(f'<circle cx="{across(t * 1e3):.1f}" cy="{y:.1f}" r="1.6" fill="{colour}"/>')
    y = 45 + strip * len(lines) - 14
    step = 10 ** math.floor(math.log10(t1 / 4))
    step *= 5 if t1 / step > 20 else 2 if t1 / step > 8 else 1
    for k in range(math.floor(t1 / step) + 1):
        out.append(f'<text x="{across(k * step):.1f}" y="{y}" text-anchor="middle">{k * step:g}</text>')
    out.append(f'<text x="{w / 2}" y="{y + 22}" text-anchor="middle">ms since the request; shaded: until the last page is '
               'there; red: never answered</text>')
    return "\n".join(out) + "</svg>\n"


def hist_plot(hists):
    w, h, left, bottom, top = 760, 340, 70, 60, 45
    out = frame(w, h, "Fault service at the target, from the fault read to the page in place")
    used = [i for x in hists.values() for i, n in enumerate(x) if n]
    lo, hi = min(used), max(used)
    step, share = (w - left - 150) / (hi - lo + 1), max(n / sum(x) for x in hists.values() for n in x if sum(x))
    for k, (name, x) in enumerate(hists.items()):
        colour = ("#0b6e4f", "#3a6ea5")[k % 2]
        for i in range(lo, hi + 1):
            tall = (h - bottom - top) * x[i] / max(sum(x), 1) / share
            out.append(f'<rect x="{left + step * (i - lo) + step * 0.42 * k:.1f}" y="{h - bottom - tall:.1f}" '
                       f'width="{step * 0.4:.1f}" height="{tall:.1f}" fill="{colour}"/>')
        out.append(f'<rect x="{w - 130}" y="{top + 20 * k}" width="12" height="12" fill="{colour}"/>'
                   f'<text x="{w - 112}" y="{top + 11 + 20 * k}">{name} ({sum(x)})</text>')
    for i in range(lo, hi + 1):
        us = 2 ** i
        out.append(f'<text x="{left + step * (i - lo + 0.4):.1f}" y="{h - bottom + 16}" text-anchor="middle">'
                   f'&lt;{us if us < 1024 else f"{us // 1024}k"}</text>')
    for part in (0.5, 1):
        y = h - bottom - (h - bottom - top) * part
        out.append(f'<line x1="{left}" x2="{w - 150}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share * part:.0f} %</text>')
    out.append(f'<text x="{left + (w - left - 150) / 2}" y="{h - 16}" text-anchor="middle">us</text>')
    return "\n".join(out) + "</svg>\n"


INTRO = """# Live migration

Written by `make bench-migration`: {facts}.

Two network namespaces on this machine, joined by a veth for the migration's two TCP channels (TCP_NODELAY, bulk with a
send buffer of 32 KiB) and by bridges for the guest's clients. The guest is `tests/guest`'s `function.elf` with one vCPU
that always polls, moved to and fro; QEMU's microvm runs the same file, with `postcopy-ram`, the switch asked for in the
same breath as the migration, and no limit of bandwidth. Both, and the plain socket, took turns, so ratios hold where
absolute times move with what else the machine does. On these cores the source, the target, the guest that polls and
the client share what there is. Median (p99); of ratios (the worst); of shares the mean.

*Guest's TSC gap*: the longest time between two turns of the guest's loop, so it has what the machine takes from the
guest besides; *stop and go in place* is the same for a pause and resume without a migration. *Source's clock*: from the
pause until the target says that it runs (QEMU: its `downtime`). *Outside probe*: the longest time without a UDP
answer, of one request each ms. *Fault service*: from the fault read at the target until the page is in place, from the
histogram of `GET /migration`, within whose buckets even spread is assumed; *guest's clock*: of its own reads that
faulted. *Idle*: nothing else on the link (bulk capped at 1 MiB/s); *bulk*: all the rest is pushed at the same time.
{skipped}"""


def write_report(result, args):
    out = args.out or os.path.join(ROOT, "docs", "benchmarks")
    os.makedirs(out, exist_ok=True)
    facts = "; ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in result["facts"].items() if k != "secs")
    text = INTRO.format(facts=facts, skipped=f"\nQEMU was skipped: {result['skipped']}.\n" if result["skipped"] else "")
    text += f"\n## Goals and figures\n\n{table(result['rows'])}\n"
    more = derived(result["rows"])
    text += f"\n{more}\n" if more else ""
    why = causes(result["rows"])
    text += f"\n## Why goals are missed\n\n{why}" if why else ""
    if result["timeline"]:
        text += "\n## What a client sees\n\n![timeline](migration-timeline.svg)\n"
        save(out, "migration-timeline.svg", timeline_plot(result["timeline"]))
    if any(map(sum, result["hist"].values())):
        text += "\n## Faults\n\n![fault latency](migration-faults.svg)\n"
        save(out, "migration-faults.svg", hist_plot(result["hist"]))
    save(out, "migration.md", text)
    with open(os.path.join(args.build, "bench", "migration.json"), "w") as f:
        json.dump(result, f, indent=1)
    print(f"written: {os.path.join(out, 'migration.md')}")
