# The metadata device is gone under the pool.
up 512 16 0
thin 0
put t0 0
state
dm suspend --noflush --nolockfs meta
dm reload meta --table "0 4096 error"
dm resume --noflush --nolockfs meta
put t0 1
sync_ t0
state
status t0
dm table t0
dm table pool
get t0 0
put t0 0
message create_thin 1
make t5 "0 1000 thin $N/pool 5"
dm suspend --noflush --nolockfs pool; dm resume pool; state
load 16 0
dm suspend --noflush --nolockfs meta
dm reload meta --table "0 4096 linear $M 0"
dm resume --noflush --nolockfs meta
load 16 0
state
dm remove t0
dm remove pool
pool 16 0
status
make t0 "0 131072 thin $N/pool 0"
get t0 0
put t0 1
down
