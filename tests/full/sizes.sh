# Blocks and devices of odd sizes, volumes larger and smaller than at other times, external origins.
up 512 8 0
dm remove pool
dm remove data
linear data "$D" 1000
make pool "0 1000 thin-pool $N/meta $N/data 384 0 1 error_if_no_space"
dm remove pool
dm remove meta
/bin/dd if=/dev/zero of="$M" bs=4096 count=1 conv=notrunc status=none
linear meta "$M" 4096
make pool "0 1000 thin-pool $N/meta $N/data 384 0 1 error_if_no_space"
state
thin 0 2000
put t0 0; put t0 7; put t0 14 512
status t0; state
dm remove t0
make t0 "0 100 thin $N/pool 0"
status t0
put t0 0
dm remove t0
make t0 "0 200000 thin $N/pool 0"
status t0; get t0 7; get t0 100
blkdiscard $N/t0; status t0
state
dm remove t0
dm remove pool
make pool "0 700 thin-pool $N/meta $N/data 384 0" # smaller than it was
make pool "0 1000 thin-pool $N/meta $N/data 128 0" # another block size
dm remove data
dm remove meta
/bin/dd if=/dev/zero of="$M" bs=4096 count=1 conv=notrunc status=none
linear meta "$M" 4096
make pool "0 2097152 thin-pool $N/meta $D 2097152 0 1 skip_block_zeroing"
thin 0 8000000
put t0 3
state
status t0
dm remove t0
dm remove pool
dm remove meta
up 512 64 0
make org "0 300 linear $D 100000"
/bin/dd if=/bin/dd of=$N/org bs=512 count=300 oflag=direct status=none 2>/dev/null
same() { [ "$(/bin/dd if=$N/org bs=512 skip=$1 count=$2 status=none | /bin/sha256sum)" = "$(/bin/dd if=$N/t3 bs=512 skip=$1 count=$2 status=none | /bin/sha256sum)" ] && echo "same $1 $2" || echo "different $1 $2"; }
zeros() { [ "$(/bin/dd if=$N/t3 bs=512 skip=$1 count=$2 status=none | tr -d '\000' | wc -c)" = 0 ] && echo "zeros $1 $2" || echo "no zeros $1 $2"; }
message create_thin 3
make t3 "0 1024 thin $N/pool 3 $N/org"
dm table t3
status t3
same 0 300; zeros 300 724
put t3 0; put t3 2 512; put t3 4; status t3
same 8 292; zeros 300 724; zeros 0 8
message create_snap 4 3
make t4 "0 256 thin $N/pool 4 $N/org"
status t4
dm remove t3; dm remove t4; dm remove org
down
