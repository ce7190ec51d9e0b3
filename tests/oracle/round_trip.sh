# In the kernel's machine: read what was made here, then write on it. Disks in pairs, metadata and data: vdb and vdc
# "small", vdd and vde "odd", vdf and vdg "sharers", vdh and vdi "walkthrough" (the kernel's own, changed here), vdj and
# vdk "walk" (where the walk could be made).
set -e
dmesg -n 1
create() { dmsetup create "$1" --table "$2"; dmsetup mknodes; }
sum() { echo "$2 $1 $(/bin/sha256sum <"/dev/mapper/$1" | cut -d' ' -f1)"; }
# fill DEVICE SECTOR COUNT WORD
fill() {
    yes "$4" | /bin/dd of="/dev/mapper/$1" bs=$(($3 * 512)) count=1 seek=$(($2 * 512)) oflag=seek_bytes,direct \
        iflag=fullblock conv=notrunc status=none
}

# pool NAME META DATA BLOCK_SECTORS [FEATURES]
pool() {
    local name=$1 meta=$2 data=$3 block=$4
    shift 4
    thin_check -q "$meta" && echo "check $name ok"
    create "$name" "0 $(blockdev --getsz "$data") thin-pool $meta $data $block 0 $# $*"
    echo "status $name $(dmsetup status "$name")"
}

# exercise POOL SECTORS: read volumes 0, 1 and 2; write, snapshot, discard and delete; read again
exercise() {
    local name=$1 sectors=$2 id
    for id in 0 1 2; do
        create "$name-$id" "0 $sectors thin /dev/mapper/$name $id"
        sum "$name-$id" before
    done
    fill "$name-0" 5 3 "the kernel was here"
    fill "$name-1" 1000 700 "and here, over many blocks"
    dmsetup suspend "$name-1"
    dmsetup message "$name" 0 "create_snap 20 1"
    dmsetup resume "$name-1"
    create "$name-20" "0 $sectors thin /dev/mapper/$name 20"
    fill "$name-20" 1024 9 "broken in the kernel's snapshot"
    fill "$name-1" 30000 64 "after the kernel's snapshot"
    blkdiscard -o $((4096 * 512)) -l $((6144 * 512)) "/dev/mapper/$name-0"
    dmsetup remove "$name-2"
    dmsetup message "$name" 0 "delete 2"
    for id in 0 1 20; do sum "$name-$id" after; done
    for id in 0 1 20; do dmsetup remove "$name-$id"; done
}

pool small /dev/vdb /dev/vdc 128 skip_block_zeroing
exercise small 32771
dmsetup message small 0 "set_transaction_id 5 6"
dmsetup remove small
thin_check -q /dev/vdb && echo "check-after small ok"

pool odd /dev/vdd /dev/vde 384
exercise odd 32771
dmsetup remove odd
thin_check -q /dev/vdd && echo "check-after odd ok"

# files POOL ID...: the file systems on these volumes, and the text files in them
files() {
    local name=$1 id
    shift
    for id in "$@"; do
        e2fsck -fn "/dev/mapper/$name-$id" >/dev/null 2>&1 && echo "fsck $name-$id ok"
        mkdir -p "/mnt/$id"
        mount -t ext4 "/dev/mapper/$name-$id" "/mnt/$id"
        (cd "/mnt/$id" && for file in *.txt; do sed "s/^/file $name-$id $file: /" "$file"; done)
    done
}

pool sharers /dev/vdf /dev/vdg 128
for id in 0 1 2 3 4 5 6 7 8 9 10 11 12 20; do
    create "sharers-$id" "0 4096 thin /dev/mapper/sharers $id"
    sum "sharers-$id" before
    dmsetup remove "sharers-$id"
done
dmsetup remove sharers

pool walkthrough /dev/vdh /dev/vdi 128 skip_block_zeroing
for id in 0 1 2 20; do
    create "walkthrough-$id" "0 2097152 thin /dev/mapper/walkthrough $id"
    # the 16 MiB in which there was something written here: a whole GiB takes its time in this machine
    echo "before walkthrough-$id $(/bin/dd if="/dev/mapper/walkthrough-$id" bs=1M skip=896 count=16 status=none \
        | /bin/sha256sum | cut -d' ' -f1)"
done
files walkthrough 0 1 2 20
umount /mnt/0 /mnt/1 /mnt/2 /mnt/20
for id in 0 1 2 20; do dmsetup remove "walkthrough-$id"; done
dmsetup remove walkthrough

[ -b /dev/vdj ] || exit 0
pool walk /dev/vdj /dev/vdk 128 skip_block_zeroing
for id in 0 1 2; do create "walk-$id" "0 2097152 thin /dev/mapper/walk $id"; done
files walk 0 1 2
echo "written by the kernel" >/mnt/1/kernel.txt
umount /mnt/0 /mnt/1 /mnt/2
for id in 0 1 2; do dmsetup remove "walk-$id"; done
dmsetup remove walk
thin_check -q /dev/vdj && echo "check-after walk ok"
