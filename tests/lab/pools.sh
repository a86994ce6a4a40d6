# shellcheck shell=bash
# Functions for scripts about thin pools:  . "$LAB/pools.sh", behind sites.sh and cases.sh. Makes the group vg on
# /dev/ubda; /dev/ubdb is noise.

real_path=$PATH
python3 "$LAB/forks.py" /run/forks & # a second less for each call
until_true test -p /run/forks/calls
export PATH=/run/forks:$PATH

make_vg vg /dev/ubda
tpool=vg-pool-tpool
tmeta=/dev/mapper/vg-pool_tmeta

# make_pool NAME CHUNK MIB
make_pool() {
    lvcreate -q -q -y --type thin-pool --poolmetadataspare n -c "$2" -L "$3m" --poolmetadatasize 4m -n "$1" vg 2>/run/lvm.err
}
make_thin() { lvcreate -q -q -y -V "$3" --thinpool "$1" -n "$2" vg 2>/run/lvm.err; } # POOL NAME SIZE
make_thick() { lvcreate -q -q -y -W n -L "$2" -n "$1" vg; }                          # NAME SIZE
snapshot() { lvcreate -q -q -y -s "${@:3}" -n "$2" "vg/$1"; }                          # ORIGIN NAME [OPTIONS]

# put DEVICE AT FROM COUNT: COUNT blocks of 4 KiB of the noise, from FROM on, to a device at AT.
put() { dd if=/dev/ubdb of="$1" bs=4k seek="$2" skip="$3" count="$4" oflag=direct conv=notrunc status=none; }
fill() { dd if="$1" of="$2" bs=1M oflag=direct conv=notrunc status=none; } # FROM TO
message() { dmsetup message "$1" 0 "$2"; }
held() { dmsetup status "$1" | cut -d' ' -f7; } # POOL: block of its metadata snapshot, or -
free() { is "$(held "${1:-$tpool}")" - 'the metadata snapshot'; }
active() { if [[ -e /dev/vg/$1 ]]; then echo active; else echo inactive; fi; }
thin_id() { lvs --noheadings -o thin_id "vg/$1" | tr -d ' '; }

# agrees POOL BASE HEAD SIZE: `lvmsync changes` and thin_delta say the same of a pair of numbers.
agrees() {
    message "vg-$1-tpool" reserve_metadata_snap
    thin_delta -m --snap1 "$2" --snap2 "$3" "/dev/mapper/vg-$1_tmeta" >/run/delta.xml
    expect 0 '' lvmsync changes --json "thin:/dev/mapper/vg-$1_tmeta,id=$3,base=$2,size=$4,snap=held"
    message "vg-$1-tpool" release_metadata_snap
    run "$LAB/thin_answers.py" "$OUT" /run/delta.xml 2>/run/answer || wrong "$2 to $3: $(cat /run/answer)"
}

# through OPTIONS OF SEND... -- OPTIONS OF RECEIVE...
through() {
    local send=()
    while [[ $1 != -- ]]; do send+=("$1") && shift; done
    shift
    lvmsync send -q "${send[@]}" | lvmsync receive -q "$@"
}
