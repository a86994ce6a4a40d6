"""Which words and options a key that is served may use: spellings of volumes that are allowed, and what is not."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import UsageError
from lvmsync.jobs.agent.policy import (
    RISKS,
    Place,
    Policy,
    find_place,
    parse_archive_pattern,
    parse_pattern,
    split_mapped,
)

VG = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
MAJOR = 4000  # no driver has it


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine: volumes, their links as LVM makes them, another mapped device, a disk, and files."""
    root = tmp_path.resolve() / "root"
    for folder in ("dev/mapper", "dev/disk/by-id", "srv/images", "srv/other", "home"):
        (root / folder).mkdir(parents=True)
    volumes = {0: "vg0-web", 1: "vg0-my--data", 2: "vg1-secret", 3: "vg0-web-cow", 4: "vg0-pool_tdata", 5: "a--b-c"}
    for minor, name in volumes.items():
        suffix = "-cow" if name.endswith("-cow") else ""
        make_device(root, minor, name, f"LVM-{VG}{VG[::-1][:31]}{minor}{suffix}")
    make_device(root, 8, "vg0-pool", f"LVM-{VG}{VG}-pool")  # lets everything in the pool be written
    make_device(root, 6, "crypt0", "CRYPT-LUKS2-abc-crypt0")
    os.mknod(root / "dev/sdb", stat.S_IFBLK | 0o600, os.makedev(MAJOR, 7))
    for name, leads_to in {
        "dev/vg0/web": "../dm-0",
        "dev/vg0/my-data": "../dm-1",
        "dev/vg1/secret": "../dm-2",
        "dev/vg0/evil": "../dm-2",
        "dev/vg0/text": "../../srv/images/a.img",
        "dev/disk/by-id/disk-one": "../../sdb",
        "srv/images/link.img": "../other/b.img",
        "srv/images/volume.img": "../../dev/dm-2",
        "srv/link": "images",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(leads_to)
    (root / "srv/images/a.img").write_bytes(b"a")
    (root / "srv/other/b.img").write_bytes(b"b")
    os.mkfifo(root / "srv/images/pipe.img")
    os.mknod(root / "srv/images/node.img", stat.S_IFBLK | 0o600, os.makedev(MAJOR, 7))
    return root


def make_device(root: Path, minor: int, name: str, uuid: str) -> None:
    os.mknod(root / f"dev/dm-{minor}", stat.S_IFBLK | 0o600, os.makedev(MAJOR, minor))
    (root / f"dev/mapper/{name}").symlink_to(f"../dm-{minor}")
    facts = root / f"sys/dev/block/{MAJOR}:{minor}/dm"
    facts.mkdir(parents=True)
    (facts / "name").write_text(f"{name}\n")
    (facts / "uuid").write_text(f"{uuid}\n")


SAME = {
    "vg0/web": ["vg0/web", "/dev/vg0/web", "/dev/mapper/vg0-web", "/dev/dm-0", "//dev///vg0/./web"],
    "vg0/my-data": ["vg0/my-data", "/dev/vg0/my-data", "/dev/mapper/vg0-my--data", "/dev/dm-1"],
    "vg1/secret": ["vg1/secret", "/dev/mapper/vg1-secret", "/dev/dm-2", "/dev/vg0/evil", "/srv/images/volume.img"],
    "vg0/new": ["vg0/new", "/dev/vg0/new", "/dev/mapper/vg0-new"],
    "/dev/sdb": ["/dev/sdb", "/dev/disk/by-id/disk-one"],
    "/srv/images/a.img": ["/srv/images/a.img", "/srv/link/a.img", "/srv//images/./a.img", "/dev/vg0/text"],
    "/srv/other/b.img": ["/srv/other/b.img", "/srv/images/link.img"],
}


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, words in SAME.items() for word in words])
def test_a_place_is_what_a_word_leads_to_however_it_is_spelt(root: Path, name: str, word: str) -> None:
    assert find_place(word, root).name == name


