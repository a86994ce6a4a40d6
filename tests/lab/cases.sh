# shellcheck shell=bash
# Cases for scripts that run in the guest:  . "$LAB/cases.sh"
#
# A line  it "does something"  begins a case, which ends where the next one begins; tests/lab/cases.py makes a
# test of each. What a check finds wrong fails its case, and the script goes on. A command that fails outside
# a check ends the script, and with it its case and all that follow.

OUT=/run/case.out # what the last checked command printed
ERR=/run/case.err # and what it said on stderr

it() {
    printf 'case\t%s\n' "$1" >>"$SHARE/cases"
    echo "--- $SECONDS s: it $1"
}

# wrong TEXT...: the case fails.
wrong() {
    printf 'wrong\t%s\n' "$*" >>"$SHARE/cases"
    echo "WRONG: $*"
}

# expect STATUS PATTERN COMMAND...: run it; check its exit status, and that its stderr has a line that matches
# the extended regular expression (empty: nothing is asked for).
expect() {
    local status=$1 pattern=$2 found=0
    shift 2
    "$@" >"$OUT" 2>"$ERR" || found=$?
    if [[ $found != "$status" ]]; then wrong "status $found, not $status: $*: $(tail -n 5 "$ERR")"; fi
    says "$pattern" "$ERR"
}

# says PATTERN FILE: a line of the file matches.
says() { [[ -z $1 ]] || grep -Eq -- "$1" "$2" || wrong "'$1' is not in: $(tail -n 5 "$2")"; }

# same A B [cmp's options]: both read the same.
same() { cmp -- "$@" || wrong "not the same: $*"; }

# differ A B: they do not (so that a later `same` proves something).
differ() { if cmp -s -- "$@"; then wrong "the same already: $*"; fi; }

# is FOUND WANTED WHAT
is() { [[ $1 == "$2" ]] || wrong "$3 is '$1', not '$2'"; }

# gone PATH...: none of them is there.
gone() {
    local path
    for path; do
        if [[ -e $path ]]; then wrong "$path is still there"; fi
    done
}

# until_true COMMAND...: wait until it succeeds; after a minute the script ends.
until_true() {
    local tries=600
    until "$@"; do
        if ((!tries--)); then
            echo "until_true: waited in vain for: $*"
            return 1
        fi
        sleep 0.1
    done
}

# open_transactions: how many receives the ledger of this site has open.
open_transactions() { cat /var/lib/lvmsync/targets/*/record.json | grep -c '"transaction": {' || true; }

# start_gated BYTES: starts  "${sender[@]}" | "${receiver[@]}"  in the background; BYTES of the stream pass, then
# the gate is closed. /run/gate/reached appears then. Ends: see end_gated.
start_gated() {
    rm -rf /run/gate
    mkdir /run/gate
    {
        # shellcheck disable=SC2154
        { "${sender[@]}" || echo $? >/run/gate/sender.status; } 2>/run/gate/sender.err |
            {
                head -c "$1" || true # the receiver may refuse
                touch /run/gate/reached
                until [[ -e /run/gate/open ]]; do sleep 0.1; done
                cat
            } | { "${receiver[@]}" || echo $? >/run/gate/receiver.status; } 2>/run/gate/receiver.err
    } >/run/gate/out &
    until_true test -e /run/gate/reached
}

# end_gated STATUS STATUS: opens the gate, waits for the end, and checks how sender and receiver ended.
end_gated() {
    touch /run/gate/open
    wait $! || true
    cat /run/gate/*.err
    is "$(cat /run/gate/sender.status 2>/dev/null || echo 0)" "$1" "the sender's status"
    is "$(cat /run/gate/receiver.status 2>/dev/null || echo 0)" "$2" "the receiver's status"
}
