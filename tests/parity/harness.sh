# Runs parity cases: the same lines with dmsetup on a kernel (busybox sh) and with ours (sh).
#
#   . harness.sh; disks FOLDER; cases FILE [NAME]; undisk
#
# A case is a line "== NAME" and the shell commands below it, one a line. Each command is printed as it is written,
# then what it said and its exit code when that is not 0:
#
#   $ COMMAND
#   out: a line of its standard output|
#   err: a line of its standard error|
#   rc: 1
#
# What a case may use, alike on both sides, all of it zeros when the case begins:
#   $A $B    loop devices of 64 MiB           $M       one of 2 MiB, $N of 4 MiB: for a pool's metadata
#   $R       a read-only one of 8 MiB         $K       one of 16 MiB with logical blocks of 4096 bytes
#   $D       the folder of the nodes          $T       an empty folder
# and the functions below. It must remove its devices: what is left is an answer too ("left: ...").

# busybox prefers its own, which say other things
if [ -x /bin/busybox ] && [ -d /disks ]; then
    dd() { /bin/dd "$@"; }
    blockdev() { /bin/blockdev "$@"; }
    blkdiscard() { /bin/blkdiscard "$@"; }
    losetup() { /bin/losetup "$@"; }
    sha256sum() { /bin/sha256sum "$@"; }
fi

LETTERS="A B M N R K"

# disks FOLDER: make the loop devices, and say which they are
disks() {
    folder=$1
    for spec in A:64M B:64M M:2M N:4M R:8M:-r "K:16M:-b 4096"; do
        letter=${spec%%:*} rest=${spec#*:}
        size=${rest%%:*} options=
        case $rest in *:*) options=${rest#*:} ;; esac
        truncate -s "$size" "$folder/$letter"
        # shellcheck disable=SC2086 # options are words
        node=$(losetup $options --show -f "$folder/$letter") || exit 1
        eval "$letter=$node"
        echo "disk $letter $node"
    done
}

undisk() {
    for letter in $LETTERS; do eval "losetup -d \$$letter"; done
}

# cases FILE [NAME]: run them all, or that one
cases() {
    wanted=${2:-} name=
    : >"$T/lines"
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            "== "*)
                run_case
                name=${line#== }
                : >"$T/lines"
                ;;
            "" | "#"*) ;;
            *) printf '%s\n' "$line" >>"$T/lines" ;;
        esac
    done <"$1"
    run_case
}

run_case() {
    [ -n "$name" ] || return 0
    [ -z "$wanted" ] || [ "$wanted" = "$name" ] || return 0
    text=$(cat "$T/lines")
    case $text in *pool*) text="$text \$B \$M" ;; esac
    for letter in A B M N K; do
        case $text in *"\$$letter"*) eval "blkdiscard -f \$$letter" 2>/dev/null || echo "cannot clear $letter" ;; esac
    done
    printf '== %s\n' "$name"
    whole=$T
    T=$whole/case
    rm -rf "$T"
    mkdir "$T"
    (
        while IFS= read -r line <&3; do step "$line"; done 3<"$whole/lines"
    )
    T=$whole
    left=$(dmsetup ls 2>&1)
    [ "$left" = "No devices found" ] && return
    # shellcheck disable=SC2086 # on one line
    echo "left:" $left
    for round in 1 2 3; do
        dmsetup ls | while read -r device rest; do
            dmsetup clear "$device"
            dmsetup resume "$device"
            dmsetup remove "$device"
        done
    done >/dev/null 2>&1 </dev/null
}

step() {
    printf '$ %s\n' "$1"
    eval "$1" >"$whole/out" 2>"$whole/err" </dev/null 3<&-
    code=$?
    show_nodes
    show out
    show err
    [ $code = 0 ] || echo "rc: $code"
}

# The nodes and their numbers, when they have changed: whoever reads the answers puts names for numbers.
show_nodes() {
    nodes=$(ls -l "$D" 2>/dev/null)
    [ "$nodes" != "${nodes_before:-}" ] || return 0
    nodes_before=$nodes
    while IFS= read -r said; do printf 'node: %s\n' "$said"; done <<NODES
$nodes
NODES
}

show() {
    while IFS= read -r said; do printf '%s: %s|\n' "$1" "$said"; done <"$whole/$1"
    # a last line that has no end
    [ -z "$said" ] || printf '%s: %s\n' "$1" "$said"
}

# ---- what a case may call -----------------------------------------------------------------------------------------

# bg TAG COMMAND...: run it in the background
bg() {
    tag=$1
    shift
    (
        case $(command -v "$1") in
            /*) exec "$@" ;; # so that it is what `stop` kills
            *) "$@" ;;
        esac
    ) >"$T/$tag.out" 2>"$T/$tag.err" </dev/null &
    eval "pid_$tag=$!"
}

running() {
    eval "pid=\$pid_$1"
    grep -q '^State:.[^Z]' "/proc/$pid/status" 2>/dev/null
}

# runs TAG: does it run still, a moment later?
runs() {
    sleep 0.3
    if running "$1"; then echo "$1 runs"; else echo "$1 has ended"; fi
}

# stop TAG: kill it
stop() { eval "kill \$pid_$1; wait \$pid_$1" 2>/dev/null; }

# end TAG: wait for its end, and answer as it did
end() {
    tries=0
    while running "$1"; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { echo "$1 never ends"; stop "$1"; return; }
        sleep 0.1
    done
    eval "wait \$pid_$1"
    code=$?
    cat "$T/$1.out"
    cat "$T/$1.err" >&2
    return $code
}

# await PATTERN COMMAND...: again and again until what it prints matches; prints that
await() {
    pattern=$1
    shift
    tries=0
    while :; do
        answer=$("$@" 2>&1)
        # shellcheck disable=SC2254 # a pattern
        case $answer in $pattern) break ;; esac
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { echo "never $pattern"; break; }
        sleep 0.1
    done
    printf '%s\n' "$answer"
}

# fill FILE SEED FIRST COUNT: write that many KiB from that KiB on, bytes that depend on the seed; direct
fill() {
    [ -s "$T/seed$2" ] || yes "$2" | head -c 1048576 >"$T/seed$2"
    dd if="$T/seed$2" of="$1" bs=1k seek="$3" count="$4" oflag=direct conv=notrunc,nocreat status=none
}

# sum FILE FIRST COUNT: the checksum of that many KiB; direct
sum() {
    dd if="$1" bs=1k skip="$2" count="$3" iflag=direct status=none | sha256sum | cut -c 1-16
}

# sectors FILE: its size
sectors() { blockdev --getsz "$1"; }

# queue NAME FILE: what /sys says of its queue
queue() { cat "/sys/dev/block/$(dmsetup info -c --noheadings -o devno "$1")/queue/$2"; }

# pool [TABLE WORDS]: a pool of 32 MiB over $B, its metadata on $M, blocks of 64 KiB, or with these words after them
pool() { dmsetup create pool --table "0 65536 thin-pool $M $B 128 ${*:-0}"; }

# thin NAME ID SECTORS: make a volume in the pool, and activate it
thin() { dmsetup message pool 0 "create_thin $2" && dmsetup create "$1" --table "0 $3 thin $D/pool $2"; }
