#!/bin/sh
# What podd asks of Debian's tools, on a host of the lab that has kernel packages of its own invention. Each call is noted.
# `kernel`: the one that apt has, `installed`: those that are installed, one a line: RELEASE VERSION.
d=@FOLDER@
name=$(basename "$0")
echo "$name $*" >>"$d/calls"
read -r release version <"$d/kernel"
read -r _ first <"$d/installed"
case "$name $*" in
    "dpkg --print-architecture") echo amd64 ;;
    "dpkg --audit") cat "$d/audit" 2>/dev/null || true ;;
    "dpkg-query "*"linux-image-[0-9]*") sed 's/^\(.*\) \(.*\)$/linux-image-\1 \2 ii/' "$d/installed" ;;
    "dpkg-query "*) echo "linux-image-cloud-amd64 ii linux-signed-amd64" ;;
    "apt-cache "*"policy "*)
        last=$(tail -n 1 "$d/installed")
        cat <<EOF
linux-image-cloud-amd64:
  Installed: ${last#* }
  Candidate: $version
  Version table:
     $version 500
        500 http://mirror.example bookworm-security/main amd64 Packages
     $first 100
        100 /var/lib/dpkg/status
EOF
        ;;
    "apt-cache "*"show "*) echo "Depends: linux-image-$release (= $version)" ;;
    "apt-get "*indextargets*)
        echo "http://mirror.example|bookworm-security|main|Debian|Debian-Security|stable-security|bookworm-security|$d/lists/mirror_dists_bookworm-security_main_binary-amd64_Packages"
        ;;
    "apt-get "*" update" | "apt-get "*--download-only*)
        [ ! -e "$d/locked" ] || { echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt)" >&2; exit 100; }
        [ ! -e "$d/mirror-down" ] || { echo "E: Failed to fetch http://mirror.example" >&2; exit 100; }
        ;;
    "apt-get "*" install "*linux-image-cloud-amd64*)
        # As dpkg, it takes a moment, and can be told twice.
        sleep 0.1
        grep -qx "$release $version" "$d/installed" || echo "$release $version" >>"$d/installed"
        [ -e "$d/pinned" ] || ln -sfn "vmlinuz-$release" "$d/root/boot/vmlinuz"
        ;;
    "dmesg "*) cat "$d/dmesg" 2>/dev/null || true ;;
    *) echo "E: $name does not know: $*" >&2; exit 100 ;;
esac
