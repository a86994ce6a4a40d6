# shellcheck shell=bash
# The metadata snapshot of a thin pool, of which there is only one, and pools in trouble. /dev/ubda is for LVM,
# /dev/ubdb is noise, /dev/ubdc is for a pool by dmsetup alone.
. "$LAB/sites.sh"
. "$LAB/cases.sh"
. "$LAB/pools.sh"

make_pool pool 64k 96
make_thin pool data 8m
make_thick copy 8m
put /dev/vg/data 0 0 2048
snapshot data three
put /dev/vg/data 33 5000 40
blkdiscard -o $((20 * 65536)) -l $((5 * 65536)) /dev/vg/data
snapshot data later
lvchange -q -ay -K vg/three

it "refuses when another program has the metadata snapshot, and does not give it back"
message $tpool reserve_metadata_snap
root=$(held $tpool)
expect 8 "metadata snapshot of /dev/mapper/$tpool .block $root. was taken by another program.*lvmsync cleanup --release $tpool'$" \
    lvmsync send -o /run/refused -r vg/later vg/three
is "$(active later)" inactive 'the later snapshot'
gone /run/refused
is "$(wc -l <"$ERR")" 1 'the number of lines'
is "$(held $tpool)" "$root" 'the metadata snapshot'
expect 0 "$tpool .block $root. was taken by another program" bash -c 'lvmsync cleanup >&2'

