# What a person types: every verb with a device, a table, and what goes wrong.

# nothing there
for verb in ls info table status deps "info -c" "info -c --noheadings"; do r $verb; done
for verb in "info nope" "info -c nope" "table nope" "status nope" "deps nope" "suspend nope" "resume nope" \
    "clear nope" "remove nope" "rename nope x" "wait nope" "message nope 0 x" "load nope --table=0_8_zero"; do
    r $verb
done

# the command line itself
r bogus
r create
r load
r suspend
r resume
r clear
r remove
r rename
r rename a
r message a
r target-version
r ls x
r info --bogus
r info -cq
r info -u
r info -j 253
r info -m 1
r info --columns=3
r create n --notable --table x
r create a b c
r create a/b --notable
r create /dev/mapper/a --notable
r create "" --notable
r create aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --notable
r target-version nope
r info ./x
r remove /dev/mapper/nope
r table /dev/loop7

# tables that are refused, and leave nothing behind
r create bad --table "0 100 linear /dev/nonexist 0"
r create bad --table "0 100 linear $LOOP"
r create bad --table "0 100 bogus x"
r create bad --table "0 100"
r create bad --table "x 100 zero"
r create bad --table "10 100 zero"
r create bad --table "-1 100 zero"
r create bad --table "0 0 zero"
r create bad --table "0 10 zero extra"
r create bad --table "0 10 linear7890123456789 x"
r create bad --table "0 1025 striped 2 128 $LOOP 0 $LOOP 0"
r create bad --table "0 1024 striped 2 128 $LOOP 0 $LOOP"
r create bad -u UU --table "0 100 bogus"
r create bad /nonexistent
given '0 10 zero\nfoo\n' create bad
given '0 10 zero\n10 20 bogus\n' create bad
given '0 8 zero\n9 8 zero\n' create bad
given '0 8 zero\n7 8 zero\n' create bad
r ls

# devices
r create a --table "0 2048 linear $LOOP 0"
r create a --table "0 2048 linear $LOOP 0"
r create b -n -u UU-1
r create c -u UU-1 --notable
r create d --table "0 100 zero"
r create e -r --table "0 100 error"
given '# comment\n\n0 10 zero # more\n  10   20 error  \n' create multi
r create empty --table ""
r create "sp ace" -u "uu id" --table "0 1 zero"
r create s --table "0 1024 striped 2 128 $LOOP 0 $LOOP 4096" -v
r create d2 --table "0 100 zero" --table "0 200 error"
r create -- -x --notable
r ls
r ls -v
r ls --target zero
r ls --target nope
r info a
r info b
r info a nope b
r info -u UU-1
r info e
r info "sp ace"
r info -c
r info -c a d
r info -c d a
r info -C -o uuid -u UU-1
r info -c --separator ,
r info -c --noheadings -o name,attr,open,segments,events --separator " "
r info -c --noheadings -o name,open
r info -c -o name,tables_loaded,suspended,readonly,device_count a
r info -c -o +tables_loaded b
r info -c -O -name
r info -c -O -open,name
r info -c -o name_all a
r info -c -o mangled_name,unmangled_name,mangled_uuid,unmangled_uuid "sp ace"
r table
r table a
r table a nope d
r table --target zero
r table --target zero a
r table -v a
r table b
r table -u UU-1
r table -u NOPE
r table s
r status
r status a
r status a d
r status b
r status nope a
r status s
r status --target zero --noflush
r status -v d
r deps
r deps a
r deps -o devno a
r deps a d
r deps b
r deps -v s

# messages
r message a 0 foo
r message a 0
r message a x foo
r message a 0x0 foo
r message d 5000 foo
r message b 0 foo
r message -u UU-1 0 foo
r message -v a 0 @cancel_deferred_remove
r message a 0 @bogus

# suspend and resume
r suspend a
r suspend a
r info a
r info -c a
r resume a
r resume a
r suspend -v --noflush --nolockfs a
r resume -v a
r resume b
r suspend b
r info b
r resume b
r info -c b
r suspend d nope a
r info -c d a
r resume d

# the inactive table
r load a --table "0 100 linear $LOOP 100"
r reload a --table "0 200 linear $LOOP 100"
r load a --table ""
r load a "0 10 zero"
r info a
r info -c a
r info --inactive a
r table --inactive a
r status --inactive a
r clear a
r clear a
r info -c a
r load a --table "0 8 linear $LOOP 100" -v
r resume a
r table a
r load b --table "0 10 zero"
r info b
r info -c b
r resume b
r info -c b
r load -r b --table "0 20 zero"
r info -c --inactive b
r resume b
r info -c b
given '0x0 10 zero' load d
given '0 10 linear 7:0 \\\\\\\\ 5' load d
r clear d -v

# names
r rename a aa
r info aa
r rename aa d
r rename aa aa
r rename aa x/y
r rename aa --setuuid NEW
r rename aa --setuuid NEW2
r rename d --setuuid NEW
r info aa
r wait aa 0
r wait -v aa x
r wait aa 1

# stacked
r create top --table "0 10 linear $($DM info -c --noheadings -o devno d) 0"
r info -c -o name,open d top
r info -c -o name,devs_used,names_using_dev,device_ref_count d top
r remove d
r table d
r remove nope top
r remove top
r info -c -o name,open d

# the end
r remove nope aa
r remove aa d
r remove -u NOPE
r remove -u UU-1
r remove e multi empty "sp ace" s d2
r remove -v -- -x
r ls
