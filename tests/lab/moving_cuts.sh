# shellcheck shell=bash
# One first copy and one delta, each cut COUNT times at random moments in one of four ways. /dev/ubda is for LVM.
# SIZE is of the volume, in MiB, KIND classic or thin. The bytes of all runs together may be 5 % more than those of one
# that is not cut.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
RANDOM=$SEED
if [[ $KIND == thin ]]; then
    lvcreate -q -y -L "$((SIZE * 5))m" --poolmetadatasize 8m --poolmetadataspare n -c 64k -T vg/pool
    for name in guest copy once; do lvcreate -q -y -V "${SIZE}m" -T vg/pool -n $name; done
else
    for name in guest copy once; do lvcreate -q -y -W n -L "${SIZE}m" -n $name vg; done
fi
dd if=/dev/urandom of=/dev/vg/guest bs=1M count="$SIZE" oflag=direct status=none

# cut_line: the connection is closed, as by a reset; what was on its way may arrive.
cut_line() {
    local file
    for file in $(pgrep -f "^sshd: root@notty"); do kill -KILL "$file" 2>/dev/null || true; done # it may have ended
}

# go_down: the line is down until both sides have noticed.
go_down() { ip link set vetha down; }

# storm BYTES: so many bytes are sent by a run that is not cut; now with COUNT cuts.
storm() {
    local whole=$1 total=0 number how used step
    for ((number = 1; number <= COUNT; number++)); do
        # up to twice the share of one of the cuts that are left: the last one comes in time
        step=$(((whole - total) * 2 / (COUNT - number + 2) * (RANDOM % 1000) / 1000 + 20000))
        how=$((RANDOM % 4))
        begin lvmsync sync vg/guest siteb:vg/copy --retries 0 --stall-timeout 10
        if ! is_on_line "$step"; then
            echo "the transfer was over before cut $number"
            wait "$RUN" || wrong "it failed: $(tail -n 3 "$ERR")"
            total=$((total + $(line_bytes) - sent_before))
            break
        fi
        case $how in
            0) kill_source || true ;;
            1) kill_agent || true ;;
            2) cut_line ;;
            3) go_down ;;
        esac
        wait "$RUN" && echo "cut $number came too late"
        ip link set vetha up
        used=$(($(line_bytes) - sent_before))
        total=$((total + used))
        echo "cut $number of kind $how at $step: $used, all $total of $whole: $(tail -n 1 "$ERR" | head -c 300)"
        if ((how == 3)); then cut_line; fi # a server would notice by its own keepalive
        until_true no_agent
    done
    begin lvmsync sync vg/guest siteb:vg/copy --json
    ended 0 ''
    total=$((total + $(line_bytes) - sent_before))
    echo "$total bytes with $number cuts, $whole without: $((total * 1000 / whole)) per mille"
    if ((total * 100 > whole * 105)); then wrong "$total bytes were sent with $number cuts, $whole without"; fi
    same /dev/vg/guest /dev/vg/copy
}

it "sends next to nothing twice when a first copy is cut at random"
begin lvmsync sync vg/guest siteb:vg/once
ended 0 ''
storm $(($(line_bytes) - sent_before))

it "sends next to nothing twice when a delta is cut at random"
for at in 1 7 13 21 29; do dd if=/dev/urandom of=/dev/vg/guest bs=512k seek=$((SIZE * 2 * at / 32)) count=$((SIZE / 8)) oflag=direct status=none; done
begin lvmsync sync vg/guest siteb:vg/once
ended 0 ''
storm $(($(line_bytes) - sent_before))
