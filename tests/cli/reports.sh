# Columns, sort keys, selections and trees.

$DM create a -u UU-a --table "0 2048 linear $LOOP 0"
$DM create b -r --table "0 100 error"
$DM create c -n; $DM load c --table "0 8 zero"; $DM clear c
$DM create "d d" -u "uuid d" --table "0 8 zero"
dno=$($DM info -c --noheadings -o devno a)
zno=$($DM info -c --noheadings -o devno "d d")
$DM create top -u LVM-xyz --table "0 512 linear $dno 0
512 8 linear $zno 0"
$DM create top2 --table "0 512 linear $dno 512"
$DM create vg--x-lv--y-real -u LVM-abc123 --table "0 64 linear $dno 0"
$DM create vg-lv -u CRYPT-LUKS2-abc --table "0 64 zero"
tno=$($DM info -c --noheadings -o devno top)
$DM create topmost --table "0 64 linear $tno 0
64 64 linear $LOOP 64
128 64 linear $dno 128"
$DM load a --table "0 4096 linear $LOOP 0"
$DM suspend top2

# columns
r info -c
r info -c a top
r info -c -o name
r info -c -o all a
r info -c -o info
r info -c -o info_all --noheadings a
r info -c -o deps_all --noheadings a
r info -c -o deps_all --noheadings
r info -c -o deps_all,name,tree_all --separator "|" a
r info -c -o tree_all --noheadings
r info -c -o splitname_all
r info -c -o name_all
r info -c -o nameall,uuid b
r info -c -o NAME,Uu_id b
r info -c -o ,,name,,open,, b
r info -c -o "" b
r info -c -o + b
r info -c -o +suspended b
r info -c -o +name,name b
r info -c -o name,bogus b
r info -c -o +bogus b
r info -c -o "name, open" b
r info -c -o help
r info -c -o name,help
r info -c -o "?"
r info -c -o selected,name
r info -c -o name,open --rows
r info -c -o name,open --rows --noheadings
r info -c -o name,open --rows --nameprefixes
r info -c -o name,open --rows --separator , a b
r info -c -o name,uuid --nameprefixes
r info -c -o name,uuid --nameprefixes --noheadings a b
r info -c -o name,uuid --nameprefixes --unquoted
r info -c -o name,uuid --nameprefixes --noheadings --separator " " a b
r info -c -o name,uuid --separator ""
r info -c -o name,uuid --separator "<->" --noheadings
r info -c -o name --unbuffered a b
r info -c --noheadings
r info -c --count 2 -o name a
r info -c --count 2 --interval 1 --noheadings -o name a
r info -c --count 1 -o name a
r info -c --count -1 -o name a
r info -c --interval 0 -o name a
r info -c nope
r info -c a nope b
r info -c -u UU-a
r info -c -u NOPE
r info -c -o name,tables_loaded,suspended,readonly
r info -c --noopencount -o name,open a
r info -c --inactive -o name,segments,tables_loaded,readonly
r info -c -o name,device_count,devnos_used --inactive a
r info -co name a
r info -cname a
r info -c --columns -C -o name a
r info -o name a
r info -c -v a
r table -c a
r ls -c
r ls -c -o name

# sort keys
r info -c -o name -O name
r info -c -o name -O -name
r info -c -o name -O +name
r info -c -o name,open -O open
r info -c -o name,open -O -open
r info -c -o name -O open,-name
r info -c -o name --sort uuid,name
r info -c -o name -O bogus
r info -c -o name -O -
r info -c -o name -O name,name
r info -c -o name -O name,-name
r info -c -o name -O name,,open,
r info -c -o name -O ""
r info -c -o name,segments --noheadings -O -segments,-name
r info -c -o name -O attr,name --rows
r info -c -o name -O segments
r info -c -o name -O Seg_ments

