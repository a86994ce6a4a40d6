"""How RBD images are named, and the snapshots of points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmsync.errors import UsageError
from lvmsync.images import RbdImage, RbdSnapshot, find_image, parse_image, point_id, snapshot_name
from lvmsync.names import parse_source, parse_target

NAME = st.text(st.characters(codec="utf-8", exclude_characters="/@"), min_size=1, max_size=12).filter(
    lambda text: text.isprintable() and not text.startswith("-")
)
IMAGES = st.builds(RbdImage, NAME, st.none() | NAME, NAME)


@given(IMAGES, NAME, st.none() | NAME)
def test_what_is_written_is_read(image: RbdImage, snap: str, base: str | None) -> None:
    assert find_image(str(image)) == parse_image(image.spec) == image
    source = RbdSnapshot(image, snap, base)
    assert parse_source(source.word) == source


def test_the_usual_words_are_read() -> None:
    assert parse_source("rbd:pool/image@two,base=one") == RbdSnapshot(RbdImage("pool", None, "image"), "two", "one")
    assert parse_source("rbd:p/n/i@s") == RbdSnapshot(RbdImage("p", "n", "i"), "s")
    assert find_image("vg/lv") is None
    assert find_image("host:rbd/image") is None


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("rbd:image@s", "write rbd:POOL/IMAGE"),
        ("rbd:a/b/c/d@s", "write rbd:POOL/IMAGE"),
        ("rbd:pool/image", "names no snapshot"),
        ("rbd:pool/image@", "an empty snapshot"),
        ("rbd:pool/image@s,base=", "an empty snapshot"),
        ("rbd:pool/image@s@t", "is no name of a snapshot"),
        ("rbd:pool//image@s", "is no name of a pool"),
        ("rbd:-pool/image@s", "is no name of a pool"),
        ("rbd:pool/im\nage@s", "is no name of a pool"),
        ("rbd:pool/image@-s", "is no name of a snapshot"),
        ("rbd:pool/image@s,size=3", "unknown key 'size'"),
    ],
)
def test_what_names_no_snapshot_is_refused(word: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_source(word)


def test_an_image_is_a_target_of_some_verbs_only() -> None:
    with pytest.raises(UsageError, match=r"leave '@\.\.\.' away"):
        find_image("rbd:pool/image@snap")
    with pytest.raises(UsageError, match="only 'sync' and 'archive restore' fill RBD images"):
        parse_target("rbd:pool/image")
    assert parse_target("root@rbd:vg/lv").name == "vg/lv"


@given(st.text(), st.text())
def test_no_two_points_have_snapshots_of_one_name(one: str, other: str) -> None:
    assert (snapshot_name(one) == snapshot_name(other)) == (one == other)
    assert parse_source(f"rbd:pool/image@{snapshot_name(one)}")
    assert point_id(snapshot_name(one)) in (one, None)


def test_a_snapshot_tells_its_point() -> None:
    assert snapshot_name("lv:AbCd-1") == "lvmsync-lv:AbCd-1"
    assert point_id("lvmsync-lv:AbCd-1") == "lv:AbCd-1"
    assert point_id("mine") is None
    digest = snapshot_name("a point with blanks")
    assert point_id(digest) is None
    assert snapshot_name(digest.removeprefix("lvmsync-")) != digest
