# The rarer verbs and options.

# --concise
r create --concise "c1,,,,0 8 zero"
r create --concise "c2,UU-2,,rw,0 8 zero,8 8 error;c3,,,ro,0 8 error"
r create --concise "c4,,,,0 8 zero; c5,, , rw, 0 8 zero"
given 'c6,,,,0 8 zero' create --concise
given 'c7,,,,0 8 zero\n' create --concise
given ' c8,,,,0 8 zero;\n c9,,,,0 8 zero\n' create --concise
given '' create --concise
r create --concise 'e\,1,u\;2,,,0 8 zero'
r create --concise 'e\\3,,,,0 8 zero'
r create --concise 'e4,,,,0 8 linear '$LOOP' 0,8 8 zero;'
r create --concise 'bad'
r create --concise 'bad,,,'
r create --concise 'bad,,,,'
r create --concise 'bad,,,,0 8 zero\'
r create --concise 'bad,,,xx,0 8 zero'
r create --concise 'bad,,,,0 8 bogus'
r create --concise 'bad,,,,x'
r create --concise ',,,,0 8 zero'
r create --concise 'c1,,,,0 8 zero;never,,,,0 8 zero'
r create --concise 'ok1,,,,0 8 zero;bad,,,,0 8 bogus;never,,,,0 8 zero'
r create --concise 'bad;worse'
r create --concise a b
r create --concise -u X 'c1,,,,0 8 zero'
r create --concise --notable 'c1,,,,0 8 zero'
r create --concise --table "0 8 zero" 'c1,,,,0 8 zero'
r create --concise -v 'c10,,,,0 8 zero'
r create --concise -r 'c11,,,,0 8 zero;c12,,,,0 8 zero'
r ls
r info -c --noheadings -o name,uuid,attr,segments
for n in c1 c2 c3 e4 "e,1" 'e\3'; do
    printf '## %s\n' "$n"
    $DM table --concise "$n" | sed 's/,[0-9]*,r\([wo]\)/,MIN,r\1/g; s/ 7:[0-9]* / LOOP /'
done
$DM table --concise | sed 's/,[0-9]*,r\([wo]\)/,MIN,r\1/g; s/ 7:[0-9]* / LOOP /'
$DM table --concise --target error | sed 's/,[0-9]*,r\([wo]\)/,MIN,r\1/g'
$DM create none -n
$DM table --concise none | sed 's/,[0-9]*,r\([wo]\)/,MIN,r\1/g'
$DM table --concise -v none | sed 's/,[0-9]*,r\([wo]\)/,MIN,r\1/g; s/Major, minor:.*/Major, minor/; /^Read Ahead/d'
r table --concise nope
r table --concise nope c1
r status --concise c1
r remove c1 c2 c3 c4 c5 c6 c7 c8 c9 c10 c11 c12 ok1 'e,1' 'e\3' e4 none
r ls
r remove_all
r ls

# numbers of one's own
r create --concise 'n1,,177,,0 8 zero'
r create n2 -j 253 -m 178 --table "0 8 zero"
r create n3 -j 253 -m 178 --table "0 8 zero"
r create n4 -j x -m 179 -n
r create n5 -j 253 -m -1 -n
r create n6 -j 253 -m 1048576 -n
r remove_all
r ls

