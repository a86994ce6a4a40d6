# shellcheck shell=bash
# An era device, copied again and again. /dev/ubda is the origin (its last block is short), /dev/ubdb is for
# metadata, /dev/ubdc is the copy, /dev/ubdd is noise, /dev/ubde is for the state folder.
. "$LAB/cases.sh"

python3 "$LAB/forks.py" /run/forks & # a second less for each call
until_true test -p /run/forks/calls
export PATH=/run/forks:$PATH

mkfs.ext4 -q /dev/ubde
mount /dev/ubde /var/lib/lvmsync
dd if=/dev/ubdd of=/dev/ubda bs=1M count=16 oflag=direct status=none
dmsetup create meta --table '0 8192 linear /dev/ubdb 0'
dmsetup create small --table '0 136 linear /dev/ubdb 16384' # 17 blocks of 4 KiB
dmsetup create other --table '0 65536 linear /dev/ubdd 0'

block() { # NUMBER: write noise to this block of 16 KiB, and to no other
    dd if=/dev/ubdd of=/dev/mapper/era bs=16k seek="$1" skip="$((RANDOM % 2000))" count=1 oflag=direct conv=notrunc status=none
}
short() { # write to the last block, which has 4 KiB
    dd if=/dev/ubdd of=/dev/mapper/era bs=4k seek=8196 skip="$((RANDOM % 8000))" count=1 oflag=direct conv=notrunc status=none
}
scatter() { # COUNT: write to random blocks
    local i
    for ((i = 0; i < $1; i++)); do block "$((RANDOM % 2049))"; done
}
fresh() { # same|differ: origin and copy; not the page cache of the origin, which dm-era writes below
    blockdev --flushbufs /dev/ubda /dev/ubdc
    "$1" /dev/ubda /dev/ubdc
}
RANDOM=1

it "refuses a metadata device that is too small, or holds something"
expect 3 'has 17 blocks of 4 KiB, and era metadata for .* may need 47' \
    lvmsync era create tiny /dev/ubda /dev/mapper/small --granularity 16K --no-unit
mkswap -q /dev/mapper/meta
expect 3 'meta holds something' lvmsync era create era /dev/ubda /dev/mapper/meta --granularity 16K
gone /dev/mapper/era /dev/mapper/tiny /var/lib/lvmsync/era/era.json

it "warns when the metadata gets full"
expect 0 'is (6[0-9]|[7-9][0-9]) % full' \
    lvmsync era create tiny /dev/mapper/other /dev/mapper/small --granularity 16K --no-unit --force
expect 0 'is (6[0-9]|[7-9][0-9]) % full' lvmsync era status tiny
says 'tiny: era 1, metadata' "$OUT"
expect 0 'is gone|removed' lvmsync era remove tiny --wipe
gone /dev/mapper/tiny /var/lib/lvmsync/era/tiny.json
cmp -n 4096 /dev/mapper/small /dev/zero || wrong "the metadata was not wiped"

it "makes an era device, and the unit that makes it again"
expect 0 'systemd does not know of it yet' \
    lvmsync era create era /dev/ubda /dev/mapper/meta --granularity 16K --force --unit-dir /run/units
says 'era: era 1, metadata 1 % full' "$OUT"
says 'ExecStart=.* "era" "start" "era" "--state" "/var/lib/lvmsync"' /run/units/lvmsync-era-era.service
says 'After=dev-mapper-meta.device dev-ubda.device' /run/units/lvmsync-era-era.service
says '^0 65576 era [0-9:]+ [0-9:]+ 32$' <(dmsetup table era)

it "copies everything at first"
scatter 30
short
fresh differ
expect 0 'No era is remembered for /dev/ubdc: everything is sent' lvmsync sync era:/dev/mapper/era /dev/ubdc
fresh same

