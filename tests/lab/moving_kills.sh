# shellcheck shell=bash
# COUNT SIGKILLs of the lvmsync at the source and as many of the one at the target, at random moments of first copies and
# deltas that are pushed and pulled, classic and thin. Each is followed by another run; and as many more, in turn, are
# followed by what cleans up on both sites. All choices come from SEED. /dev/ubda is for LVM.
. "$LAB/moving.sh"

moving_sites
make_vg vg /dev/ubda
RANDOM=$SEED
lvcreate -q -y -L 60m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T vg/pool

# Of each kind there is one volume. Its file system is mounted, on a device of its own above the volume, which LVM does not
# freeze.
for kind in classic thin; do
    case $kind in
        classic) lvcreate -q -y -L 10m -n classic vg ;;
        thin) lvcreate -q -y -V 10m -T vg/pool -n thin ;;
    esac
    dmsetup create "over-$kind" --table "0 $(blockdev --getsz /dev/vg/$kind) linear /dev/vg/$kind 0"
    mkfs.ext4 -q "/dev/mapper/over-$kind"
    mkdir "/run/$kind"
    mount "/dev/mapper/over-$kind" "/run/$kind"
    head -c 4M /dev/urandom >"/run/$kind/noise"
    sync -f "/run/$kind"
done
declare -A way=([classic]='' [thin]='') # how the copy that is there was brought: push, pull, or none is
declare -A killed=([source]=0 [target]=0) seconds=() bytes=()

# at_source COMMAND..., at_target COMMAND...: lvmsync on that side.
at_a() { "$@"; }
at_b() { at_siteb env PATH="/run/forks-b:$PATH" "$@"; }
at_source() { if [[ $direction == push ]]; then at_a "$@"; else at_b "$@"; fi; }
at_target() { if [[ $direction == push ]]; then at_b "$@"; else at_a "$@"; fi; }

# words: SOURCE and TARGET of a run.
words() { if [[ $direction == push ]]; then echo "vg/$kind siteb:vg/copy-$kind"; else echo "siteb:vg/$kind vg/copy-$kind"; fi; }

# changed MIB: so much of the file system is something else.
changed() {
    head -c "${1}M" /dev/urandom >"/run/$kind/part"
    sync "/run/$kind/part"
}

# ids: the replicas of the volume, as tags and records have them.
ids() {
    {
        lvs --noheadings -o lv_tags -S 'lv_tags=lvmsync' vg | grep -o 'lvmsync.replica=[0-9a-f]*' | cut -d= -f2
        grep -ls "\"vg/$kind\"" /var/lib/lvmsync/replicas/*/record.json /run/siteb/state/replicas/*/record.json | xargs -r -n1 dirname | xargs -r -n1 basename
    } | sort -u
}

# of_kind: the snapshots of lvmsync's of this kind's volume.
of_kind() { lvs --noheadings -o full_name -S "origin=$kind && lv_tags=lvmsync" vg | tr -d ' '; }

# given_up: nothing of the copy is kept any more, and it is not there.
given_up() {
    local id
    for id in $(ids); do
        if lvs --noheadings -o lv_name -S "lv_tags=lvmsync.replica=$id && origin!=$kind" vg | grep -q .; then continue; fi
        at_source lvmsync cleanup --replica "$id" >"$OUT" 2>"$ERR" || wrong "cleanup --replica $id: $(cat "$ERR")"
    done
    is "$(of_kind)" '' "the snapshots of $kind"
    if [[ -e /dev/vg/copy-$kind ]]; then lvremove -q -y "vg/copy-$kind" >/dev/null; fi
    way[$kind]=''
}

# idle: nothing runs on either site.
idle() {
    local pattern='watchdog\.py|^([a-z/]*/)?(lvcreate|lvremove|lvchange|lvs|vgs|ssh|thin_delta|thin_dump)( |$)|^sshd: '
    no_agent && ! compgen -G '/run/forks/*.pid' >/dev/null && ! pgrep -f "$pattern" | grep -vx "$(cat /run/siteb/sshd.pid)" | grep -q .
}