# table files and input
printf '0 8 zero\n' >"$tmp/table"
r create f1 "$tmp/table" -v
printf '0 8 zero' >"$tmp/table"
r create f2 --readonly <"$tmp/table"
r create f3 "$tmp/table" "$tmp/table"
r create f3 "$tmp/table" --uuid UU-3 --addnodeoncreate
r create f4 "$tmp/table" --addnodeonresume --readahead auto
r create f5 "$tmp/table" --addnodeonresume --addnodeoncreate
r create f6 --table "0 8 zero" --readahead none
r create f7 --table "0 8 zero" --readahead +100
r create f8 --table "0 8 zero" --readahead -5
r create f8 --table "0 8 zero" --readahead x
r create f9 --table "0 8 zero" --readahead 64
r create f10 --table "0 8 zero" -U 0 -G 0 -M 0600
r create f11 --table "0 8 zero" -M 9
r create f11 --table "0 8 zero" --mode 0
r create f11 --table "0 8 zero" --noudevsync --noudevrules --verifyudev --checks -y
r create f12 -n --inactive --noopencount
r create f13 --table "0 8 zero
8 8 error"
r create f14 --table "# only a comment"
r create f15 --table ""
r load f1 --notable
r load f1 "$tmp/table" extra
r load -u UU-3 "$tmp/table" extra
r load -u UU-3 "$tmp/table"
r load f1 /nonexistent
r load f1 --table "0 8 linear $LOOP 0 extra"
r load f1 --inactive --table "0 8 error" -v
r resume f1 --addnodeoncreate --noudevsync
r resume f1 --readahead 128
r resume f1 --noflush --nolockfs -v
r suspend f1 --noflush
r resume f1 --addnodeonresume --readahead none
r info f1 f6
r info -c --noheadings -o name,read_ahead f6 f9
r remove_all --force --deferred
r ls
r remove_all x

# wipe_table
$DM create w --table "0 16 zero
16 16 zero"
r wipe_table w
r table w
r info w
r wipe_table
r wipe_table nope
r wipe_table w w
r wipe_table --force --noflush --nolockfs w
r wipe_table -r w
r info -c --noheadings -o name,attr w
$DM create w2 -n
r wipe_table w2
r wipe_table w2 w
r wipe_table -u X
r remove w w2

# mangling
r create "a b" -n
r create "a\\x20b" -n
r create 'x\x20 y' -n
r create 'z\x5cx20' -n
r create 'z\q' -n
r create --manglename hex 'h\x20i' -n
r create --manglename none 'n m' -n
r create --manglename none 'n\x20m' -n
r create --manglename bogus q -n
r create --manglename HEX Q -n
r create u1 -u 'u u' -n
r create u2 -u 'u\x20u' -n
r create u3 -u 'u\x20 u' -n
r ls --manglename none
r ls
r ls --manglename hex
r info -c --manglename none -o name,mangled_name,unmangled_name,mangled_uuid,unmangled_uuid
r info -c -o name,mangled_name,unmangled_name,mangled_uuid,unmangled_uuid u1
r info --manglename hex -c -o name,mangled_name,unmangled_name,mangled_uuid,unmangled_uuid u1
r info -c "a b"
r info -c --manglename none "a b"
r info -c --manglename none 'a\x20b'
r info -c --manglename hex 'a b'
r mangle 'a\x20b'
r mangle
r mangle "a b"
r mangle u1
r mangle --manglename none
r mangle --manglename hex
r mangle nope
r --manglename none remove 'n m'
r --manglename none ls
r ls
r rename u1 'x y'
r rename 'x y' u1
r rename u1 'x\x20 y'
r rename u1 ''
r rename --setuuid Q 'new uu'
r info -c -o name,uuid,mangled_uuid Q
with DM_DEFAULT_NAME_MANGLING_MODE=none ls
with DM_DEFAULT_NAME_MANGLING_MODE=bogus info -c --noheadings -o name Q
for n in 'a\x20b' 'h\x5cx20i' u1 u2 Q 'z\x5cq' 'n\x20m' 'z\x5cx20'; do $DM remove --manglename none "$n" 2>/dev/null; done
r ls --manglename none

# splitname
r splitname vg-lv
r splitname vg--a-lv--b-layer
r splitname vg
r splitname a-b-c-d
r splitname vg-lv LVM
r splitname vg-lv CRYPT
r splitname vg-lv --noheadings
r splitname vg-lv --nameprefixes
r splitname vg-lv --nameprefixes --noheadings --rows
r splitname vg-lv --nameprefixes --unquoted --noheadings
r splitname vg-lv -c --separator ,
r splitname vg-lv -o vg_name
r splitname vg-lv -o +subsystem
r splitname vg-lv -o all
r splitname vg-lv -o splitname_all
r splitname vg-lv -o bogus
r splitname vg-lv -S vg_name=vg
r splitname vg-lv -S vg_name=x
r splitname ""
r splitname -- -
r splitname -- ---
r splitname
r splitname a b c

