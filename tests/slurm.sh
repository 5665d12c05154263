#!/usr/bin/env bash
# A Slurm of one host for tests: as root, on loopback alone, without systemd and cgroups.
#   slurm.sh up FOLDER      start munged, slurmctld and slurmd; then: export SLURM_CONF=FOLDER/slurm.conf PATH=FOLDER/bin:$PATH
#   slurm.sh down FOLDER    end what FOLDER/pids names
set -euo pipefail
action=$1 folder=$(realpath -m "$2")

if [ "$action" = down ]; then
  tac "$folder/pids" | while read -r pid; do
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 10); do kill -0 "$pid" 2>/dev/null || continue 2; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  exit 0
fi

start() { "$@" >"$folder/log/$1.out" 2>&1 </dev/null & echo $! >>"$folder/pids"; }
await() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "timed out: $*" >&2; return 1; }

host=$(hostname -s)
mkdir -p "$folder"/{bin,log,munge,state,spool}
chmod 0711 "$folder/munge"
: >"$folder/pids"
(umask 077; head -c 128 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=${SLURM_TEST_PORT:-16821}
SlurmdPort=$((${SLURM_TEST_PORT:-16821} + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

# submitit asks sacct, which needs a data base; a job that died without a word is known to scontrol as well.
cat >"$folder/bin/sacct" <<'SACCT'
#!/bin/sh
echo 'JobID|State|NodeList'
scontrol -o show job 2>/dev/null | awk '{
  split("", value)
  for (i = 1; i <= NF; i++) { at = index($i, "="); key = substr($i, 1, at - 1); if (at && !(key in value)) value[key] = substr($i, at + 1) }
  if (!("JobId" in value)) next
  task = value["ArrayTaskId"]
  id = ("ArrayJobId" in value) ? value["ArrayJobId"] "_" (task ~ /^[0-9]+$/ ? task : "[" task "]") : value["JobId"]
  print id "|" value["JobState"] "|" value["NodeList"] }'
SACCT
chmod +x "$folder/bin/sacct"

start munged -F --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
await test -S "$folder/munge/socket"
start slurmctld -D
start slurmd -D
await sh -c 'sinfo -h -o %t | grep -qx idle'