# whole [OPTION...]: a run to the end.
whole() {
    begin lvmsync sync $(words) "$@"
    ended 0 ''
    way[$kind]=$direction
}

# timed [OPTION...]: the same; what it took is remembered for the moments of kills to come.
timed() {
    local began=${EPOCHREALTIME/./}
    whole --bwlimit 1M "$@"
    seconds[$step]=$(((${EPOCHREALTIME/./} - began) / 1000))
    bytes[$step]=$(($(line_bytes) - sent_before))
}

# victim_file: the process to be killed, if it is there.
victim_file() {
    if [[ $victim$direction == sourcepush || $victim$direction == targetpull ]]; then
        compgen -G "/run/forks/$RUN.pid"
    else
        compgen -G '/run/forks-b/*.pid'
    fi
}

# strike: wait for the moment, and kill; fails if the run was over before.
strike() {
    local waited=0 file
    case $moment in
        [0-5]) is_on_line $((bytes[$step] * part / 1000)) || return ;;      # while it is sent
        [67]) read -rt "$(printf '%d.%03d' $((seconds[$step] * part / 1000000)) $((seconds[$step] * part / 1000 % 1000)))" <>/run/never || true ;; # at any time
        *) is_on_line $((bytes[$step] * 97 / 100)) || return                # at the end
            read -rt "0.$(printf %03d "$part")" <>/run/never || true ;;
    esac
    until file=$(victim_file); do
        [[ -d /proc/$RUN ]] || return
        read -rt 0.01 <>/run/never || true
        if ((waited++ > 3000)); then wrong 'nobody to kill'; return 1; fi
    done
    kill -KILL $(cat $file) 2>/dev/null
}

# is_as_before: the copy is what it was, or what a snapshot of the volume is.
is_as_before() {
    local now one sums=$before
    now=$(sum "/dev/vg/copy-$kind")
    for one in $(of_kind); do
        if [[ $kind == thin ]]; then lvchange -q -ay -K "$one"; fi
        sums+=" $(sum "/dev/$one")"
        if [[ $kind == thin ]]; then lvchange -q -an "$one"; fi
    done
    [[ " $sums " == *" $now "* ]]
}

# quiet_everywhere BASES: nothing is suspended, frozen, locked, held or running; there are so many snapshots.
quiet_everywhere() {
    local names=(pool classic thin)
    for name in classic thin; do if [[ -e /dev/vg/copy-$name ]]; then names+=("copy-$name"); fi; done
    until_true idle
    REPLICAS=$1 tidy "${names[@]}"
    is "$(dmsetup status vg-pool-tpool | awk '{ print $7 }')" - 'the metadata snapshot of the pool'
    is "$(find /run/lvmsync/holds -type f 2>/dev/null)" '' 'the notes of what is held'
    is "$(grep -ls '"transaction": {' /var/lib/lvmsync/targets/*/record.json)" '' 'the open transactions here'
}

# bases: how many there should be.
bases() { local found=0 name; for name in classic thin; do if [[ ${way[$name]} ]]; then found=$((found + 1)); fi; done; echo $found; }

# goes_on: the next run finishes it.
goes_on() {
    expect 0 '' lvmsync sync $(words) "${creates[@]}" --json
    way[$kind]=$direction
    echo "    then: $(of_receipt kind), $(of_receipt bytes) bytes"
    as_snapshot "vg/$kind" "vg/copy-$kind"
    quiet_everywhere "$(bases)"
}

