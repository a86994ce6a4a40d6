# shellcheck shell=bash
# One step of a round of power cuts of an archive: /dev/ubda has the file system that it lies in.
# STEP is work (until the power goes) or check; SEED is of the history. $SHARE/started and $SHARE/ended frame it.
mkdir /run/archives
mount /dev/ubda /run/archives
export LVMSYNC_STATE=/run/state
# So that anything may be on the disk before it is asked for, and in any order.
echo 5 >/proc/sys/vm/dirty_writeback_centisecs
echo 5 >/proc/sys/vm/dirty_expire_centisecs
status=0
case $STEP in
    work) .venv/bin/python -m tests.lab.archive_work work /run/archives/one "$SHARE" "$SEED" || status=$? ;;
    check)
        lvmsync archive verify /run/archives/one --repair --restore-test >"$SHARE/said" 2>&1 || status=$?
        cat "$SHARE/said"
        if ((status == 0)); then
            .venv/bin/python -m tests.lab.archive_work check /run/archives/one "$SHARE" "$SEED" || status=$?
        fi
        ;;
esac
echo "$status" >"$SHARE/status.new"
mv "$SHARE/status.new" "$SHARE/ended"
