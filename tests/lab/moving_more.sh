# shellcheck shell=bash
# More copies, histories and stores that are not what they were; not in CI. /dev/ubda is for LVM.
# Refused each time: with both sides shown, the way out named, and not a byte of the copy changed.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
two_volumes

it "refuses a copy that was written to"
anew
put vg/copy 777
refused 8 'siteb:vg/copy.*written to.*lv:.*(repair|--full)'

it "goes on with a copy that was only read, or had a snapshot meanwhile, or another name"
anew
lvcreate -q -y -s -L 4m -n look vg/copy
cmp /dev/vg/look /dev/vg/copy
lvremove -q -y vg/look
lvrename -q vg/copy vg/other
lvrename -q vg/other vg/copy
change
lvrename -q vg/guest vg/renamed
expect 0 '' lvmsync sync vg/renamed siteb:vg/copy --json
is "$(of_receipt kind)" delta kind
as_snapshot vg/renamed vg/copy
lvrename -q vg/renamed vg/guest

it "knows a copy by its ids that was renamed, and renamed back"
anew
for name in other copy; do
    lvrename -q vg/$([[ $name == copy ]] && echo other || echo copy) vg/$name
    change
    expect 0 '' lvmsync sync vg/guest siteb:vg/$name --json
    is "$(of_receipt kind)" delta kind
    as_snapshot vg/guest vg/$name
    is "$(lvs --noheadings -o name -S 'origin=guest && lv_tags="lvmsync.role=base"' vg | wc -l)" 1 bases
done

it "refuses a copy that was written to after the counters were reset"
anew
lvchange -q -an vg/copy
lvchange -q -ay vg/copy
dd if=/dev/urandom of=/dev/vg/copy bs=64k count=1 oflag=direct status=none
refused 8 'siteb:vg/copy.*(written to|does not hold it any more).*(repair|--full|compare)'

it "refuses another volume of the copy's name"
lvremove -q -y vg/copy
lvcreate -q -y -W n -L 4m -n copy vg
refused 8 'siteb:vg/copy.*(another|other).*(repair|--full)'

it "refuses a copy whose own history was put back to an older one"
anew
cp -a /run/siteb/state /run/old-target
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
rm -rf /run/siteb/state/targets
cp -a /run/old-target/targets /run/siteb/state/
refused 8 'siteb:vg/copy.*lv:'

it "refuses an increment that skips another, one that leads back, and a copy that came from elsewhere"
anew
base=$(base_of vg/guest)
sleep 1.1 # LVM tells the times of snapshots in seconds
lvcreate -q -y -s -L 4m -n s1 vg/guest
change
sleep 1.1
lvcreate -q -y -s -L 4m -n s2 vg/guest
change
expect 0 '' lvmsync send "$base" -r vg/s1 -o /run/one
expect 0 '' lvmsync send vg/s1 -r vg/s2 -o /run/two
take() { expect "$1" "$2" at_siteb /run/forks-b/lvmsync receive -i "$3" vg/copy; }
take 8 'lv:.*lv:' /run/two
take 0 '' /run/one
take 0 '' /run/one # the same once more changes nothing
take 0 '' /run/two
take 8 'lv:.*lv:' /run/one
same /dev/vg/s2 /dev/vg/copy
lvremove -q -y vg/s1 vg/s2
refused 8 'siteb:vg/copy.*lv:.*lv:.*(repair|--full)'

it "refuses to skip what another machine's history holds"
anew
cp -a /var/lib/lvmsync /run/old-source
old=$(base_of vg/guest)
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
rm -rf /var/lib/lvmsync/replicas
cp -a /run/old-source/replicas /var/lib/lvmsync/
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --json # what the tags say counts, not an old record
is "$(of_receipt kind)" delta kind
as_snapshot vg/guest vg/copy
if [[ $old == "$(base_of vg/guest)" ]]; then wrong 'the base is still the first one'; fi

it "refuses a copy that was put back to an older state, history and all"
anew
cp -a /run/siteb/state /run/old-target2
dd if=/dev/vg/copy of=/run/old-copy bs=1M status=none
change
expect 0 '' lvmsync sync vg/guest siteb:vg/copy
dd if=/run/old-copy of=/dev/vg/copy bs=1M oflag=direct status=none
refused 8 'siteb:vg/copy.*written to'

# grown MIB: both volumes anew.
grown() {
    lvremove -q -y vg/guest vg/copy >/dev/null
    two_volumes "$1"
}

it "goes on when the extend command makes room"
grown 16
cat >/run/extend <<'MORE'
echo "$LVMSYNC_VOLUME $LVMSYNC_PERCENT" >>/run/extended
exec lvextend -q -L +8m "$LVMSYNC_VOLUME"
MORE
expect 0 '' lvmsync sync vg/guest siteb:vg/copy --cow-size 6M --chunk-size 4K
dd if=/dev/urandom of=/dev/vg/guest bs=64k seek=150 count=64 oflag=direct status=none
begin lvmsync sync vg/guest siteb:vg/copy --cow-size 6M --chunk-size 4K --extend-cmd 'bash /run/extend' --bwlimit 400K
on_line 300000
dd if=/dev/urandom of=/dev/vg/guest bs=64k count=8 oflag=direct status=none # 76 %
ended 0 ''
cat /run/extended
as_snapshot vg/guest vg/copy
tidy guest copy

it "stops when something else fills the pool of the copy meanwhile"
filled() { lvs --noheadings -o data_percent vg/pool | tr -d ' ' | cut -d. -f1; }
lvremove -q -y vg/copy
for one in /var/lib/lvmsync/replicas/????????????????; do expect 0 '' lvmsync cleanup --replica "${one##*/}"; done
lvcreate -q -y -L 40m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --create --thin-pool vg/pool
lvcreate -q -y -V 40m -T vg/pool -n greedy
lvcreate -q -y -s -n pin vg/thin # each write to the copy needs a chunk of its own now
dd if=/dev/urandom of=/dev/vg/guest bs=1M count=8 seek=4 oflag=direct status=none
begin lvmsync sync vg/guest siteb:vg/thin --retries 0 --bwlimit 400K
on_line 500000
dd if=/dev/urandom of=/dev/vg/greedy bs=1M count=20 oflag=direct status=none
ended 3 'vg.pool.*lvextend'
full=$(filled)
if ((full >= 99)); then wrong "the pool is full: $full %"; fi
lvremove -q -y vg/greedy vg/pin
expect 0 '' lvmsync sync vg/guest siteb:vg/thin --json
as_snapshot vg/guest vg/thin
