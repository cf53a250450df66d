#!/bin/bash
# Tries file systems that this computer's kernel does not have (file_systems.py), under a kernel that runs as a program:
#
#   bash benchmarks/reliability/user_mode_linux.sh PYTHON     # Debian: user-mode-linux kmod nfs-kernel-server quota
#
# Its root is this computer's. Everything takes about ten times as long.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ $$ != 1 ]]; then
    init=$PWD/benchmarks/reliability/user_mode_linux.sh
    exec linux mem=3G rootfstype=hostfs root=/dev/root rw init="$init" PYTHON="$1" con=null con0=null,fd:1 quiet
fi

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH=$PWD OMP_NUM_THREADS=1
trap 'poweroff -f' EXIT
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for folder in /tmp /run /var/lib/nfs; do mount -t tmpfs none $folder; done
mkdir -p /run/rpcbind /run/lock /tmp/root/lib /var/lib/nfs/{sm,rpc_pipefs,v4recovery}
touch /var/lib/nfs/{etab,rmtab}
ip link set lo up
ln -s /usr/lib/uml/modules /tmp/root/lib/modules
modprobe -d /tmp/root -a loop vfat nls_cp437 nls_iso8859-1 nls_ascii quota_v2 nfsd nfsv3
mount -t nfsd nfsd /proc/fs/nfsd
rpcbind -w && rpc.nfsd 1 && rpc.mountd
names=("FAT" "FAT, no room" "FAT, room for half" "ext4, quota reached" "ext4, quota for half" "NFS" "NFS, export withdrawn")
"$PYTHON" -W ignore -m benchmarks.reliability.file_systems --only "${names[@]}"
