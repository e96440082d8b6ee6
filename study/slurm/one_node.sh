#!/bin/bash
# A real Slurm of one node on this machine, for the test of study/profiles/slurm:
#
#   study/slurm/one_node.sh up      # as root, on Debian or Ubuntu: installs and starts it (30 s)
#   study/slurm/one_node.sh down    # stops it and removes what "up" installed and wrote
#
# Two CPUs, and two GPUs that are not there (/dev/null and /dev/zero in their place): enough for a
# run that computes on the CPU to be given one. It listens on 127.0.0.1 only. A Slurm or a munge that
# is here already is left alone, and "up" refuses.
set -euo pipefail
STATE=/var/lib/patlib-one-node # what "up" did, for "down" to undo
PACKAGES=(slurm-wlm munge)

up() {
    [ "$(id -u)" = 0 ] || refuse "it takes root to install and start Slurm"
    command -v apt-get >/dev/null || refuse "there is no apt-get here"
    [ ! -e "$STATE" ] || refuse "it is up, or an earlier \"up\" failed: \"$0 down\" first"
    ! command -v slurmctld >/dev/null && ! command -v munged >/dev/null ||
        refuse "there is a Slurm or a munge here already"

    mkdir -p "$STATE"
    trap undo_if_failed EXIT
    # No package starts a daemon by itself.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        touch "$STATE/policy"
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
    fi
    installed >"$STATE/before"
    install_packages || refuse "the packages ${PACKAGES[*]} cannot be installed"
    installed | comm -13 "$STATE/before" - >"$STATE/new"

    configure
    install -d -o munge -g munge -m 0755 /run/munge
    runuser -u munge -- /usr/sbin/munged
    slurmctld
    slurmd
    for _ in $(seq 60); do
        [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && return
        sleep 0.5
    done
    tail -n 5 "$STATE"/log/* >&2
    refuse "the node does not become idle"
}

undo_if_failed() {
    local code=$?
    [ ! -e "$STATE/policy" ] || rm -f "$STATE/policy" /usr/sbin/policy-rc.d
    [ "$code" = 0 ] || down >/dev/null 2>&1
    exit "$code"
}

installed() { dpkg-query -f '${Package}\n' -W | sort; }

install_packages() {
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends)
    "${get[@]}" "${PACKAGES[@]}" || { apt-get update -qq && "${get[@]}" "${PACKAGES[@]}"; }
}

configure() {
    local host
    host=$(hostname -s)
    install -d -o slurm -g slurm "$STATE/ctld" "$STATE/log"
    install -d "$STATE/d" /etc/slurm
    cat >/etc/slurm/slurm.conf <<-END
		ClusterName=one
		SlurmctldHost=$host(127.0.0.1)
		CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
		AuthType=auth/munge
		SlurmUser=slurm
		StateSaveLocation=$STATE/ctld
		SlurmdSpoolDir=$STATE/d
		SlurmctldPidFile=$STATE/slurmctld.pid
		SlurmdPidFile=$STATE/slurmd.pid
		SlurmctldLogFile=$STATE/log/slurmctld
		SlurmdLogFile=$STATE/log/slurmd
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core_Memory
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		JobAcctGatherType=jobacct_gather/none
		AccountingStorageType=accounting_storage/none
		SwitchType=switch/none
		MpiDefault=none
		ReturnToService=2
		MinJobAge=300
		GresTypes=gpu
		SlurmdParameters=config_overrides
		NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000 Gres=gpu:2
		PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
	END
    cat >/etc/slurm/gres.conf <<-END
		AutoDetect=off
		Name=gpu File=/dev/null
		Name=gpu File=/dev/zero
	END
}

down() {
    [ -e "$STATE" ] || return 0
    [ -e "$STATE/new" ] || installed | comm -13 "$STATE/before" - >"$STATE/new"
    scancel --user=root 2>/dev/null || true
    for pid in "$STATE/slurmd.pid" "$STATE/slurmctld.pid" /run/munge/munged.pid; do
        stop "$pid"
    done
    rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
    DEBIAN_FRONTEND=noninteractive xargs -r apt-get purge -qq -y <"$STATE/new"
    rm -rf "$STATE" /run/munge
}

stop() {
    [ -e "$1" ] || return 0
    local pid
    pid=$(cat "$1")
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

refuse() {
    echo "one_node.sh: $1" >&2
    exit 1
}

case "${1:-}" in
up | down) "$1" ;;
*) refuse "up or down?" ;;
esac
