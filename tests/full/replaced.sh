# timeout: 0
# Writers wait for space, and their volume gets another table: they end as that table says.
up 512 2 0
thin 0
put t0 0; put t0 1
later t0 2
full
dm suspend --noflush t0
dm reload t0 --table "0 131072 error"
dm resume t0
join 2
state
dm reload t0 --table "0 131072 thin $N/pool 0"
dm resume t0
get t0 0
later t0 3
opened t0
dm suspend --noflush t0
dm reload t0 --table "0 131072 zero"
dm resume t0
join 3
state
dm reload t0 --table "0 262144 thin $N/pool 0"
dm resume t0
later t0 3
opened t0
dm remove t0 # it is open
dm suspend --noflush t0
dm reload t0 --table "0 262144 error"
dm resume t0
join 3
state
down
up 512 2 0 no_discard_passdown
if blkdiscard "$N/pool" 2>/dev/null; then echo "the pool takes discards"; else echo "the pool takes no discards"; fi
thin 0
put t0 0
trim t0 0 1
state
down
up 512 2 0
dm remove pool
dm reload meta --table "0 2048 linear $M 0"
dm resume meta
make pool "$(table 2 0)"
dm remove meta
dm remove data
up 512 2 0 ignore_discard
if blkdiscard "$N/pool" 2>/dev/null; then echo "the pool takes discards"; else echo "the pool takes no discards"; fi
thin 0
put t0 0
trim t0 0 1
state
down
