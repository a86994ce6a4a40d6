# shellcheck shell=bash
# A file system in use goes from one site to the other, and back. /dev/ubda is for LVM.
. "$LAB/sites.sh"
. "$LAB/cases.sh"

two_sites
make_vg vg /dev/ubda
mkdir -p /run/guest /run/there

# A guest is a mounted file system with a writer on it. Its life is in /run/guest.
cat >/run/guest/start <<'END' # HERE: where it is mounted; DEVICE
set -e
mount "$1" "$2"
"$LAB_ROOT"/.venv/bin/python -P "$LAB/migrate_writer.py" "$2" /run/guest/log 65536 0.05 </dev/null >/dev/null 2>&1 &
echo $! >/run/guest/pid
END
cat >/run/guest/stop <<'END'
set -e
date +%s.%N >/run/guest/stopped_at
pid=$(cat /run/guest/pid)
kill "$pid"
while [[ -d /proc/$pid ]] && ! grep -q '^State:.Z' "/proc/$pid/status"; do sleep 0.02; done
umount "$1"
END
cat >/run/guest/start_there <<'END' # as the start command does on the other site: the time of its end counts
set -e
mount "$1" /run/there
date +%s.%N >/run/guest/started_at
END

# whole FOLDER: every file that the writer was told is safe is there, and is what its name says.
whole() {
    local name count=0
    while read -r name; do
        is "$(sha256sum <"$1/$name" | cut -d' ' -f1)" "${name#*-}" "the content of $name"
        count=$((count + 1))
    done < <(awk '/^-/ { delete at[substr($0, 2)]; next } { at[$0] = 1 } END { for (name in at) print name }' /run/guest/log)
    if ((count < 20)); then wrong "only $count files were written"; fi
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
    [[ -d /proc/$(cat /run/guest/pid) ]] || wrong "the writer does not run"
    mountpoint -q "$1" || wrong "$1 is not mounted"
}

# tidy NAME...: these volumes are all there are, nothing is suspended or frozen, and no lock is held.
tidy() {
    is "$(lvs --noheadings -o lv_name vg | tr -d ' ' | sort | tr '\n' ' ')" "$(printf '%s\n' "$@" | sort | tr '\n' ' ')" 'the volumes'
    is "$(dmsetup info -c --noheadings -o name,suspended | grep -c ':Suspended$' || true)" 0 'the suspended devices'
    is "$(find /var/lib/lvmsync/migrations -name journal.json | wc -l)" 0 'the journals that are left'
}

STOP='bash /run/guest/stop /run/here'
RESTART='bash /run/guest/start /dev/vg/guest /run/here'
START='bash /run/guest/start_there /dev/vg/copy'

# go STATUS PATTERN OPTION...: migrate vg/guest to the other site.
go() {
    local status=$1 pattern=$2
    shift 2
    expect "$status" "$pattern" lvmsync migrate vg/guest siteb:vg/copy --max-downtime 100s \
        --stop-cmd "$STOP" --restart-cmd "$RESTART" "$@"
    cat "$ERR"
}

# way_back: the snapshot that the last run has kept.
way_back() { python3 -S -c 'import json, sys; print(json.load(open(sys.argv[1]))["way_back"])' "$OUT"; }

# arrived: the copy's file system is clean, and has every file; it is not mounted afterwards.
arrived() {
    nsenter --target "$(cat /run/siteb/sshd.pid)" --mount -- umount /run/there
    e2fsck -fn /dev/vg/copy >"$OUT" 2>&1 || wrong "the file system: $(cat "$OUT")"
    mount -o ro /dev/vg/copy /run/there
    whole /run/there
    umount /run/there
}

it "says that the source is in use after a stop command that stops nothing, and starts it again"
lvcreate -q -y -W n -L 64m -n guest vg
lvcreate -q -y -W n -L 64m -n copy vg
mkfs.ext4 -q /dev/vg/guest
mkdir -p /run/here
$RESTART
expect 3 'still in use .the kernel counts it as open.*started again .touch /run/guest/restarted.' \
    lvmsync migrate vg/guest siteb:vg/copy --max-downtime 100s --stop-cmd true --restart-cmd 'touch /run/guest/restarted'
runs /run/here
is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" writeable 'the source'
[[ -e /run/guest/restarted ]] || wrong 'the restart command did not run'
is "$(find /var/lib/lvmsync/migrations -name journal.json | wc -l)" 0 'the journals that are left'

it "tells what a run that was killed in its downtime has left, and brings it back"
go 137 '' --start-cmd 'kill -9 $(pgrep -f "lvmsync migrate")' --no-way-back
go 8 "when the start command may have run.*'lvmsync migrate --abort --force vg/guest siteb:vg/copy'" --start-cmd "$START"
expect 8 'may have run' lvmsync migrate --abort vg/guest siteb:vg/copy
expect 0 'writable again and its user was started again' lvmsync migrate --abort --force vg/guest siteb:vg/copy
runs /run/here

it "moves a classic volume in use within the downtime, every file whole"
go 0 'predicted downtime' --json --verify --start-cmd "$START"
in_time 100
back=$(way_back)
same /dev/vg/guest "/dev/$back"
arrived
is "$(lvs --noheadings -o lv_permissions vg/guest | tr -d ' ')" read-only 'the source'
tidy guest copy "${back#vg/}"

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
tidy guest copy

it "moves a thin volume in use to a thin volume that it makes"
lvcreate -q -y --type thin-pool -L 160m -n pool vg
lvcreate -q -y -V 64m --thinpool vg/pool -n thin
mkfs.ext4 -q /dev/vg/thin
rm /run/guest/log
bash /run/guest/start /dev/vg/thin /run/here
expect 0 'predicted downtime' lvmsync migrate vg/thin siteb:vg/copied --max-downtime 100s --json \
    --create --thin-pool vg/pool --no-way-back --fence deactivate --stop-cmd "$STOP" \
    --start-cmd 'bash /run/guest/start_there /dev/vg/copied'
cat "$ERR"
in_time 100
is "$(lvs --noheadings -o lv_active vg/thin | tr -d ' ')" '' 'whether the source is active'
nsenter --target "$(cat /run/siteb/sshd.pid)" --mount -- umount /run/there
e2fsck -fn /dev/vg/copied >"$OUT" 2>&1 || wrong "the file system: $(cat "$OUT")"
mount -o ro /dev/vg/copied /run/there
whole /run/there
umount /run/there
tidy guest copy pool thin copied
