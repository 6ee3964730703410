#!/bin/sh
# The host boots the kernel to which /boot/vmlinuz leads; all of it as far as podd can see.
set -e
d=@FOLDER@
cp /proc/sys/kernel/random/uuid "$d/root/boot_id"
release=$(readlink "$d/root/boot/vmlinuz")
release=${release#vmlinuz-}
version=$(sed -n "s/^$release //p" "$d/installed" | tail -n 1)
echo "$release" >"$d/root/osrelease"
echo "#1 SMP PREEMPT_DYNAMIC Debian $version (2026-11-01)" >"$d/root/version"
# Pods mount /proc and /sys only if one can be seen as a whole (mount_too_revealing() in the kernel's fs/namespace.c).
mkdir -p "$d/root/proc" "$d/root/sys"
mount -t proc proc "$d/root/proc"
mount -t sysfs sysfs "$d/root/sys"
mount --bind "$d/root/boot_id" /proc/sys/kernel/random/boot_id
mount --bind "$d/root/osrelease" /proc/sys/kernel/osrelease
mount --bind "$d/root/version" /proc/sys/kernel/version
mount --bind "$d/root/os-release" /etc/os-release
mount --bind "$d/root/boot" /boot
mount --bind "$d/root/thermal" /sys/class/thermal
# Of tests: a fault that podd shall have after this boot.
[ ! -e "$d/fault" ] || { mkdir -p /run/podd; mv "$d/fault" /run/podd/fault; }
for tool in apt-cache apt-get dpkg dpkg-query dmesg; do
    mount --bind "$d/tool" "$(command -v $tool)"
done