# cleans_up: both sites do what cleanup and doctor say, and give the copy up.
cleans_up() {
    local left site
    until_true idle
    for site in a b; do expect 0 '' at_$site lvmsync cleanup --remove; done
    { at_b run "$LAB/moving_mend.py" && at_a run "$LAB/moving_mend.py"; } >/run/mended 2>&1 || wrong "doctor: $(cat /run/mended)"
    sed 's/^/    /' /run/mended
    left=$(grep ^left: /run/mended || true)
    if [[ ! -e /dev/vg/copy-$kind ]]; then
        is "$left" '' 'what is left where no target was made'
    elif [[ $left == *"copy-$kind"*'first copy'* || $left == *"copy--$kind"*'first copy'* ]]; then
        is "$step" first 'what is unfinished'
        is "$(wc -l <<<"$left")" 1 'the number of findings that are left'
        echo '    it is said to be unfinished'
    else
        is "$left" '' 'what doctor still finds'
        is_as_before || [[ ! $before ]] || wrong "the copy is neither as it was nor as a snapshot is"
    fi
    given_up
    at_target run "$LAB/moving_mend.py" >/run/mended 2>&1 || wrong "doctor: $(cat /run/mended)"
    sed 's/^/    /' /run/mended
    is "$(grep ^left: /run/mended || true)" '' 'what doctor finds when the copy was given up and removed'
    quiet_everywhere "$(bases)"
}

# play: rounds until the next run and what cleans up have followed COUNT kills of either side.
play() {
    local draw status before number=0
    while ((killed[source] < COUNT * 2 || killed[target] < COUNT * 2)); do
        draw=$((RANDOM)) moment=$((RANDOM % 10)) part=$((RANDOM % 1000))
        kinds=(classic thin) steps=(first delta) directions=(push push pull) followed=(goes_on cleans_up)
        kind=${kinds[draw % 2]} step=${steps[draw / 2 % 2]} direction=${directions[draw / 4 % 3]}
        victim=source
        if ((killed[source] >= COUNT * 2 || (killed[target] < COUNT * 2 && draw / 12 % 2))); then victim=target; fi
        options=(--bwlimit 1M)
        if [[ $direction == push ]]; then options+=(--freeze); fi # which is not sent to another machine
        if ((draw / 24 % 3)); then options+=(--retries 0); fi
        creates=() before=''
        if [[ $step == delta && ${way[$kind]} != "$direction" ]]; then
            direction=${way[$kind]:-$direction} given_up
            whole --create
        elif [[ $step == first ]]; then
            direction=${way[$kind]:-$direction} given_up
            if ((draw / 72 % 3)); then
                creates=(--create)
                if [[ $kind == thin ]]; then creates+=(--thin-pool vg/pool); fi
            elif [[ $kind == thin ]]; then
                lvcreate -q -y -V 10m -T vg/pool -n copy-thin >/dev/null
            else
                lvcreate -q -y -L 10m -n copy-classic vg >/dev/null
            fi
        fi
        changed 2
        if [[ -e /dev/vg/copy-$kind ]]; then before=$(sum "/dev/vg/copy-$kind"); fi
        until_true idle
        echo "round $((++number)): $kind $step $direction, the $victim, moment $moment.$part ${creates[*]} ${options[*]}"
        begin lvmsync sync $(words) "${creates[@]}" "${options[@]}"
        if strike; then
            killed[$victim]=$((killed[$victim] + 1))
            status=0
            wait "$RUN" || status=$?
            echo "    $SECONDS s: kill ${killed[source]}+${killed[target]} at $(($(line_bytes) - sent_before)) bytes; status $status: $(tail -n 1 "$ERR" | head -c 200)"
            "${followed[killed[$victim] % 2]}"
        else
            wait "$RUN" || wrong "it failed without a kill: $(tail -n 3 "$ERR")"
            echo '    it was over before'
            way[$kind]=$direction
        fi
    done
}

direction=push
kind=classic
step=first timed --create # what they take
changed 2
step=delta timed
echo "a first copy takes ${seconds[first]} ms and ${bytes[first]} bytes, a delta ${seconds[delta]} and ${bytes[delta]}"

it "goes on in the next run, or leaves nothing that cleanup and doctor do not know and mend, whatever was killed when"
play
