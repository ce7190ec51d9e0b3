# Every message, and what is wrong with it.
up 512 16 0
for m in "create_thin 0" "create_thin 0" "create_thin 16777215" "create_thin 16777216" "create_thin -1" "create_thin x" \
    create_thin "create_thin 1 2" "create_snap 1 0" "create_snap 1 0" "create_snap 2 9" "create_snap 0 9" "create_snap 2" \
    "create_snap 3 1" "create_snap 4 4" "create_snap 4 16777216" "delete 9" delete "delete 3" "delete x" \
    "set_transaction_id 1 2" "set_transaction_id 0 7" "set_transaction_id 0 7" "set_transaction_id 7" \
    "set_transaction_id x 7" "set_transaction_id 7 18446744073709551615" \
    "set_transaction_id 18446744073709551615 18446744073709551616" reserve_metadata_snap reserve_metadata_snap \
    release_metadata_snap release_metadata_snap "release_metadata_snap 1" "reserve_metadata_snap 1" "CREATE_THIN 20" \
    "create_thin +21" "create_thin 022" "delete 22" bogus "resize 1"; do
    message $m
done
state
make t0 "0 131072 thin $N/pool 0"
message delete 0
message create_snap 50 0
dm suspend t0; message create_snap 51 0; message delete 0; dm resume t0
dm suspend pool
message create_thin 60
make t60 "0 1024 thin $N/pool 60"
dm resume pool
make t60 "0 1024 thin $N/pool 60"
make t61 "0 2048 thin $N/pool 60"
make t99 "0 2048 thin $N/pool 99"
make t98 "0 2048 thin $N/pool 16777216"
make t97 "0 2048 thin $N/pool"
make t96 "0 2048 thin $N/pool 0 $N/pool"
make t95 "0 2048 thin $N/data 0"
make t94 "0 2048 thin $N/nothing 0"
make t93 "0 2048 thin $N/pool 0 $N/nothing"
make t92 "0 2048 thin $N/pool 0 $N/data extra"
make t91 "0 2048 thin $N/pool +60"
state
status t60
put t60 1
status t61
down
