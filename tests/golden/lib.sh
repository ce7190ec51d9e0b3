# Put before each script by `make`. Runs in the kernel's machine: vdb holds the metadata, vdc the data.
set -e
dmesg -n 1 # the console is where our output goes
create() { dmsetup create "$1" --table "$2"; dmsetup mknodes; }
message() { dmsetup message /dev/mapper/pool 0 "$1"; }
# pool BLOCK_SECTORS [FEATURES]
pool() { local block=$1; shift; create pool "0 $(blockdev --getsz /dev/vdc) thin-pool /dev/vdb /dev/vdc $block 0 $# $*"; }
# thin ID SECTORS [EXTERNAL_ORIGIN]
thin() { create "thin$1" "0 $2 thin /dev/mapper/pool $1${3:+ $3}"; }
# fill DEVICE SECTOR COUNT WORD: write COUNT sectors of WORD, past the page cache (/bin/dd: busybox has its own, without)
fill() {
    yes "$4" | /bin/dd of="$1" bs=$(($3 * 512)) count=1 seek=$(($2 * 512)) oflag=seek_bytes,direct \
        iflag=fullblock conv=notrunc status=none
}
# report ID...: what the kernel says, and what it reads on the active thin devices of these ids
report() {
    dmsetup table
    dmsetup status
    for id in "$@"; do
        echo "thin $id $(blockdev --getsz "/dev/mapper/thin$id") $(/bin/sha256sum <"/dev/mapper/thin$id" | cut -d' ' -f1)"
    done
}
# finish ID...: remove those and the pool, as a clean stop
finish() {
    for id in "$@"; do dmsetup remove "thin$id"; done
    dmsetup remove pool
    thin_check -q /dev/vdb && echo "thin_check ok"
}