def test_a_volume_is_opened_by_the_name_that_was_matched(root: Path) -> None:
    assert find_place("/dev/dm-0", root) == Place("vg0/web", str(root / "dev/mapper/vg0-web"))
    assert find_place("/srv/images/link.img", root).path == str(root / "srv/other/b.img")


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["vg0/*"], [*SAME["vg0/web"], *SAME["vg0/my-data"], *SAME["vg0/new"]]),
        (["vg0/w?b"], SAME["vg0/web"]),
        (["vg0/[m-w]*"], [*SAME["vg0/web"], *SAME["vg0/my-data"]]),
        (["vg1/x", "vg?/secret"], ["vg1/secret"]),
        (["/dev/mapper/vg0-web"], SAME["vg0/web"]),
        (["/dev/disk/by-id/disk-one"], SAME["/dev/sdb"]),
        (["/dev/mapper/crypt0"], ["/dev/mapper/crypt0", "/dev/dm-6"]),
        (["/srv/images/*.img"], ["/srv/images/a.img", "/srv/images/new.img"]),
        (["/srv/link/*.img"], ["/srv/images/a.img", "/srv/link/new.img"]),
        (["/srv/*/b.img"], SAME["/srv/other/b.img"]),
    ],
)
def test_what_a_pattern_allows(root: Path, patterns: list[str], words: list[str]) -> None:
    policy = Policy(targets=tuple(map(parse_pattern, patterns)), sources=(), root=root)
    for word in words:
        policy.find_target(word)
        with pytest.raises(UsageError, match="no source that this server allows"):
            policy.find_source(word)


OUTSIDE = [
    "vg1/secret", "/dev/vg1/secret", "/dev/mapper/vg1-secret", "/dev/dm-2",
    "vg0/evil", "/dev/vg0/evil", "/dev/vg0/../vg1/secret", "/dev/vg0/../dm-2", "vg0/..", "../vg1/secret", "./x",
    "vg0/text", "vg0/pool_tdata", "/dev/mapper/vg0-pool_tdata", "/dev/dm-4",
    "vg0/lvol0_pmspare", "vg0/raid_rimage_3", "vg0/c_vorigin", "/dev/mapper/vg0-new_tmeta",
    "/dev/mapper/vg0-web-cow", "/dev/dm-3", "a-b/c", "/dev/mapper/a--b-c", "/dev/mapper/crypt0", "/dev/dm-6",
    "/dev/sdb", "/proc/self/fd/0", "/proc/self/exe", "/dev/stdin", "/", "/srv", "/srv/images",
    "/srv/images/link.img", "/srv/images/volume.img", "/srv/images/pipe.img", "/srv/images/node.img",
    "/srv/images/../other/b.img", "/srv/images/x/y.img", "/etc/passwd", "srv/images/a.img", "a.img",
    "", "vg0/web\0", "vg0/", "/dev/vg0/", "vg0/web/x", "host:vg0/web", "VG0/web", "vg0/web ", " vg0/web", "vg0/-x",
]  # fmt: skip


@pytest.mark.parametrize("word", OUTSIDE)
def test_nothing_else_is_allowed(root: Path, word: str) -> None:
    policy = Policy(targets=("vg0/*", "/srv/images/*.img"), sources=("vg0/*", "/srv/images/*.img"), root=root)
    for find in (policy.find_target, policy.find_source):
        with pytest.raises(UsageError):
            find(word)


@pytest.mark.parametrize("word", ["vg0/evil", "/dev/vg0/../vg0/web", "/dev/mapper/vg0-pool", "/dev/dm-8", "/dev/dm-3"])
def test_a_word_that_is_not_what_it_says_is_refused_wherever_it_leads(root: Path, word: str) -> None:
    with pytest.raises(UsageError, match=r"leads to another|without '\.\.'|LVM's own"):
        find_place(word, root)


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "vg0", "vg0/*/x", "vg0/", "/dev/*", "/dev/mapper/vg0-*", "/srv/../etc/*", "/srv//x", "./x", "/"],
)
def test_a_pattern_that_would_not_do_what_it_seems_to_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="pattern"):
        parse_pattern(pattern)


def test_an_agent_of_the_users_own_does_all_that_its_user_may(root: Path) -> None:
    policy = Policy(root=root)
    for word in ("vg1/secret", "/etc/passwd", "./x", "/dev/vg0/../vg1/secret"):
        assert policy.find_target(word).path == policy.find_source(word).path
    policy.require_options({"snapback": "/etc/x", "no_undo": True, "pool_limit": 100, "create": True})
    with pytest.raises(UsageError, match="neither VG/LV nor a path"):
        policy.find_target("relative")


def test_who_waits_for_a_push_lets_only_its_target_be_named() -> None:
    policy = Policy.of_word("./copy", risks=["no_undo"], files=["./back"])
    assert policy.find_target("./copy") == Place(str(Path("copy").absolute()), "./copy")
    for word in ("copy", str(Path("copy").absolute()), "./copy2", "vg0/web"):
        with pytest.raises(UsageError):
            policy.find_target(word)
    with pytest.raises(UsageError):
        policy.find_source("./copy")
    policy.require_options({"no_undo": True, "snapback": "./back"})
    for options in ({"ignore_base": True}, {"snapback": "./other"}, {"create": True}, {"pool_limit": 96}):
        with pytest.raises(UsageError):
            policy.require_options(options)