# geometry
$DM create g --table "0 2048 zero"
r setgeometry g 1 2 3 4
r setgeometry g 1 2 3
r setgeometry g 65536 2 3 4
r setgeometry g 1 256 3 4
r setgeometry g 1 2 256 4
r setgeometry g 1 2 3 x
r setgeometry g a b c d
r setgeometry nope 1 2 3 4
r setgeometry g -1 2 3 4
r setgeometry -u X g 1 2 3 4
r setgeometry g 1 2 3 4000
r setgeometry g 1 2 3 6
r setgeometry g 1 2 3 7
$DM create gn -n
r setgeometry gn 1 2 3 4
r remove g gn

# udev
r udevcookies
r udevcreatecookie
r udevcookie
r udevreleasecookie
r udevreleasecookie 0xD4D1234
r udevreleasecookie x
r udevreleasecookie 0
r udevcomplete 0xD4D1234
r udevcomplete 1
r udevcomplete x
r udevcomplete 0x1ffffffff
r udevcomplete
r udevcomplete 0x10000
r udevflags 0x10000
r udevflags 0xFFFF0000
r udevflags 0xD4D1234
r udevflags 0
r udevflags 077
r udevflags 1x
r udevflags -1
r udevcomplete_all -y
r udevcomplete_all -y 5
r udevcomplete_all -y x
r udevcomplete_all
given 'n\n' udevcomplete_all
given 'y\n' udevcomplete_all
given 'q\ny\n' udevcomplete_all 10
r create uc --table "0 8 zero" --udevcookie 0xD4D1234
r create uc2 --table "0 8 zero" --udevcookie x
r remove -f uc --udevcookie 0xD4D1234
with DM_UDEV_COOKIE=0xD4D4321 remove --force uc2
with DM_UDEV_COOKIE=junk ls

# nodes, statistics, measurements
$DM create m --table "0 512 linear $LOOP 0
512 1024 striped 2 128 $LOOP 512 $LOOP 1024
1536 8 zero
1544 8 error"
r mknodes m
r mknodes
r mknodes nope
r mknodes m nope
r stats list
r stats list m
r stats list nope
r stats list -v
r stats report
r stats report m
r stats bogus
r stats
r stats version
r stats list --alldevices --allprograms
r stats list --allprograms --programid x
r stats list --allregions --regionid 1
r measure m
r measure
r measure nope
r measure --target zero
r measure -v m

# wait, messages, targets
r wait m 5 --noflush
r wait m 4294967295
r wait m -1
r wait m 7x
r wait
r wait m 1 2
r wait -u NOPE
r message m 0
r message m 0 ""
r message m -1 x
r message m 99999999999999999999999 x
r message m " 5" x
r message m +5 x
r message m 5x x
r message nope 0 x
r message m 0 a b  c
r message -u NOPE 0 x
r message m 9999 x
r message m 0 @stats_list
r target-version zero linear
r target-version zero nope linear
r target-version ""
r rename m
r rename nope m
r rename m m
r rename -u NOPE x
r rename m n extra
r rename m n -v
r rename --setuuid n
r rename n --setuuid ""
r rename n /dev/x
r rename n aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
r rename n --setuuid aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa

# options
r --version
r version
r version x
r -h
r --help
r ls -h
r help
r help x
r ls --verbose
r ls --verbose 1
r ls --no
r ls --noflush --nolockfs
r ls --ver
r ls --se
r ls --sel name=n
r ls -q
r ls -j
r ls -o
r ls --table
r ls --interval 0
r ls --interval x
r info --checks n
r info -j 1 n
r info -j x -m y
r info -j 0 -m 0
r info -u ""
r info ""
r info -- n
r info n --
r info n -
r -v info n
r info --noopencount n
r status --noopencount --noflush --inactive n
r remove -n n
r remove --deferred --retry n
r remove ""
r remove
r suspend ""
r table --showkeys nope
r status --units h
r info --units bogus
r info --nosuffix --notimesuffix --unquoted
r table -O name
r table -c -O name
r suspend --checks nope
r ls
