#!/usr/bin/env bash
# A whole SLURM on this machine alone, on loopback, with two pretend GPUs: slurm_node.sh start DIR | stop DIR
# Needs root and Debian's slurm-wlm and munge. Everything it writes lies in DIR. `start` prints the line that names its configuration.
set -euo pipefail
do=$1; dir=$(realpath -m "$2")
export PATH=$PATH:/usr/sbin SLURM_CONF=$dir/slurm.conf

if [ "$do" = stop ]; then
  for daemon in slurmd slurmctld munged; do
    [ -f "$dir/$daemon.pid" ] && kill "$(cat "$dir/$daemon.pid")" 2>/dev/null || true
  done
  for name in slurm gres; do [ "$(readlink /etc/slurm/$name.conf)" = "$dir/$name.conf" ] && rm /etc/slurm/$name.conf; done
  exit 0
fi

[ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ] && { echo "this machine has a SLURM of its own"; exit 77; }
for tool in slurmctld slurmd munged sbatch; do command -v $tool >/dev/null || { echo "$tool is not installed (Debian: slurm-wlm munge)"; exit 77; }; done
[ "$(id -u)" = 0 ] || { echo "starting SLURM needs root"; exit 77; }
mkdir -p "$dir"/{state,spool,log,gpu}; chmod 755 "$dir"
for i in 0 1; do [ -e "$dir/gpu/nvidia$i" ] || mknod "$dir/gpu/nvidia$i" c 1 3; done   # pretend devices: two more /dev/null
host=$(hostname -s)
[ -f "$dir/munge.key" ] || (umask 077; head -c 128 /dev/urandom >"$dir/munge.key")
cat >"$dir/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((20000 + $$ % 10000))
SlurmdPort=$((30000 + $$ % 10000))
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=600
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(awk '/MemTotal/ {print int($2/1024*0.9)}' /proc/meminfo) Gres=gpu:2 State=UNKNOWN
PartitionName=nodes Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
printf 'Name=gpu File=%s/gpu/nvidia[0-1]\n' "$dir" >"$dir/gres.conf"
mkdir -p /etc/slurm                                          # where a job's own srun looks: snakemake hides SLURM_CONF from it
for name in slurm gres; do ln -sfn "$dir/$name.conf" /etc/slurm/$name.conf; done
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" </dev/null >/dev/null 2>&1
slurmctld -f "$dir/slurm.conf" >/dev/null 2>&1
slurmd -f "$dir/slurm.conf" -N "$host" >/dev/null 2>&1
for _ in $(seq 60); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && { echo "SLURM_CONF=$dir/slurm.conf"; exit 0; }
  sleep 0.5
done
echo "the node did not come up"; tail -5 "$dir"/log/*.log; "$0" stop "$dir"; exit 1
