"""Where an archive lies: each form of the word, and each that is none."""

from __future__ import annotations

import pytest

from lvmsync.errors import UsageError
from lvmsync.names import Host
from lvmsync.places import BucketPlace, FolderPlace, Place, SshPlace, parse_place


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("folder", FolderPlace("folder")),
        ("/a/b:c", FolderPlace("/a/b:c")),
        ("./a:b", FolderPlace("./a:b")),
        ("ssh://host/a/b/", SshPlace(Host(None, "host"), None, "/a/b")),
        ("SSH://me@host:22/a", SshPlace(Host("me", "host"), 22, "/a")),
        ("ssh://[fe80::1%eth0]:2222/~/a", SshPlace(Host(None, "fe80::1%eth0"), 2222, "a")),
        ("ssh://host/~me/a", SshPlace(Host(None, "host"), None, "/~me/a")),
        ("s3://bucket", BucketPlace("bucket", "")),
        ("s3://my.bucket-1/a/b/", BucketPlace("my.bucket-1", "a/b")),
    ],
)
def test_each_form_is_read(word: str, place: Place) -> None:
    assert parse_place(word) == place
    if not isinstance(place, FolderPlace):
        assert parse_place(str(place)) == place


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("", "'' is no archive"),
        ("host:/a", "ssh://HOST/PATH; write ./host:/a"),
        ("ftp://host/a", "not ftp://"),
        ("ssh://", "is not ssh://"),
        ("ssh://a b/c", "is not ssh://"),
        ("ssh://host", "names no folder"),
        ("ssh://host/", "names no folder"),
        ("ssh://host/~", "names no folder"),
        ("ssh://host/~/", "names no folder"),
        ("ssh://host/a\0b", "names no folder"),
        ("ssh://host:/a", "nothing is no port"),
        ("ssh://host:0/a", "0 is no port"),
        ("ssh://host:70000/a", "70000 is no port"),
        ("ssh://-oProxyCommand=x/a", "cannot start with '-'"),
        ("ssh://-x@host/a", "cannot start with '-'"),
        ("s3://", "no name of a bucket"),
        ("s3://Bucket/a", "no name of a bucket"),
        ("s3://a..b/c", "no name of a bucket"),
        ("s3://bucket//a", "no prefix"),
        ("s3://bucket/a//b", "no prefix"),
        ("s3://bucket/a/../b", "no prefix"),
        ("s3://bucket/a b", "no prefix"),
        ("s3://bucket/" + "a" * 801, "no prefix"),
    ],
)
def test_each_that_is_none_is_refused(word: str, says: str) -> None:
    with pytest.raises(UsageError, match=r".*") as raised:
        parse_place(word)
    assert says in str(raised.value)
