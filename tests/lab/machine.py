"""Runs in the guest: what lvmsync changes on a machine, part by part, in one process."""

from __future__ import annotations

import gc

from tests.lab import machine_dm, machine_lvm, machine_still
from tests.lab.in_guest import sh

PARTS = (machine_dm, machine_lvm, machine_still)
NAMES = [name for part in PARTS for name in part.case.names]

if __name__ == "__main__":
    gc.freeze()  # else a fork that collects copies every page
    for part in PARTS:
        part.prepare()
        part.case.run()
        if part is machine_dm:
            sh("dmsetup resume still; dmsetup remove era two odd:name#+-.=@_ long empty still")
        if part is not PARTS[-1]:
            sh("vgremove -qq -ff -y vg")
