# shellcheck shell=bash
# A file system in use goes from one site to the other, and back. /dev/ubda is for LVM; KIND is thin or classic.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
mkdir -p /run/guest /run/there

# A guest is a mounted file system with a writer on it. Its life is in /run/guest.
cat >/run/guest/start <<'END' # HERE: where it is mounted; DEVICE
set -e
mount "$1" "$2"
run "$LAB/migrate_writer.py" "$2" /run/guest/log 32768 0.1 </dev/null >/dev/null 2>&1 &
echo $! >/run/guest/number
until [[ -e /run/forks/$!.pid ]]; do busybox usleep 20000; done
END
cat >/run/guest/stop <<'END'
set -e
date +%s.%N >/run/guest/stopped_at
running=/run/forks/$(cat /run/guest/number).pid
kill "$(cat "$running")"
while [[ -e $running ]]; do busybox usleep 20000; done
umount "$1"
END
cat >/run/guest/start_there <<'END' # as the start command does on the other site: the time of its end counts
set -e
mount "$1" /run/there
date +%s.%N >/run/guest/started_at
END

# whole FOLDER: every file that the writer was told is safe is there, and is what its name says.
whole() {
    awk '/^-/ { delete at[substr($0, 2)]; next } { at[$0] = 1 } END { for (name in at) { sum = name; sub(/.*-/, "", sum); print sum "  " name } }' \
        /run/guest/log >/run/sums
    (cd "$1" && sha256sum --check --quiet /run/sums) >"$OUT" 2>&1 || wrong "files are not whole: $(cat "$OUT")"
    if (($(wc -l </run/sums) < 20)); then wrong "only $(wc -l </run/sums) files were written"; fi
}

# in_time LIMIT: the downtime that was seen from outside is within the limit, and as predicted.
in_time() {
    python3 -S - "$1" "$OUT" <<'END' || wrong "the downtime: $(cat "$OUT" | head -c 3000)"
import json, sys
allowed = float(sys.argv[1])
told = json.load(open(sys.argv[2]))
stopped, started = (float(open(f"/run/guest/{name}").read()) for name in ("stopped_at", "started_at"))
seen = started - stopped
print(f"downtime seen {seen:.2f}, told {told['downtime']}, predicted {told['predicted_downtime']}: {told['prediction']}")
print(told["parts"], *told["passes"], sep="\n")
assert seen <= allowed, "too long"
assert abs(seen - told["downtime"]) < 0.5 + 0.2 * seen, "not what was told"
assert 0.5 <= told["predicted_downtime"] / told["downtime"] <= 2, "not as predicted"
END
}

# runs MOUNT: the guest's writer runs, and its file system is mounted there.
runs() {
    [[ -e /run/forks/$(cat /run/guest/number).pid ]] || wrong "the writer does not run"
    mountpoint -q "$1" || wrong "$1 is not mounted"
}

# only NAME...: these volumes are all there are, nothing is suspended, and no journal is left.
only() {
    is "$(lvs --noheadings -o lv_name vg | tr -d ' ' | sort | tr '\n' ' ')" "$(printf '%s\n' "$@" "${POOL[@]}" | sort | tr '\n' ' ')" 'the volumes'
    is "$(dmsetup info -c --noheadings -o name,suspended | grep -c ':Suspended$' || true)" 0 'the suspended devices'
    is "$(find /var/lib/lvmsync/migrations -name journal.json | wc -l)" 0 'the journals that are left'
    is "$(unlocked)" '' 'the locks that are held'
}

STOP='bash /run/guest/stop /run/here'
RESTART='bash /run/guest/start /dev/vg/guest /run/here'
START='bash /run/guest/start_there /dev/vg/copy'

# go STATUS PATTERN OPTION...: migrate vg/guest to the other site.
go() {
    local status=$1 pattern=$2
    shift 2
    begin lvmsync migrate vg/guest siteb:vg/copy --max-downtime 100s --json \
        --stop-cmd "$STOP" --restart-cmd "$RESTART" "$@"
    echo "/run/forks/$RUN.pid" >/run/guest/migration
    ended "$status" "$pattern"
    cat "$ERR"
}

