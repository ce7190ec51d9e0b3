# A pool that a reload makes read-only, and writable again.
up 512 8 0
thin 0
put t0 0; put t0 1
message create_snap 1 0
make t1 "0 131072 thin $N/pool 1"
put t0 0
put t0 3
state
load 8 0 read_only
dm resume pool
state
dm table pool
for m in "create_thin 7" "delete 1" "delete 99" nonsense create_thin "set_transaction_id 0 1" reserve_metadata_snap; do
    message $m
done
put t0 0; put t0 1; put t0 2; put t1 0
get t0 0; get t0 1; get t0 2
status t0
trim t0 0 1
trim t0 5 1
status t0
dm suspend pool; dm resume pool; state
load 8 0
dm resume pool
state
put t0 2; put t1 0
state
down
up 512 8 0 read_only # nothing is formatted
dm remove data; dm remove meta
up 512 8 0
thin 0
dm remove t0; dm remove pool
pool 8 0 read_only
state
make t0 "0 131072 thin $N/pool 0"
put t0 0
dm remove t0
dm remove pool
dm create -r pool --table "$(table 8 0)"
dm remove data; dm remove meta