it "then copies what was written, and that is what era_invalidate says"
since=$(dmsetup status era | cut -d' ' -f6)
scatter 20
dmsetup message era 0 checkpoint
scatter 20
short
dmsetup message era 0 take_metadata_snap
scatter 10
era_invalidate --metadata-snapshot --written-since "$since" /dev/mapper/meta >/run/blocks.xml
expect 0 '' lvmsync changes --json "era:/dev/mapper/era,since=$since,snap=held"
python3 - "$OUT" <<'END' || wrong 'not what era_invalidate says'
import json, re, sys
found = json.load(open(sys.argv[1]))
text = open("/run/blocks.xml").read()
blocks = {int(number) for number in re.findall(r'block="(\d+)"', text)}
for begin, end in re.findall(r'begin="(\d+)" end\s*=\s*"(\d+)"', text):
    blocks |= set(range(int(begin), int(end)))
mine = {at // 16384 for offset, length in found["extents"] for at in range(offset, offset + length, 16384)}
print(len(blocks), len(mine), file=sys.stderr)
sys.exit(mine != blocks or len(mine) < 30 or 2049 not in mine)
END
expect 8 "era.* was taken by another program.*; .* with 'lvmsync cleanup --release era'" \
    lvmsync sync era:/dev/mapper/era /dev/ubdc
dmsetup message era 0 drop_metadata_snap
fresh differ
expect 0 'is at era' lvmsync sync era:/dev/mapper/meta /dev/ubdc
fresh same
says '^synced [0-9.]+ (K|M)iB in' "$ERR"

it "does not copy a device that is in use"
block 7
exec 5<>/dev/mapper/era
expect 3 'era is open' lvmsync sync era:/dev/mapper/era /dev/ubdc
exec 5>&-

it "begins an era, and says which"
before=$(dmsetup status era | cut -d' ' -f6)
expect 0 '' lvmsync era checkpoint era
is "$(cat "$OUT")" "$((before + 1))" 'the era'

it "is removed by nobody who has no right to, and comes back with its history"
expect 0 '' dmsetup remove era
expect 0 'not active: start it' lvmsync era status era
dd if=/dev/mapper/meta of=/run/first bs=4k count=1 iflag=direct status=none
dd if=/dev/zero of=/dev/mapper/meta bs=4k count=1 oflag=direct status=none
expect 5 'is gone .its first block is zeros., and the kernel would begin a new history' lvmsync era start era
dd if=/run/first of=/dev/mapper/meta bs=4k count=1 oflag=direct status=none
expect 0 '' lvmsync era start era
scatter 10
expect 0 'is at era' lvmsync sync era:/dev/mapper/era /dev/ubdc
fresh same

# A run that is killed at each step of its metadata snapshot's life, and the next one.
mkdir /run/wrap
cat >/run/wrap/dmsetup <<'END'
#!/bin/bash
if [[ $1 == message && $4 == "${KILL_AT#* }" ]]; then
    if [[ $KILL_AT == after* ]]; then /sbin/dmsetup "$@"; fi
    kill -KILL "$PPID"
    exit 1
fi
exec /sbin/dmsetup "$@"
END
chmod +x /run/wrap/dmsetup
killed() { # WHEN: a run that is killed then
    expect 137 '' env PATH="/run/wrap:$PATH" KILL_AT="$1" lvmsync changes -q --json "era:/dev/mapper/era,since=1"
}
next() { expect "$1" "$2" lvmsync changes --json "era:/dev/mapper/era,since=1"; }
held() { dmsetup status era | cut -d' ' -f7; }

it "survives SIGKILL before its metadata snapshot is taken"
killed 'before take_metadata_snap'
is "$(held)" - 'the metadata snapshot'
next 0 ''

it "says whose a metadata snapshot may be, after SIGKILL when it was just taken"
killed 'after take_metadata_snap'
differ <(held) <(echo -)
next 8 "was taken perhaps by lvmsync process .*lvmsync cleanup --release era"
expect 0 '' lvmsync cleanup --release era
is "$(held)" - 'the metadata snapshot'

it "gives back what a run left that was killed before it gave back"
killed 'before drop_metadata_snap'
differ <(held) <(echo -)
next 0 'was taken by lvmsync process .* given back now'
is "$(held)" - 'the metadata snapshot'

it "survives SIGKILL after its metadata snapshot was given back"
killed 'after drop_metadata_snap'
is "$(held)" - 'the metadata snapshot'
next 0 ''

it "is written to when the power goes"
scatter 10
short
dmsetup status era | cut -d' ' -f6 >/var/lib/lvmsync/last-era
fresh differ
sync