it "refuses another program's also where a note of ours names the same block"
expect 0 '' lvmsync changes --json "thin:$tmeta,id=1,base=2,size=8m,snap=held"
locked=$(lvs --noheadings -o lv_uuid vg/pool | tr -d ' -')
locked=$(echo /var/lib/lvmsync/reservations/*"$locked"*.lock)
cat >"${locked%.lock}.json" <<END
{"device": "$tpool", "purpose": "x", "pid": 1, "boot": "", "time": "", "root": $root, "content": "0"}
END
expect 8 'was taken by another program' lvmsync changes vg/three
is "$(held $tpool)" "$root" 'the metadata snapshot'

it "gives it back when its user says so"
expect 0 'was given back' bash -c "lvmsync cleanup --release $tpool >&2"
free
expect 3 'no pool or era device of that name' lvmsync cleanup --release $tpool

it "refuses snap=held when nothing is held, and snap=live of a pool in use"
expect 3 'no metadata snapshot is reserved' lvmsync changes "thin:$tmeta,id=1,base=2,size=8m,snap=held"
expect 2 'live metadata changes while it is read' lvmsync changes "thin:$tmeta,id=1,base=2,size=8m,snap=live"

# A dmsetup that sends its caller a signal before or after a message: $WHEN is "before reserve", $SIGNAL a name.
mkdir /run/wrapped
cat >/run/wrapped/dmsetup <<'END'
#!/bin/bash
word=${*: -1}
strike() { if [[ "$1 ${word%_metadata_snap}" == "$WHEN" ]]; then kill -s "$SIGNAL" "$PPID"; fi; }
strike before
if [[ $SIGNAL == KILL && "before ${word%_metadata_snap}" == "$WHEN" ]]; then exit; fi
PATH=${PATH#/run/wrapped:} dmsetup "$@"
status=$?
strike after
exit $status
END
chmod +x /run/wrapped/dmsetup
# struck SIGNAL WHEN STATUS PATTERN: a run that gets a signal then.
struck() { expect "$3" "$4" env "SIGNAL=$1" "WHEN=$2" "PATH=/run/wrapped:$PATH" lvmsync changes --json vg/three; }

it "gives it back when it is interrupted or ended, whenever that comes"
struck INT 'before reserve' 130 'interrupted'
free
struck TERM 'after reserve' 130 'ended by SIGTERM'
free
struck INT 'before release' 130 'interrupted'
free
struck TERM 'after release' 130 'ended by SIGTERM'
free

it "goes on as if nothing was when it was killed before it took it"
struck KILL 'before reserve' 137 ''
free
expect 0 '' lvmsync changes --json vg/three
says '^$' <(cat "$ERR" && echo)

it "does not give back what may be another's: it was killed just when it took it"
struck KILL 'after reserve' 137 ''
root=$(held $tpool)
differ <(echo "$root") <(echo -)
expect 8 "perhaps by lvmsync process [0-9]+ .vg/three to vg/data, .*cleanup --release $tpool" lvmsync changes vg/three
is "$(held $tpool)" "$root" 'the metadata snapshot'
expect 0 '' lvmsync cleanup --release vg/pool
free

it "gives back its own after it was killed while it held it, says so, and the copy is right"
fill /dev/vg/three /dev/vg/copy
struck KILL 'before release' 137 ''
root=$(held $tpool)
expect 0 "block $root. was taken by lvmsync process [0-9]+ .*ended without giving it back: it was given back now" \
    lvmsync sync vg/three vg/copy
same /dev/vg/data /dev/vg/copy
free

it "goes on after it was killed just when it gave it back"
struck KILL 'after release' 137 ''
free
expect 0 '' lvmsync changes --json vg/three
free

it "waits for another run that works with it"
exec 6<"$locked"
flock -x 6
(sleep 4; exec 6<&-) & # both hold the lock; ours goes first
other=$!
exec 6<&-
expect 0 '' lvmsync changes --json vg/three
if kill -0 "$other" 2>/dev/null; then wrong 'it did not wait'; fi

### Pools in trouble

it "takes a pool that is out of data space"
make_pool tiny 64k 4
make_thin tiny full 8m
dmsetup message vg-tiny-tpool 0 'set_transaction_id 1 1' 2>/dev/null || true
put /dev/vg/full 0 100 512
snapshot full fullbase
make_thick copytiny 8m
fill /dev/vg/full /dev/vg/copytiny
lvchange -q -q --errorwhenfull y vg/tiny
dd if=/dev/ubdb of=/dev/vg/full bs=64k count=50 oflag=direct conv=notrunc status=none 2>/dev/null || true
until_true grep -q out_of_data_space <(dmsetup status vg-tiny-tpool)
expect 0 '' through vg/fullbase -- vg/copytiny
same /dev/vg/full /dev/vg/copytiny
free vg-tiny-tpool

it "refuses a pool that is not active, and takes its metadata when that is active alone"
lvchange -q -an vg/full vg/tiny
expect 3 'the thin pool vg/tiny is not active; run .lvchange -ay vg/tiny' lvmsync changes vg/fullbase
lvchange -q -q -ay -y vg/tiny_tmeta
expect 0 '' lvmsync changes --json "thin:/dev/mapper/vg-tiny_tmeta,id=1,base=2,size=8m"
thin_delta --snap1 2 --snap2 1 /dev/mapper/vg-tiny_tmeta >/run/delta.xml
run "$LAB/thin_answers.py" "$OUT" /run/delta.xml || wrong 'not the same as thin_delta'
lvchange -q -q -an vg/tiny_tmeta

it "refuses a pool that has failed"
dmsetup create meta --table '0 8192 linear /dev/ubdc 0'
dmsetup create store --table '0 65536 linear /dev/ubdc 8192'
dmsetup create raw --table '0 65536 thin-pool /dev/mapper/meta /dev/mapper/store 128 0'
dmsetup message raw 0 'create_thin 0'
dmsetup create thin0 --table '0 16384 thin /dev/mapper/raw 0'
put /dev/mapper/thin0 0 0 300
dmsetup message raw 0 'create_snap 1 0'
put /dev/mapper/thin0 160 0 16
expect 0 '' lvmsync changes --json thin:/dev/mapper/raw,id=0,base=1
dmsetup suspend meta
dmsetup load meta --table '0 8192 error'
dmsetup resume meta
put /dev/mapper/thin0 1000 0 300 2>/dev/null || true
dmsetup message raw 0 'create_snap 2 0' 2>/dev/null || true
says 'Fail| ro ' <(dmsetup status raw)
expect 5 '/dev/mapper/raw.*(has failed|needs a check)' lvmsync changes thin:/dev/mapper/raw,id=0,base=1,size=8m
expect 0 'nothing is left behind' bash -c 'lvmsync cleanup >&2'

it "leaves no metadata snapshot behind"
free
