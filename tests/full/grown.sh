# Growing a pool that may not be changed, and one that is suspended.
up 128 8 0
thin 0
put t0 0
resize data "$D" 2048
load 16 0
dm suspend pool
state
dm resume pool
state
resize meta "$M" 2048
dm suspend pool; dm resume pool
state
resize data "$D" 4096
put t0 1
load 32 0 read_only
dm resume pool
state
down # Linux 6.1 would count the new blocks twice from here on
