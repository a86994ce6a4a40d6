"""The options that more than one verb has; see `asked` for those that belong together."""

from __future__ import annotations

import math
from typing import Annotated

import typer

SourceWord = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="vg/lv, vg/snap, a device, or KIND:PATH; kinds: snapshot thin era dattobd blksnap compare full",
    ),
]
DataSource = Annotated[
    str | None,
    typer.Option("-r", "--data-source", metavar="PATH", help="read changed data here: a later snapshot, mostly"),
]
Frozen = Annotated[bool, typer.Option("--frozen", help="the origin is open, but nothing writes to it: take my word")]
Format = Annotated[int, typer.Option("--format", metavar="3|4", help="stream format; 3 is the original lvmsync's")]
Compress = Annotated[str | None, typer.Option("--compress", metavar="none|zstd[:LEVEL]", help="compress the stream")]
Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON object")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, and change nothing")]
State = Annotated[
    str | None,
    typer.Option("--state", metavar="DIR", help="state folder  [default: $LVMSYNC_STATE or /var/lib/lvmsync]"),
]
ProgressStyle = Annotated[str, typer.Option("--progress", metavar="auto|json|none", help="how progress is shown")]


def _require_number(value: float | None) -> float | None:
    """Refuse what Python takes for a number: nan and inf are in any range, or in none."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number that can be used")
    return value


Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="say nothing but warnings and errors")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="as the original; there is no more to say")]
Debug = Annotated[bool, typer.Option("-d", "--debug", help="show a traceback when something fails")]
NoUndo = Annotated[bool, typer.Option("--no-undo", help="save nothing: a broken stream leaves the target dirty")]
Create = Annotated[bool, typer.Option("--create", help="make the target, an image file of the source's size")]
Atomic = Annotated[bool, typer.Option("--atomic", help="stage and verify the whole stream before touching the target")]
AllowSmaller = Annotated[
    bool, typer.Option("--allow-smaller-target", help="drop what is past the target's end, and list it")
]
PoolLimit = Annotated[
    float,
    typer.Option(
        "--pool-limit", metavar="PERCENT", help="stop when the target's thin pool is that full; 100: do not look",
        min=1, max=100, callback=_require_number,
    ),
]  # fmt: skip
Minimal = Annotated[
    bool, typer.Option("--minimal", help="compare with the base, and take only the 4 KiB blocks that differ")
]
Audit = Annotated[
    float | None,
    typer.Option(
        "--audit",
        metavar="PERCENT",
        help="first compare so much of what counts as unchanged with the base",
        callback=_require_number,
    ),
]
BaseData = Annotated[
    str | None,
    typer.Option("--base-data", metavar="PATH", help="read the base here, for --minimal and --audit"),
]
IgnoreBase = Annotated[bool, typer.Option("--ignore-base", help="apply a snapback that starts from another point")]
Snapback = Annotated[
    str | None,
    typer.Option(
        "-b", "--snapback", metavar="FILE", help="keep what is overwritten, on the target's side, to go back to later"
    ),
]
Archive = Annotated[
    str | None,
    typer.Option(
        "--archive",
        metavar="ARCHIVE",
        help="keep what is overwritten in this archive, which is named as the target's side sees it",
    ),
]
Rsh = Annotated[
    str | None, typer.Option("-e", "--rsh", metavar="CMD", help="reach the host with this command, as in -e ssh")
]
Port = Annotated[int | None, typer.Option("-p", "--port", help="ssh port", min=1, max=65535)]
Identity = Annotated[str | None, typer.Option("-I", "--identity", metavar="FILE", help="private key for ssh")]
Sudo = Annotated[bool, typer.Option("--sudo", help="run lvmsync with sudo on the far side")]
RemoteCommand = Annotated[str, typer.Option("--remote-command", metavar="PATH", help="lvmsync on the far side")]
Bwlimit = Annotated[
    str | None,
    typer.Option("--bwlimit", metavar="RATE", help="bytes a second, as in 10M; or by the time: '08:00,1M 18:00,none'"),
]
BwlimitFile = Annotated[
    str | None,
    typer.Option("--bwlimit-file", metavar="FILE", help="the same from a file, which may change meanwhile"),
]
StallTimeout = Annotated[
    float,
    typer.Option(
        "--stall-timeout",
        metavar="SECONDS",
        help="give a line up on which no byte moves; 0: never",
        min=0,
        callback=_require_number,
    ),
]
Streams = Annotated[
    int, typer.Option("--streams", metavar="N", help="so many connections, where one is slow", min=1, max=16)
]
TargetWord = Annotated[str, typer.Argument(metavar="[HOST:]TARGET", help="where the copy is")]
ThinPool = Annotated[
    str | None, typer.Option("--thin-pool", metavar="VG/POOL", help="with --create: make a thin volume in it")
]
CowSize = Annotated[
    str | None, typer.Option("--cow-size", metavar="SIZE", help="store of the snapshots that are taken")
]
ChunkSize = Annotated[
    str | None, typer.Option("--chunk-size", metavar="SIZE", help="chunks of these snapshots: 4K to 512K")
]
ExtendCmd = Annotated[
    str | None,
    typer.Option("--extend-cmd", metavar="CMD", help="makes room in $LVMSYNC_VOLUME when that becomes full"),
]
TargetExtendCmd = Annotated[
    str | None,
    typer.Option("--target-extend-cmd", metavar="CMD", help="the same where the target is, and run there"),
]
ExtendAt = Annotated[
    float | None,
    typer.Option("--extend-at", metavar="PERCENT", help="when that is  [default: 70]", callback=_require_number),
]
Full = Annotated[bool, typer.Option("--full", help="copy the whole volume anew, whatever the copy holds")]
