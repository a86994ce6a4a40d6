# shellcheck shell=bash
# Functions for scripts that run in the guest:  . "$LAB/sites.sh"

# make_vg NAME DEVICE...: a volume group with extents of 4 KiB, so that stores of any exact size can be had.
make_vg() {
    local name=$1 try
    shift
    for try in 1 2 3; do
        vgcreate -q -y -s 4k "$name" "$@" >/dev/null && return
        echo "make_vg: try $try failed" >&2
        sleep 0.5
    done
    return 1
}

# two_sites: this is "sitea"; makes "siteb" (or "backup"), reached by `ssh siteb` with strict checking of its host key.
# siteb has its own network (10.9.0.2; ours is 10.9.0.1), host name, sshd and /var/lib/lvmsync (which is
# /run/siteb/state here). All else is shared with us: kernel, /dev, files, LVM. So the far volume is just
# another volume. `ip link set vetha down` cuts the line; /run/siteb/sshd.log has sshd's words.
two_sites() {
    mkdir -p -m 700 /run/siteb/state
    ip netns add siteb
    ip link add vetha type veth peer name vethb netns siteb
    ip addr add 10.9.0.1/24 dev vetha
    ip link set vetha up
    ip -n siteb addr add 10.9.0.2/24 dev vethb
    ip -n siteb link set lo up
    ip -n siteb link set vethb up

    install -m 600 /run/lab/ssh/host_key /run/siteb/host_key
    install -m 600 /run/lab/ssh/id_ed25519 ~/.ssh/id_ed25519
    install -m 644 /run/lab/ssh/id_ed25519.pub ~/.ssh/id_ed25519.pub
    install -m 600 /run/lab/ssh/id_ed25519.pub /run/siteb/authorized_keys
    echo "siteb,backup,10.9.0.2 $(cut -d' ' -f1,2 /run/lab/ssh/host_key.pub)" >~/.ssh/known_hosts
    cat >~/.ssh/config <<END
Host siteb backup
    HostName 10.9.0.2
    User root
    IdentityFile ~/.ssh/id_ed25519
    IdentitiesOnly yes
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 20
END
    cat >/run/siteb/sshd_config <<END
ListenAddress 10.9.0.2
HostKey /run/siteb/host_key
AuthorizedKeysFile /run/siteb/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
LogLevel VERBOSE
PidFile /run/siteb/sshd.pid
Subsystem sftp internal-sftp
SetEnv "PATH=$PATH" DM_DISABLE_UDEV=1 LANG=C.UTF-8 "LAB=$LAB" SITE=siteb
END
    # ip netns exec has mounts of its own already, so the bind mount stays within siteb
    ip netns exec siteb unshare --uts bash -euc '
        hostname siteb
        mount --bind /run/siteb/state /var/lib/lvmsync
        exec /usr/sbin/sshd -f /run/siteb/sshd_config -E /run/siteb/sshd.log'
}

# at_siteb COMMAND...: run it in siteb as ssh would, without the cost of ssh (for checks and set-up).
at_siteb() {
    nsenter --target "$(cat /run/siteb/sshd.pid)" --net --uts --mount -- "$@"
}
