# shellcheck shell=bash
# One step of a round of power cuts: /dev/ubda holds the state folder (ext4), /dev/ubdb is the target, whole.
# STEP is receive, recover, apply or nothing; ARGUMENTS are for lvmsync; $SHARE/started and $SHARE/ended frame it.
mkdir /run/state
mount /dev/ubda /run/state
export LVMSYNC_STATE=/run/state/lvmsync
# So that the target is written all the time, and not only when lvmsync asks for it.
echo 5 >/proc/sys/vm/dirty_writeback_centisecs
echo 5 >/proc/sys/vm/dirty_expire_centisecs

touch "$SHARE/started"
status=0
case $STEP in
    receive) lvmsync receive -i "$SHARE/stream" $ARGUMENTS /dev/ubdb 2>/run/said || status=$? ;;
    recover) lvmsync recover /dev/ubdb 2>/run/said || status=$? ;;
    apply) lvmsync apply /run/state/keep.back /dev/ubdb 2>/run/said || status=$? ;;
esac
cat /run/said >"$SHARE/said"
cat /run/said
(cd /run/state && find . -type f | sort) >"$SHARE/files"
echo "$status" >"$SHARE/status.new"
mv "$SHARE/status.new" "$SHARE/ended" # the last thing: the host has seen all when it is there
