# SPDX-License-Identifier: Apache-2.0
# Turns the "#syscalls:kind item ..." comments of the sources into R(...) lines for jail/gen/gen.c.
# The syntax is described in jail/jail.h.
function die(why) {
    printf "%s:%d: #syscalls: %s\n", FILENAME, FNR, why > "/dev/stderr"
    bad = 1
    exit 1
}
function rule(kind, name, x,    arg, op, fd, i) {
    gsub(/[ \t]/, "", x)
    arg = "MAIN"; op = "ANY"; fd = "ANY"
    if (match(x, /^[0-5]:/)) { arg = substr(x, 1, 1); x = substr(x, 3) }
    if (i = index(x, "@")) { fd = substr(x, i + 1); x = substr(x, 1, i - 1) }
    if (sub(/^!/, "", x)) op = "CLEAR"
    else if (x != "") op = "EQUAL"
    if (op == "CLEAR" && x == "") die("! without a mask")
    if (x !~ /^[A-Za-z0-9_|]*$/ || fd !~ /^[A-Z_]+$/) die("cannot read the constraint of " name)
    printf "R(\"%s:%d\", %s, %s, %s, %s, %s, %s)\n", FILENAME, FNR, kind, name, arg, op,
           x == "" ? 0 : x, fd
}
match($0, /#syscalls:[a-z]+/) {
    # A formatter that reflows comments would join lines and lose items: insist on one tag at the start.
    if ($0 !~ /^[ \t]*(\/\/|\*|\/\*) #syscalls:[a-z]+ [^#]*$/) die("must stand alone on its comment line")
    match($0, /#syscalls:[a-z]+/)
    kind = substr($0, RSTART + 10, RLENGTH - 10)
    s = substr($0, RSTART + RLENGTH)
    sub(/\*\/.*/, "", s)
    while (sub(/^[ \t]+/, "", s) || s != "") {
        if (s == "") break
        if (!match(s, /^[a-z0-9_]+/)) die("expected a system call at '" s "'")
        name = substr(s, 1, RLENGTH)
        s = substr(s, RLENGTH + 1)
        if (substr(s, 1, 1) != "(") {
            rule(kind, name, "")
            continue
        }
        if (!(end = index(s, ")"))) die("no ) after " name)
        n = split(substr(s, 2, end - 2), alt, ",")
        if (!n) die("empty () after " name)
        s = substr(s, end + 1)
        for (i = 1; i <= n; i++) rule(kind, name, alt[i])
    }
}
END { exit bad }
