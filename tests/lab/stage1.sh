#!/bin/bash
# Process 1 of the guest: makes the host's read-only root into a machine that tests can write to,
# runs the script it was given, hands back its exit status, and switches off.
# From tests/lab/guest.py: LAB_CONTROL (on the kernel's command line) is a folder of the host with
# script, modules (paths in loading order), env (assignments for bash), ssh/ (keys) and share (a link).
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

stop() { # No sync here: it would wait for ever on a suspended device.
    echo 0 >/proc/sys/kernel/printk
    exec busybox poweroff -f -n
}

must() {
    "$@" && return
    echo "stage1: failed: $*" # no status file: the host reports that none came back
    stop
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
must mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lab /run/share /run/lock /run/lvm /run/sshd /run/over /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sfn /proc/self/fd /dev/fd # bash's <(...) needs it
rm -f /dev/[pt]ty[a-ep-z][0-9a-f] /dev/tty[0-9S]* # 600 terminals, which each run of LVM would look at
must mount -t hostfs none /run/lab -o "$LAB_CONTROL"
must mount -t hostfs none /run/share -o "$LAB_CONTROL/share"

while read -r module; do
    must busybox insmod "$module"
done </run/lab/modules

for folder in etc tmp root var; do
    if ! ls "/$folder" >/dev/null 2>&1; then # /root, when it is not root who runs the guest
        must mount -t tmpfs -o mode=700 tmpfs "/$folder"
        continue
    fi
    mkdir -p "/run/over/$folder/upper" "/run/over/$folder/work"
    chmod --reference="/$folder" "/run/over/$folder/upper"
    must mount -t overlay overlay "/$folder" \
        -o "lowerdir=/$folder,upperdir=/run/over/$folder/upper,workdir=/run/over/$folder/work"
done
# Nothing of the host's own set-up may matter: ssh keys and settings, start-up files (a .bashrc
# sets PATH for ssh's commands), ledger, root's password. The overlays keep this from the host.
mkdir -p -m 700 /root/.ssh
mkdir -p /var/lib/lvmsync
mount -t tmpfs -o mode=700 tmpfs /root/.ssh
mount -t tmpfs -o mode=700 tmpfs /var/lib/lvmsync
rm -f /etc/shadow /etc/bash.bashrc /root/.bashrc /root/.profile /root/.bash_profile /root/.bash_login
echo 'root:*:1:0:99999:7:::' >/etc/shadow # a locked root ("!") may not log in, not even by key
printf '127.0.0.1 localhost\n10.9.0.1 sitea\n10.9.0.2 siteb\n' >/etc/hosts
hostname sitea
ip link set lo up

thin_check=$(command -v thin_check)
mkdir -p /etc/lvm
# No memory reserved for the time of a suspension: to touch it is a quarter of what LVM costs here.
cat >/etc/lvm/lvmlocal.conf <<END
activation { udev_sync=0 udev_rules=0 monitoring=0 reserved_memory=0 reserved_stack=64 }
devices { use_devicesfile=0 obtain_device_list_from_udev=0 types=[ "ubd", 16 ] external_device_info_source="none" }
global { thin_check_executable="$thin_check" use_lvmpolld=0 }
END

. /run/lab/env
cd "$LAB_ROOT" || stop
# Through a pipe, so that programs see what they see in cron and CI: no terminal.
exec 4> >(exec cat)
cat_pid=$!
bash -euo pipefail /run/lab/script </dev/null >&4 2>&1 4>&-
status=$?
exec 4>&-
echo "$status" >/run/lab/status.new && mv /run/lab/status.new /run/lab/status

sync & # up to 20 s, see stop; the console's last words get 1 s (a daemon may hold the pipe)
sync_pid=$!
for ((i = 0; i < 400; i++)); do
    if kill -0 "$sync_pid" 2>/dev/null || { ((i < 20)) && kill -0 "$cat_pid" 2>/dev/null; }; then
        busybox usleep 50000
    else
        break
    fi
done
stop
