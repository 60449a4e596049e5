#!/bin/bash
#SBATCH --job-name={{ name }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node={{ ranks }}
#SBATCH --output={{ output }}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ notice_seconds }}
{%- for option in options %}
#SBATCH {{ option }}
{%- endfor %}
#
# Submit with sbatch. {{ notice_seconds }} s before the time is up, or when the job has to make room, all ranks finish
# their step and save, and the job queues again; so it does after a failure, at most {{ max_restarts }} times
# without a new checkpoint. `smdt launch stop` ends it.

cd {{ folder | quote }} || exit 1
run={{ run | quote }}
python={{ python | quote }}

# The stop file of an earlier end goes; a line of `smdt launch stop` is heard even while the job queued again.
if [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || [ ! -s "$run/stop" ]; then rm -f "$run/stop"; fi
trap 'touch "$run/stop"; asked_by_slurm=1' USR1 TERM

export SMDT_ATTEMPT="slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=$((20000 + (SLURM_JOB_ID + 7919 * ${SLURM_RESTART_COUNT:-0}) % 12000))

# One task is one rank: what Slurm numbers is what torch asks for.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_SIZE={{ ranks }}
    exec "$@"' rank {{ command }} &
ranks=$!
while kill -0 "$ranks" 2>/dev/null; do wait "$ranks"; done

if [ -s "$run/stop" ] || { [ -e "$run/stop" ] && [ -z "$asked_by_slurm" ]; }; then
    "$python" -m launcher.requeue "$run" --asked-to-stop
    echo "Submit the same script again to go on."
    exit 75
fi
"$python" -m launcher.requeue "$run" --max-restarts {{ max_restarts }}
verdict=$?
if [ "$verdict" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$verdict"
