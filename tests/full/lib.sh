# Put before each script. Whoever runs it has set: M and D (disks of 8 MiB and 1 GiB), N (the folder of the nodes), and
# the functions dmsetup, and after: it makes the nodes, where nobody else does.
quiet() { grep -v '^userdm: '; }
dm() { dmsetup "$@" 2>&1 | quiet | sed -E 's/\b[0-9]+:[0-9]+\b/X:Y/g; s/ \([0-9]+, [0-9]+\)/ (X, Y)/g; s/ioctl on ([^ ]*) +(\(X:Y\) )?failed/ioctl on \1 failed/'; }
make() { dm create "$1" --table "$2"; after; }
linear() { make "$1" "0 $3 linear $2 0"; }
resize() { dm reload "$1" --table "0 $3 linear $2 0"; dm resume "$1"; after; }
events() { dmsetup info -c --noheadings -o events "${1:-pool}"; }
# the number of metadata blocks in use is left out: it differs in what a transaction allocates when
status() { dmsetup status "${1:-pool}" 2>&1 | quiet | sed -E 's/^(0 [0-9]+ thin-pool [0-9]+) [0-9]+\//\1 -\//'; }
state() { status; echo "events $(events)"; }
message() { echo "message $*: $(dmsetup message pool 0 "$*" 2>&1 | quiet | sed 's/.*failed: //' | head -n 1)"; }
told() { if [ "$1" = 0 ]; then echo ok; else sed -n 's/.*: //p' "$2" | head -n 1; fi; }
# put NAME BLOCK [BYTES]: one O_DIRECT write at a multiple of 64 KiB
put() {
    /bin/dd if=/dev/zero of="$N/$1" bs="${3:-4096}" count=1 seek=$(($2 * 65536)) oflag=seek_bytes,direct conv=notrunc \
        status=none 2>/tmp/dd.$$.$2
    echo "write $1 $2: $(told $? /tmp/dd.$$.$2)"
    rm -f /tmp/dd.$$.$2
}
get() {
    /bin/dd if="$N/$1" of=/dev/null bs=4096 count=1 skip=$(($2 * 65536)) iflag=skip_bytes,direct status=none 2>/tmp/dd.$$
    echo "read $1 $2: $(told $? /tmp/dd.$$)"
    rm -f /tmp/dd.$$
}
sync_() { /bin/dd if=/dev/zero of="$N/$1" bs=4096 count=1 oflag=direct conv=notrunc,fsync status=none 2>/tmp/dd.$$
    echo "write and flush $1: $(told $? /tmp/dd.$$)"
    rm -f /tmp/dd.$$
}
trim() { if blkdiscard -o $(($2 * 65536)) -l $(($3 * 65536)) "$N/$1" 2>/dev/null; then echo "discard $1: ok"; else echo "discard $1: refused"; fi; }
# later NAME BLOCK: a write in the background; its result is told by `join BLOCK`
later() { put "$1" "$2" >/tmp/later.$$.$2 & }
join() { wait; cat /tmp/later.$$.$1; rm -f /tmp/later.$$.$1; }
until_() { i=0; while [ $i -lt 600 ]; do eval "$1" >/dev/null 2>&1 && return; sleep 0.1; i=$((i + 1)); done; echo "never: $1"; }
opened() { until_ "[ \$(dmsetup info -c --noheadings -o open $1) -gt 0 ]"; }
full() { until_ 'dmsetup status pool | grep -q out_of_data_space'; }
# pool DATA_BLOCKS LOW_WATER_MARK [FEATURE...]; load: the same, as the inactive table
table() { blocks=$1 low=$2; shift 2; echo "0 $((blocks * 128)) thin-pool $N/meta $N/data 128 $low $# $*"; }
pool() { make pool "$(table "$@")"; }
load() { dm reload pool --table "$(table "$@")"; }
# up METADATA_BLOCKS, and then as pool
up() {
    /bin/dd if=/dev/zero of="$M" bs=4096 count=1 conv=notrunc status=none
    linear meta "$M" $(($1 * 8))
    linear data "$D" $(($2 * 128))
    shift
    pool "$@"
}
thin() { message "create_thin $1"; make "t$1" "0 ${2:-131072} thin $N/pool $1"; }
down() {
    for t in $(dmsetup ls 2>/dev/null | sed -n 's/^\(t[0-9]*\)[ \t].*/\1/p'); do dm remove "$t"; done
    dm remove pool
    dm remove data
    dm remove meta
    thin_check -q "$M" && echo "thin_check ok"
}
