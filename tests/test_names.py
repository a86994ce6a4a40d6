"""The words of the command line: what each means, and what is refused with which words."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import UsageError
from lvmsync.names import (
    KINDS,
    MAX_ERA,
    MAX_SEQID,
    MAX_SNAPSHOT_NUMBER,
    MAX_THIN_ID,
    BlockMap,
    Comparison,
    CowFile,
    EraMetadata,
    Host,
    SnapshotStore,
    SourceName,
    TargetName,
    ThinDevice,
    Volume,
    WholeDevice,
    parse_size,
    parse_source,
    parse_target,
    parse_volume,
)

GENERATION = "3021f85e-b958-4dd4-aea2-fa580d72c86f"
PATHS = st.text(st.characters(exclude_characters="\0"), max_size=12).map(lambda text: f"/{text}")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("512B", 512),
        ("4k", 4096),
        ("64M", 64 << 20),
        ("1GiB", 1 << 30),
        ("1gib", 1 << 30),
        ("2T", 2 << 40),
        ("3P", 3 << 50),
        ("7E", 7 << 60),
        ("007", 7),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_power_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "1.5G", "-1", "+1", "1 G", "1GB", "1KB", "0x10", "1_000", "1Gi", "1iB", "1G\n", "١", "4\u212a"],
)
def test_what_is_not_a_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)not a size: .*64M or 1GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8E", "9223372036854775808", "9" * 40, "0" * 5000 + "1", "99999999999999999999E"])
def test_a_size_that_no_device_has_is_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="out of range"):
        parse_size(text)


@pytest.mark.parametrize("word", ["vg/snap", "vg-0/lv.1_+", ".vg/lv", "vg/lv"])
def test_one_slash_is_a_volume_group_and_a_volume(word: str) -> None:
    volume = parse_volume(word)
    assert volume == Volume(word)
    assert volume.is_lvm_name
    assert volume.path == f"/dev/{word}"


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("vg/lv", "vg/lv"),
        ("/dev/vg/lv", "vg/lv"),
        ("/dev/mapper/vg-lv", "vg/lv"),
        ("/dev/mapper/my--vg-a--b-", None),
        ("/dev/mapper/my--vg-a----b", "my-vg/a--b"),
        ("/dev/mapper/control", None),
        ("/dev/mapper/vg-lv-real", None),
        ("/dev/disk/by-id", None),
        ("/dev/disk/by-id/dm-name-vg-lv", None),
        ("/dev/vda", None),
        ("./vg/lv", None),
    ],
)
def test_a_volume_is_known_by_each_name_that_lvm_gives_it(word: str, name: str | None) -> None:
    assert Volume(word).lvm_name == name


@pytest.mark.parametrize("word", ["/dev/vg/snap", "./image", "../image", "/", "./a/b", "/a b\n", "./vg/lv:0"])
def test_a_path_is_taken_as_it_is(word: str) -> None:
    volume = parse_volume(word)
    assert not volume.is_lvm_name
    assert volume.path == word


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "an empty name"),
        ("/dev/\0", "NUL"),
        ("image", r"neither VG/LV nor a path: .* as in \./image"),
        ("a/b/c", "neither VG/LV nor a path"),
        (".", "neither VG/LV nor a path"),
        ("-vg/lv", "'-vg' is not a name that LVM allows"),
        ("vg/-lv", "'-lv' is not a name that LVM allows"),
        ("vg/", "'' is not a name"),
        ("vg/..", r"'\.\.' is not a name"),
        ("vg/lv:1", "'lv:1' is not a name"),
        ("vg/lv\n", "is not a name"),
        ("vg/l v", "is not a name"),
        ("vg/lüneburg", "is not a name"),
    ],
)
def test_what_is_no_volume_is_refused_with_a_way_on(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_volume(word)


@pytest.mark.parametrize("word", ["vg/snap", "/dev/mapper/vg-snap", "./host:x", "/a:b", "../c:d"])
def test_a_source_without_a_kind_is_a_volume(word: str) -> None:
    assert parse_source(word) == Volume(word)


@pytest.mark.parametrize(
    ("word", "store", "origin", "size"),
    [
        ("snapshot:/cow,origin=/o", "/cow", "/o", None),
        ("snapshot:vg/cow,origin=vg/o", "vg/cow", "vg/o", None),
        ("snapshot:./cow,size=1M,origin=./o", "./cow", "./o", 1 << 20),
        ("snapshot:/a,,b,origin=/c,,origin=d", "/a,b", "/c,origin=d", None),
        ("snapshot:/a,b,origin=/o,x", "/a,b", "/o,x", None),
        ("snapshot:/a,,,origin=/o,,", "/a,", "/o,", None),
        ("snapshot:/a=b,origin=/o=p", "/a=b", "/o=p", None),
        ("snapshot:/a:b,origin=/c:d", "/a:b", "/c:d", None),
    ],
)
def test_a_store_is_named_with_its_keys_and_a_literal_comma_is_doubled(
    word: str, store: str, origin: str, size: int | None
) -> None:
    assert parse_source(word) == SnapshotStore(Volume(store), Volume(origin), size)


@given(PATHS, PATHS, st.none() | st.integers(1, (1 << 63) - 1))
def test_any_path_can_be_written_as_a_store_and_an_origin(store: str, origin: str, size: int | None) -> None:
    keys = f",origin={origin.replace(',', ',,')}" + ("" if size is None else f",size={size}")
    found = parse_source(f"snapshot:{store.replace(',', ',,')}{keys}")
    assert found == SnapshotStore(Volume(store), Volume(origin), size)


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("thin:/meta,id=1", ThinDevice(Volume("/meta"), 1)),
        ("thin:vg/pool_tmeta,id=4,base=3", ThinDevice(Volume("vg/pool_tmeta"), 4, 3)),
        ("thin:./m,base=0,id=0", ThinDevice(Volume("./m"), 0, 0)),
        ("thin:/m,id=16777215,base=16777215", ThinDevice(Volume("/m"), MAX_THIN_ID, MAX_THIN_ID)),
        ("thin:/m,id=007,size=1G,snap=held", ThinDevice(Volume("/m"), 7, None, 1 << 30, "held")),
        ("thin:/m,,id=1,id=2,snap=live", ThinDevice(Volume("/m,id=1"), 2, snap="live")),
        ("era:/meta", EraMetadata(Volume("/meta"))),
        ("era:/meta,since=0", EraMetadata(Volume("/meta"), 0)),
        ("era:vg/meta,since=4294967295,size=4k,snap=held", EraMetadata(Volume("vg/meta"), MAX_ERA, 4096, "held")),
        ("dattobd:/cow", CowFile(Volume("/cow"))),
        ("dattobd:./c,seqid=2,uuid=" + "aB" * 16, CowFile(Volume("./c"), None, "ab" * 16, 2)),
        ("dattobd:/c,size=4K,seqid=18446744073709551615", CowFile(Volume("/c"), 4096, None, MAX_SEQID)),
        ("blksnap:/dev/vda", BlockMap(Volume("/dev/vda"))),
        ("blksnap:vg/lv,since=255", BlockMap(Volume("vg/lv"), MAX_SNAPSHOT_NUMBER)),
        ("blksnap:./m,size=1M,block-size=64K,since=0,number=3", BlockMap(Volume("./m"), 0, 65536, 3, None, 1 << 20)),
        ("blksnap:/m,generation=" + GENERATION.upper(), BlockMap(Volume("/m"), generation=GENERATION)),
        ("compare:/new", Comparison(Volume("/new"))),
        ("compare:./new,old=vg/old,size=8", Comparison(Volume("./new"), Volume("vg/old"), 8)),
        ("compare:/new,old=/a,,b", Comparison(Volume("/new"), Volume("/a,b"))),
        ("full:/dev/x", WholeDevice(Volume("/dev/x"))),
        ("full:vg/lv,size=2M", WholeDevice(Volume("vg/lv"), 2 << 20)),
    ],
)
def test_every_kind_is_read_with_its_keys_in_any_order(word: str, source: SourceName) -> None:
    assert parse_source(word) == source


NUMBERS = st.none() | st.integers(0, MAX_THIN_ID)
SIZES = st.none() | st.integers(1, (1 << 63) - 1)
VOLUMES = PATHS.map(Volume)
SEQIDS = st.none() | st.integers(0, MAX_SEQID)
BYTES = st.none() | st.integers(0, MAX_SNAPSHOT_NUMBER)
SNAPS = st.sampled_from([None, "held", "live"])


@given(
    st.builds(SnapshotStore, VOLUMES, VOLUMES, SIZES)
    | st.builds(ThinDevice, VOLUMES, st.integers(0, MAX_THIN_ID), NUMBERS, SIZES, SNAPS)
    | st.builds(EraMetadata, VOLUMES, st.none() | st.integers(0, MAX_ERA), SIZES, SNAPS)
    | st.builds(CowFile, VOLUMES, SIZES, st.none() | st.text("0123456789abcdef", min_size=32, max_size=32), SEQIDS)
    | st.builds(
        BlockMap,
        VOLUMES,
        BYTES,
        st.none() | st.integers(9, 62).map(lambda bits: 1 << bits),
        BYTES,
        st.none() | st.uuids().map(str),
        SIZES,
    )
    | st.builds(Comparison, VOLUMES, st.none() | VOLUMES, SIZES)
    | st.builds(WholeDevice, VOLUMES, SIZES)
)
def test_every_source_is_named_again_as_the_command_line_would(
    source: SnapshotStore | ThinDevice | EraMetadata | CowFile | BlockMap | Comparison | WholeDevice,
) -> None:
    assert parse_source(source.word) == source


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("snapshot:/cow", r"names no origin: write snapshot:COW,origin=PATH"),
        ("snapshot:/cow,origin=", "an empty name"),
        ("snapshot:,origin=/o", "an empty name"),
        ("snapshot:cow,origin=/o", "neither VG/LV nor a path"),
        ("snapshot:/cow,origin=o", "neither VG/LV nor a path"),
        ("snapshot:/cow,origin=/o,size=big", "not a size: 'big'"),
        ("snapshot:/cow,origin=/o,base=3", "unknown key 'base' .* known are: origin, size"),
        ("snapshot:/cow,origin=/o,origin=/p", "'origin' is given twice"),
        ("dattobd:x", "neither VG/LV nor a path"),
        ("dattobd:/x,since=1", "unknown key 'since' .* known are: size, uuid, seqid"),
        ("dattobd:/x,uuid=abc", "uuid=abc is out of range: 32 hex digits"),
        ("dattobd:/x,seqid=-1", "seqid=-1 is out of range: a number from 0 to 18446744073709551615"),
        ("dattobd:/x,seqid=18446744073709551616", "seqid=18446744073709551616 is out of range"),
        ("blksnap:/x,base=1", "unknown key 'base' .* known are: since, block-size, number, generation, size"),
        ("blksnap:/x,since=256", "since=256 is out of range: a number from 0 to 255"),
        ("blksnap:/x,number=256", "number=256 is out of range: a number from 0 to 255"),
        ("blksnap:/x,generation=1234", "generation=1234 is out of range: an id"),
        ("blksnap:/x,block-size=256", "block-size=256 is out of range: a power of 2, and 512 at the least"),
        ("blksnap:/x,block-size=3000", "block-size=3000 is out of range: a power of 2"),
        ("blksnap:/x,block-size=big", "not a size: 'big'"),
        ("thin:/meta", "names no thin device: write thin:METADATA,id=N,base=M"),
        ("thin:/meta,base=1", "names no thin device"),
        ("thin:,id=1", "an empty name"),
        ("thin:meta,id=1", "neither VG/LV nor a path"),
        ("thin:/meta,id=", "id= is out of range: a number from 0 to 16777215"),
        ("thin:/meta,id=16777216", "id=16777216 is out of range"),
        ("thin:/meta,id=-1", "id=-1 is out of range"),
        ("thin:/meta,id=+1", "id=.1 is out of range"),
        ("thin:/meta,id=0x1", "id=0x1 is out of range"),
        ("thin:/meta,id=1 ", "id=1  is out of range"),
        ("thin:/meta,id=\u0661", "is out of range"),
        ("thin:/meta,id=\u00b2", "is out of range"),
        ("thin:/meta,id=" + "0" * 5000, "is out of range"),
        ("thin:/meta,id=1,base=x", "base=x is out of range: a number from 0 to 16777215"),
        ("thin:/meta,id=1,id=2", "'id' is given twice"),
        ("thin:/meta,id=1,snap=mine", r"snap=mine is out of range: held \(.*\) or live \("),
        ("thin:/meta,id=1,snap=", "snap= is out of range"),
        ("thin:/meta,id=1,size=8E", "out of range: a device has less than 8 EiB"),
        ("thin:/meta,id=1,since=2", "unknown key 'since' in a 'thin:' source; known are: id, base, size, snap"),
        ("era:/meta,since=4294967296", "since=4294967296 is out of range: a number from 0 to 4294967295"),
        ("era:/meta,since=-1", "since=-1 is out of range"),
        ("era:/meta,id=1", "unknown key 'id' in a 'era:' source; known are: since, size, snap"),
        ("era:/meta,snap=Held", "snap=Held is out of range"),
        ("compare:/new,old=", "an empty name"),
        ("compare:/new,old=old", "neither VG/LV nor a path"),
        ("compare:/new,snap=held", "unknown key 'snap' in a 'compare:' source; known are: old, size"),
        ("full:", "an empty name"),
        ("full:/dev/x,old=/y", "unknown key 'old' in a 'full:' source; known are: size"),
        ("full:/dev/x,size=1,size=2", "'size' is given twice"),
        ("host:vg/snap", "a source on another machine: run lvmsync there"),
        ("user@snapshot:/x", "a source on another machine"),
        ("[::1]:vg/snap", "a source on another machine"),
        ("", "an empty name"),
        ("snap", "neither VG/LV nor a path"),
        ("vg/lv:x", "is not a name that LVM allows"),
    ],
)
def test_a_bad_source_is_refused_with_what_would_be_right(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_source(word)


@pytest.mark.parametrize(
    ("word", "host", "name"),
    [
        ("vg/lv", None, "vg/lv"),
        ("/dev/vg/lv", None, "/dev/vg/lv"),
        ("./a:b", None, "./a:b"),
        ("../a:b", None, "../a:b"),
        ("host:vg/lv", Host(None, "host"), "vg/lv"),
        ("host:/dev/x:y", Host(None, "host"), "/dev/x:y"),
        ("me@host.example:./image", Host("me", "host.example"), "./image"),
        ("[fe80::1%eth0]:vg/lv", Host(None, "fe80::1%eth0"), "vg/lv"),
        ("root@[::1]:/dev/x", Host("root", "::1"), "/dev/x"),
        ("me@snapshot:/dev/x", Host("me", "snapshot"), "/dev/x"),
        ("192.0.2.1:x", Host(None, "192.0.2.1"), "x"),
    ],
)
def test_a_target_is_a_volume_here_or_a_name_on_a_host(word: str, host: Host | None, name: str) -> None:
    assert parse_target(word) == TargetName(host, name)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "an empty name"),
        ("image", "neither VG/LV nor a path"),
        ("host:", "names a host but no volume"),
        (":vg/lv", "is not a name"),
        ("-oProxyCommand=x:vg/lv", "cannot start with '-'"),
        ("-x@host:vg/lv", "cannot start with '-'"),
        ("a@-host:vg/lv", "cannot start with '-'"),
        ("/dev/\0", "NUL"),
    ],
)
def test_a_bad_target_is_refused(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_target(word)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_source_is_no_host_unless_a_user_is_named(kind: str) -> None:
    with pytest.raises(UsageError, match=rf"a source, not a target; a host called '{kind}' is written USER@{kind}:"):
        parse_target(f"{kind}:/dev/x")
    assert parse_target(f"me@{kind}:/dev/x").host == Host("me", kind)


def test_names_are_written_as_the_user_wrote_them() -> None:
    assert str(parse_target("me@host:vg/lv")) == "me@host:vg/lv"
    assert str(parse_target("host:vg/lv")) == "host:vg/lv"
    assert str(parse_target("vg/lv")) == "vg/lv"


WORDS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [*KINDS, *":/,=@[].-9K", ",,", "vg", "/m", "origin=", "size=", "id=", "base=", "since=", "snap=", "old="]
        )
    ).map("".join),
)


@given(WORDS)
def test_whatever_the_word_nothing_but_usage_errors_comes_out(word: str) -> None:
    for parse in (parse_size, parse_volume, parse_source, parse_target):
        with contextlib.suppress(UsageError):
            parse(word)


def test_a_store_is_named_again_as_the_command_line_would() -> None:
    for word in ("snapshot:./a,origin=./b", "snapshot:./a,,b,origin=/c,,size=4,size=4096"):
        name = parse_source(word)
        assert isinstance(name, SnapshotStore)
        assert name.word == word
        assert parse_source(name.word) == name


@pytest.mark.parametrize("word", ["full:/x,size=0", "thin:/x,id=1,size=0K", "snapshot:/x,origin=/y,size=0"])
def test_a_device_of_no_size_is_out_of_range(word: str) -> None:
    with pytest.raises(UsageError, match="size=0 is out of range"):
        parse_source(word)
