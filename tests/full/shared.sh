# A full pool, and a write to a block that a snapshot shares: the snapshot's deletion lets it go on.
up 512 4 0
thin 0
for b in 0 1 2 3; do put t0 $b; done
message create_snap 1 0
make t1 "0 131072 thin $N/pool 1"
status t1
later t0 0
full
get t0 0; get t1 0
state
later t1 1
dm suspend --noflush t1
dm resume t1
message create_snap 2 1
status
message delete 2
status
dm reload pool --table "$(table 4 0 error_if_no_space)"
dm resume pool
join 0
join 1
status
dm remove t1
message delete 1
status
put t0 5
trim t0 0 1
put t0 5
state
down
