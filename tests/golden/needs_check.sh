# disks: m=256K d=1G
# The metadata device has filled up: the kernel gave up the transaction, set needs_check and went read-only.
pool 128 skip_block_zeroing error_if_no_space
message "create_thin 0"
thin 0 2097152
dmsetup status
# a sector in each block, until one fails; each process writes many, for a new process is slow in this machine
sector=0
while fio --name=fill --filename=/dev/mapper/thin0 --rw=write:65024 --bs=512 --offset=$((sector * 512)) --io_size=131072 \
    --size=$((256 * 65536)) --direct=1 --ioengine=psync --verify=pattern --verify_pattern=%o --do_verify=0 \
    --output-format=terse >/dev/null 2>&1; do
    sector=$((sector + 256 * 128))
done
echo "failed after sector $sector"
sleep 2
dmsetup status
dmsetup remove thin0
dmsetup remove pool
thin_check -q /dev/vdb && echo "thin_check ok"
