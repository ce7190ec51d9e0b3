# What the sessions share: each is this file and its own, run once by dmsetup on a kernel, once by userdm.
# A session's .expected is what dmsetup 1.02.185 on Linux 6.1 said; `tests/cli/make NAME` makes it again.
# DM: the program. LOOP: a loop device of at least 8 MiB.

tmp=$(mktemp -d)
if [ -z "${DM:-}" ]; then
    DM=dmsetup LOOP=/dev/loop0
    dmesg -n 1 2>/dev/null
    dd if=/dev/zero of="$tmp/disk" bs=1M count=8 2>/dev/null
    losetup $LOOP "$tmp/disk"
fi
export LC_ALL=C

show() {
    sed 's/^/out: /; s/$/|/' "$tmp/out"
    # the usage and the lists of fields are each program's own, and so is what ours says beyond dmsetup's words;
    # libdevmapper asks a node that nobody has made for its read-ahead
    sed '/^Usage:/,$d; /: open failed: No such /d' "$tmp/err" | sed '/^ *$/d; /^[A-Z].* Fields$/d; /^Selection op/d; /^-*$/d; /^  /d' |
        sed 's/^userdm: \(unrecog\|option\|invalid opt\|ambig\)/dmsetup: \1/; /^userdm: /d; s/^/err: /; s/$/|/'
    echo "rc: $1"
}
r() {
    printf '%s\n' "\$ $*"
    timeout 20 $DM "$@" </dev/null >"$tmp/out" 2>"$tmp/err"
    show $?
}
# given STDIN COMMAND...
given() {
    printf '%s\n' "\$ printf '$1' | $2 $3"
    printf "$1" >"$tmp/in"; shift
    timeout 20 $DM "$@" <"$tmp/in" >"$tmp/out" 2>"$tmp/err"
    show $?
}
# with VARIABLE=VALUE COMMAND...
with() {
    printf '%s\n' "\$ $*"
    setting=$1; shift
    timeout 20 env "$setting" $DM "$@" </dev/null >"$tmp/out" 2>"$tmp/err"
    show $?
}
