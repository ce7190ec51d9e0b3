# What a pool's table may be replaced by.
up 512 16 0
try() { echo "load $*" | sed "s#$N#NODES#g"; dm reload pool --table "0 ${SECTORS:-2048} $*"; }
shown() { dm table --inactive pool; dm clear pool; }
try linear $N/data 0
try striped 1 128 $N/data 0
try thin-pool $N/meta $N/data 256 0; shown
try thin-pool $N/meta $N/data 2097152 0; shown
for s in 0 64 100 127 129 192 2097280 4194304 x -128; do try thin-pool $N/meta $N/data $s 0; done
try thin-pool $N/data $N/meta 128 0
try thin-pool $N/meta $N/meta 128 0
try thin-pool $N/meta $N/data 128
try thin-pool $N/meta $N/data 128 -1
try thin-pool $N/meta $N/data 128 18446744073709551616
try thin-pool $N/meta $N/data 128 18446744073709551615; shown
try thin-pool $N/meta $N/data +128 +5; shown
try thin-pool $N/meta $N/data 128 0 1 ignore_discard
try thin-pool $N/meta $N/data 128 0 5 skip_block_zeroing no_discard_passdown read_only error_if_no_space skip_block_zeroing
try thin-pool $N/meta $N/data 128 0 4 error_if_no_space read_only no_discard_passdown skip_block_zeroing; shown
try thin-pool $N/meta $N/data 128 0 1 skip_block_zeroing extra; shown
try thin-pool $N/meta $N/data 128 0 2 skip_block_zeroing skip_block_zeroing; shown
try thin-pool $N/meta $N/data 128 0 2 skip_block_zeroing
try thin-pool $N/meta $N/data 128 0 x
try thin-pool $N/meta $N/data 128 0 0; shown
try thin-pool $N/meta $N/data 128 0 1 SKIP_block_zeroing; shown
try thin-pool $N/meta $N/data 128 0 1 nonsense
try thin-pool $N/meta $N/nothing 128 0
SECTORS=4096 try thin-pool $N/meta $N/data 128 0
SECTORS=1024 try thin-pool $N/meta $N/data 128 0 1 no_discard_passdown
dm resume pool # it would become smaller
dm info -c --noheadings -o name,suspended,tables_loaded pool
dm table pool
state
load 16 0 no_discard_passdown
dm resume pool
state
dm table pool
dm create pool2 --table "$(table 16 0)"
thin 0
dm remove pool # it has a volume
down
up 512 16 0 ignore_discard skip_block_zeroing
state
dm table pool
try thin-pool $N/meta $N/data 128 0
down