# selections
for text in "name=a" "name = a" "name=a || name=b" "name=a # name=b" "name=a&&open=3" "name=a,open=3" "name!=a" \
    "open>0" "open>=1 && open<3" "open<1" "open<=1" "open=0" "open!=0" "!(open=0)" "!(name=a||name=b)" "! ( name=a )" \
    "(name=a || name=b) && open>0" "name=a || name=b && open>0" "name=~^top" "name=~top\$" "name!~top" "name=~t.p" \
    "name=~[ab]" "name=~'[ab]'" "name=~\"^(a|b)\$\"" "name=~(top.*)" "name=~{^a}" "name=~d" "name=~'d d'" "name=\"d d\"" \
    "name='d d'" "name=d d" "uuid=''" "uuid=\"\"" "uuid!=''" "uuid=~^LVM" "subsystem=LVM" "vg_name=vg-x" "lv_name=lv-y" \
    "lv_layer=real" "suspended=Suspended" "suspended!=Active" "readonly=Read-only" "attr=LI-w" "attr=~s" "tables_loaded=Both" \
    "tables_loaded=None" "device_count=2" "device_count>1" "device_ref_count>0" "names_using_dev=~top" "devs_used=a" \
    "events>=0" "major>0" "selected=1" "selected=0" "open = 0 , segments = 1" "all" "ALL" "NAME=a" "na_me=a" "" " " \
    "name" "name=" "name=a ||" "name=a &&" "name=a b" "name=a)" "(name=a" "!name=a" "! name=a" "&& name=a" "bogus=1" "name>a" \
    "open=x" "open=1k" "open=1%" "open=1.5" "open=99999999999999999999999" "open=~1" "name=~" "name=~[" "name=~*" "name=~(" \
    "open==1" "name==a" "name<=1" "open since 1" "help=1" "name='a" "open>0 # name=b , suspended=Active" "name=a|name=b" \
    "name='a'b" "open>00" "open=-1" "open=0x1" "name=~a{1}" "name=~'a|b|c'" "name=~'to+p'" "name=~'tops?'" "name=~'^t.*t\$'" \
    "name=~'[^a-c]'" "name=~'\\x20'" "name=~' '" "name=~''" "uuid=~'^\$'" "name=~'^'" "name=~a.*" "name=~'.'" "name=~'[[:alpha:]]2'" \
    "name=~'[]a]'" "name=~'\\.'" "name=~'x--'" "(open>0)&&(segments>1)" "((name=a))" "!(!(name=a))" "read_ahead>0 && name=a" \
    "( name=a ) || ( name=b )" "name=a, name=b" "name=[a]" "name={a}" "name=a#name=c#name=top" "open>0 && ! (name=a)"; do
    r info -c --noheadings -o name -S "$text"
done
r info -c -S name=a
r info -c -o name,selected -S open=0
r info -c -o name,selected -S open=0 -O selected
r info -c -o name -O selected -S open=0
r info -c -o name -S open=0 b
r info -c -o name -S open=0 a
r info -c -o name -S help
r info -c -o name -S "?"
r info -c -o name -S name=nope
r table -S "open>0"
r table -S "name=a"
r table -S "name=a" b
r table -S "name=b" b
r table -S "name=nope"
r status -S "name=~top"
r deps -S "name=~top"
r info -S "name=a" a top
r ls -S "name=a"
r suspend -S "name=b"
r info -c --noheadings -o name,suspended -S "suspended=Suspended"
r resume -S "name=b"
r resume -S "bogus=b"
r clear -S "name=a"
r clear -S "name=nope"
r load -S "name=a" b --table "0 8 zero"
r clear b
r remove -S "name=topmost || name=a"
r info -c --noheadings -o name,open
r remove -S "name=nope"
$DM create topmost --table "0 64 linear $tno 0
64 64 linear $LOOP 64
128 64 linear $dno 128"

# trees
r ls --tree
for text in device nodevice blkdevname nodevice,blkdevname active open rw uuid active,open,rw,uuid ascii utf vt100 compact,nodevice \
    inverted inverted,compact,nodevice notrunc nodevice,uuid,notrunc nodevice,uuid table status nodevice,status nodevice,n b bogus \
    device,bogus "" , ,nodevice "inverted,nodevice,active" utf,compact,nodevice vt100,compact,nodevice ascii,inverted; do
    r ls --tree -o "$text"
done
r ls --tree -v
r ls -o nodevice
r ls --tree --target zero
$DM create long -u "a-uuid-that-is-so-long-that-a-line-of-the-tree-does-not-fit-into-eighty-columns-any-more" --table "0 64 linear $tno 0"
r ls --tree -o nodevice,uuid
r ls --tree -o nodevice,uuid,notrunc
r ls --tree -o nodevice,uuid,utf
r ls --tree -o nodevice,uuid,inverted
$DM remove long

# ls and deps
r ls
r ls -o blkdevname
r ls -o devname
r ls -o devno
r ls -o b
r ls -o dev
r ls -o blkdevname,devno
r ls -o bogus
r ls -o ""
r deps -o blkdevname top
r deps -o devname top topmost
r deps -o devname
r deps -o bogus top
r deps -v -o devname topmost
r deps --inactive a
r deps topmost
r ls --target linear
r ls --target linear -v
r ls --exec "echo x"
r ls --target zero --exec "echo is"
r ls --exec ""
r ls --exec "/nonexistent x"
r table --exec "echo x" b
r table --target error --exec "echo  a  b"
r status --exec echo a

$DM remove topmost top top2 vg--x-lv--y-real vg-lv a b c "d d"
r ls --tree
r info -c -o deps_all --noheadings
r info -c -S name=a
r ls --exec echo
