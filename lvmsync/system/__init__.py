"""The machine: devices, LVM, the device mapper, the state folder. Blocking calls, errors made ours."""
