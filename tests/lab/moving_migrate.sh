# shellcheck shell=bash
# A volume that is hammered moves from one site to the other, over a slow line, with accidents. /dev/ubda is for LVM.
# KIND is classic or thin.
. "$LAB/moving_guest.sh"

a_guest 48
slow delay 10ms rate 50mbit

it "leaves the guest running when the line fails in the downtime, and says what was left"
echo 'ip link set vetha down' >/run/guest/accident
migrate --max-downtime 200s --max-stops 1 "${CREATE[@]}"
until [[ -e /run/guest/stopped_at || ! -d /proc/$RUN ]]; do sleep 0.1; done
ended 7 'vg/guest'
ip link set vetha up
no_accident
runs

it "can be taken back after the migration was killed in the downtime"
# shellcheck disable=SC2016
echo 'kill -KILL "$(cat "$(cat /run/guest/migration)")"' >/run/guest/accident
migrate --max-downtime 200s
ended 137 ''
no_accident
migrate --max-downtime 200s
ended 8 '--(abort|finish)'
expect 0 '' lvmsync migrate --abort vg/guest siteb:vg/copy --restart-cmd "$RESTART"
cat "$ERR"
runs

it "moves the guest within its downtime, as predicted"
migrate --max-downtime 100s --verify
ended 0 'predicted'
cat "$ERR"
moved 100
as_predicted
cleaned

# What is allowed from now on: enough for such a pass, too little for one of 8 MiB over a line of 1 Mbit/s (70 s).
LIMIT=$(awk -v told="$PREDICTED" 'BEGIN { limit = int(told * 1.3 + 12); print (limit > 50 ? 50 : limit) }')
# shellcheck disable=SC2016
FLUSH='head -c 8M /dev/urandom >/run/here/noise; sync /run/here/noise'
SLOW='tc qdisc replace dev vetha root netem limit 10000 delay 10ms rate 1mbit'
FAST='tc qdisc replace dev vetha root netem limit 10000 delay 10ms rate 50mbit'

it "starts the guest again when the last pass becomes too long, and moves it after more passes"
home
echo "$FLUSH" >/run/guest/flush
echo "if [[ ! -e /run/guest/was_slow ]]; then touch /run/guest/was_slow; $SLOW; fi" >/run/guest/accident
echo "$FAST" >/run/guest/at_restart
migrate --max-downtime "${LIMIT}s" "${CREATE[@]}"
ended 0 'started again, and more passes'
cat "$ERR"
is "$(of_receipt restarts)" 1 'the restarts'
moved "$((LIMIT * 11 / 10))"

it "gives it up after --max-stops, and the guest runs"
home
echo "$FLUSH" >/run/guest/flush
echo "$SLOW" >/run/guest/accident
echo "$FAST" >/run/guest/at_restart
migrate --max-downtime "${LIMIT}s" --max-stops 2 "${CREATE[@]}"
ended 3 'it was stopped 2 times; give it more with --max-downtime'
cat "$ERR"
runs
no_accident
eval "$FAST"
nothing_left

it "finishes late where --on-overrun says so"
lvremove -q -y vg/copy
echo "$FLUSH" >/run/guest/flush
echo "$SLOW" >/run/guest/accident
migrate --max-downtime "${LIMIT}s" --on-overrun go "${CREATE[@]}"
ended 0 ''
says 'the downtime was [0-9.]* s, and [0-9.]* s were allowed' "$OUT"
cat "$ERR"
moved 200
awk -v seen="$SEEN" -v most="$LIMIT" 'BEGIN { exit !(seen > most) }' || wrong "it was not late: $SEEN s of $LIMIT s"
no_accident
eval "$FAST"

it "says that the writer is faster than the line, and does not stop it"
home
echo 0.02 >/run/guest/pause
bash /run/guest/stop
$RESTART
expect 0 '' lvmsync sync vg/guest siteb:vg/copy "${CREATE[@]}"
eval "$SLOW"
migrate --max-downtime 2s
ended 3 'cannot be stopped for 2 s only: .* passes in a row did not bring the downtime down; .*/s change and .*/s can be sent.*--on-no-convergence go'
cat "$ERR"
says 'the source was never stopped, and runs on' "$ERR"
runs
all_at_rest

it "stops it all the same where --on-no-convergence says go"
migrate --max-downtime 2s --on-no-convergence go
ended 0 ''
says 'stopped although the downtime would be too long: ' "$OUT"
cat "$ERR"
moved 300
as_predicted
cleaned

it "brings the guest home and moves it once more, onto what the way back has left read-only"
eval "$FAST"
echo 0.2 >/run/guest/pause
expect 0 '' lvmsync migrate --back vg/guest siteb:vg/copy --max-downtime 200s --stop-cmd true --start-cmd "$RESTART" --json
cat "$ERR"
runs
is "$(lvs --noheadings -o lv_permissions -S 'lv_tags=lvmsync.fenced' vg/copy | tr -d ' ')" read-only 'the copy'
is "$(lvs --noheadings -o full_name @lvmsync)" '' 'the snapshots of lvmsync'
migrate --max-downtime 200s
ended 3 "read-only since .*--full"
cat "$ERR"
migrate --max-downtime 200s --full
ended 0 'is writable again: all is copied anew'
cat "$ERR"
moved 200