def test_who_waits_for_a_push_has_no_other_archive_written_than_its_users() -> None:
    Policy.of_word("./copy", archive="./past").require_options({"archive": "./past"})
    for policy in (Policy.of_word("./copy"), Policy.of_word("./copy", archive="/srv/*")):
        with pytest.raises(UsageError, match="no archive that this server allows"):
            policy.require_options({"archive": "/srv/past"})


@pytest.mark.parametrize(
    ("word", "is_allowed"),
    [
        ("/srv/past/web", True),
        ("//srv/past/web/", True),
        ("/srv/way/web", True),
        ("/srv/past", False),
        ("/srv/past/web/deep", False),
        ("/srv/past/../past/web", False),
        ("/srv/past/out", False),
        ("/srv/one", True),
        ("/srv/one2", False),
        ("srv/past/web", False),
        ("./web", False),
        ("s3://bucket/web", True),
        ("s3://bucket/web/", False),
        ("s3://bucket/other", False),
        ("ssh://host/srv/past/web", False),
        ("/srv/past/a\0b", False),
    ],
)
def test_an_archive_is_matched_by_what_its_path_leads_to(root: Path, word: str, is_allowed: bool) -> None:
    for name in ("past/web", "one", "other"):
        (root / "srv" / name).mkdir(parents=True, exist_ok=True)
    (root / "srv/way").symlink_to("past")
    (root / "srv/past/out").symlink_to("../other")
    patterns = tuple(map(parse_archive_pattern, ("/srv/past/*", "/srv/one", "s3://bucket/web")))
    policy = replace(SERVED, archives=patterns, root=root)
    if is_allowed:
        policy.require_options({"archive": word})
        return
    with pytest.raises(UsageError, match="no archive that this server allows"):
        policy.require_options({"archive": word})


@pytest.mark.parametrize("pattern", ["", "web", "./web", "/dev/x", "/srv/../x", "host:/srv", "s3://b", "ftp://x/y"])
def test_a_pattern_of_archives_that_names_no_place_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        parse_archive_pattern(pattern)


SERVED = Policy(
    targets=("vg0/*",), sources=(), may_create=False, may_snapshot=False, files=frozenset(), risks=frozenset(),
    archives=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapback": "/tmp/x"}, "where a file is put"),
        ({"archive": "/tmp/x"}, "no archive that this server allows"),
        ({"create": True}, "--allow-create"),
        ({"no_undo": True}, "--permit no-undo"),
        ({"ignore_base": True}, "--permit ignore-base"),
        ({"allow_smaller": True}, "--permit allow-smaller"),
        ({"pool_limit": 95.5}, "beyond 95 %"),
        ({"state": "/tmp/x"}, "no such option of a receive: 'state'"),
        ({"resumable": True, "undo": True}, "no such option"),
    ],
)
def test_options_that_are_not_permitted_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SERVED.require_options(options)


def test_options_that_are_off_or_harmless_pass() -> None:
    SERVED.require_options(
        {
            "snapback": None, "create": False, "no_undo": False, "resumable": True, "restart": True, "dry_run": True,
            "require_base": True, "atomic": True, "prepare": True, "group": "0123456789abcdef", "pool_limit": 90,
        }
    )  # fmt: skip


def test_a_target_that_holds_no_copy_yet_needs_no_undo() -> None:
    SERVED.require_options({"no_undo": True}, is_new=lambda: True)
    with pytest.raises(UsageError, match="ignore-base"):
        SERVED.require_options({"ignore_base": True}, is_new=lambda: True)


@pytest.mark.parametrize("risk", RISKS)
def test_each_risk_is_permitted_by_its_own_name(risk: str) -> None:
    policy = Policy(targets=(), risks=frozenset([risk]))
    for other in RISKS:
        if other == risk:
            policy.require_risk(other)
        else:
            with pytest.raises(UsageError, match="does not permit"):
                policy.require_risk(other)


@pytest.mark.parametrize(
    ("mapped", "volume"),
    [
        ("vg-lv", "vg/lv"), ("my--vg-lv", "my-vg/lv"), ("vg-my--lv", "vg/my-lv"), ("a----b-c", "a--b/c"),
        ("vg---lv", "vg-/lv"), ("vg-lv-cow", None), ("crypt0", None), ("-lv", None), ("vg-", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_the_device_mapper_are_read_as_lvm_writes_them(mapped: str, volume: str | None) -> None:
    assert split_mapped(mapped) == volume