# way_back: the snapshot that the last run has kept.
way_back() { of_receipt way_back; }

# arrived: the copy's file system is clean, and has every file; it is not mounted afterwards.
arrived() {
    nsenter --target "$(cat /run/siteb/sshd.pid)" --mount -- umount /run/there
    e2fsck -fn /dev/vg/copy >"$OUT" 2>&1 || wrong "the file system: $(cat "$OUT")"
    mount -o ro /dev/vg/copy /run/there
    whole /run/there
    umount /run/there
}

mkdir /run/here
POOL=()
if [[ ${KIND:-thin} == thin ]]; then
    POOL=(pool)
    lvcreate -qq -y --type thin-pool --poolmetadataspare n -L 100m -n pool vg
    lvcreate -qq -y -V 32m --thinpool vg/pool -n guest
    CREATE=(--create --thin-pool vg/pool)
else
    lvcreate -qq -y -W n -L 32m -n guest vg
    CREATE=(--create)
fi
mkfs.ext4 -q /dev/vg/guest
$RESTART

it "refuses a larger target, unless nobody wants a way back"
lvcreate -qq -y -W n -L 36m -n copy vg
go 3 'what is changed behind that could not be brought back.*--no-way-back' --start-cmd "$START"
lvremove -qq -y vg/copy
only guest

it "says that the source is in use after a stop command that stops nothing, and starts it again"
STOP=true RESTART='touch /run/guest/restarted' \
    go 3 'still in use .the kernel counts it as open.*started again .touch /run/guest/restarted.' "${CREATE[@]}"
runs /run/here
is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" writeable 'the source'
[[ -e /run/guest/restarted ]] || wrong 'the restart command did not run'
is "$(find /var/lib/lvmsync/migrations -name journal.json | wc -l)" 0 'the journals that are left'

it "tells what a run that was killed in its downtime has left, and brings it back"
# shellcheck disable=SC2016
go 137 '' --start-cmd 'kill -KILL $(cat $(cat /run/guest/migration))' --no-way-back
go 8 "when the start command may have run.*'lvmsync migrate --abort --force vg/guest siteb:vg/copy'" --start-cmd "$START"
expect 8 'may have run' lvmsync migrate --abort vg/guest siteb:vg/copy
expect 0 'writable again and its user was started again' lvmsync migrate --abort --force vg/guest siteb:vg/copy
runs /run/here

it "moves a volume in use within the downtime, every file whole"
go 0 'predicted downtime' --verify --start-cmd "$START"
in_time 100
back=$(way_back) # the copy itself was mounted meanwhile
if [[ ${POOL[*]} ]]; then lvchange -qq -ay -K "$back"; fi
same /dev/vg/guest "/dev/$back"
if [[ ${POOL[*]} ]]; then lvchange -qq -an "$back"; fi
arrived
is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" read-only 'the source'
only guest copy "${back#vg/}"

it "brings it home with the changes only"
mount /dev/vg/copy /run/there
dd if=/dev/urandom of=/run/there/written-there bs=64k count=8 conv=fsync status=none
sum=$(sha256sum </run/there/written-there)
umount /run/there
expect 0 '' lvmsync migrate --back vg/guest siteb:vg/copy --max-downtime 100s --stop-cmd 'date +%s.%N >/run/guest/stopped_at' \
    --start-cmd 'mount /dev/vg/guest /run/here; date +%s.%N >/run/guest/started_at' --json
cat "$ERR"
in_time 100
first=$(python3 -S -c 'import json, sys; print(json.load(open(sys.argv[1]))["passes"][0]["kind"])' "$OUT")
is "$first" delta 'the first pass back'
is "$(sha256sum </run/here/written-there)" "$sum" 'what was written there'
umount /run/here
e2fsck -fn /dev/vg/guest >"$OUT" 2>&1 || wrong "the file system: $(cat "$OUT")"
only guest copy
