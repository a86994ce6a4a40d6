"""The kernel's list of mounts: made up, and the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvmsync.errors import DeviceError
from lvmsync.system.mounts import Mount, device_of_file, find_mounts, find_mounts_above, list_mounts

LIST = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 254:16 /sub /srv/part rw - xfs /dev/vdb rw
25 22 254:16 / /srv/with\040space rw shared:2 master:3 - xfs /dev/vdb rw,noquota
26 22 254:16 / /again rw - xfs /dev/vdb rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(LIST)
    return path


def test_a_device_is_found_where_it_is_mounted_whole(mountinfo: Path) -> None:
    assert [one.point for one in find_mounts((254, 16), mountinfo)] == ["/srv/with space", "/again"]
    assert find_mounts((254, 0), mountinfo) == [Mount((254, 0), "/", "/", "ext4", "/dev/vda")]
    assert find_mounts((9, 9), mountinfo) == []
    assert list_mounts(mountinfo)[2] == Mount((254, 16), "/sub", "/srv/part", "xfs", "/dev/vdb")


@pytest.mark.parametrize("line", ["", "22 1 254:0 / / rw", "22 1 x:0 / / rw - ext4 /dev/vda rw", "1 2 - ext4 x"])
def test_a_list_that_is_not_understood_is_no_list(mountinfo: Path, line: str) -> None:
    mountinfo.write_text(f"{LIST}{line}\n")
    with pytest.raises(DeviceError, match="a line that is not understood"):
        list_mounts(mountinfo)
    with pytest.raises(DeviceError, match="cannot read"):
        list_mounts(mountinfo.parent / "none")


def test_the_machines_own_list_knows_the_device_of_a_file() -> None:
    points = {one.point: one.number for one in list_mounts()}
    assert points["/proc"] == device_of_file("/proc/self/mountinfo")
    state = Path("/proc").stat()
    assert device_of_file("/proc") == (os.major(state.st_dev), os.minor(state.st_dev))
    with pytest.raises(DeviceError, match="cannot look at /no/such/file"):
        device_of_file("/no/such/file")


def test_mounts_above_a_device_are_found_through_what_lies_on_it(mountinfo: Path, tmp_path: Path) -> None:
    for below, above in (("253:7", "254:16"), ("253:7", "253:8"), ("253:8", "254:0"), ("254:0", "253:7")):  # a circle
        holder = tmp_path / "blocks" / below / "holders" / above
        holder.mkdir(parents=True)
        (holder / "dev").write_text(f"{above}\n")

    points = [mount.point for mount in find_mounts_above((253, 7), mountinfo, tmp_path / "blocks")]

    assert points == ["/", "/srv/part", "/srv/with space", "/again"]
    assert find_mounts_above((253, 9), mountinfo, tmp_path / "blocks") == []
    own = [mount.point for mount in list_mounts(mountinfo) if mount.number == (254, 0)]
    deeper = find_mounts_above((254, 0), mountinfo, tmp_path / "blocks", with_own=False)
    assert own
    assert [mount.point for mount in deeper] == [point for point in points if point not in own]
