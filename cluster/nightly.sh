#!/usr/bin/env bash
# Tags one night of the archive; what the nightly job runs. Repeating it is safe: a finished night says so and exits
# with 0, one that died goes on where it stopped.
#
#   MNERQG_MODEL     model directory
#   MNERQG_ARCHIVE   the posts of a night lie in $MNERQG_ARCHIVE/date=YYYY-MM-DD
#   MNERQG_TAGS      its tags go to $MNERQG_TAGS/date=YYYY-MM-DD
#   NIGHT            YYYY-MM-DD; without it, in UTC, the day before the one that a RayCronJob planned the job for, or
#                    before today
#
# Arguments are passed on to jobs/tag.py.
set -euo pipefail

# KubeRay names a cluster NAME-MINUTES-XXXXX, by the minutes since 1970 of the time that its job was planned for: a try
# after midnight, or a job made later, tags the same night as one in time.
planned=now
if [[ "${RAY_CLUSTER_NAME:-}" =~ -([0-9]{8,})-[a-z0-9]{5}$ ]]; then
    planned="@$((BASH_REMATCH[1] * 60))"
fi
night="${NIGHT:-$(date --utc --date="$(date --utc --date="$planned" +%F) - 1 day" +%F)}"
if [[ "$night" != "$(date --utc --date="$night" +%F 2>/dev/null)" ]]; then
    echo "error: NIGHT is '$night'; give a date such as 2026-11-22" >&2
    exit 2
fi
for name in MNERQG_MODEL MNERQG_ARCHIVE MNERQG_TAGS; do
    if [[ -z "${!name:-}" ]]; then
        echo "error: $name is not set; the head of $0 says what it is" >&2
        exit 2
    fi
done
exec python "$(dirname "$0")/../jobs/tag.py" --model "$MNERQG_MODEL" --input "$MNERQG_ARCHIVE/date=$night" \
    --output "$MNERQG_TAGS/date=$night" "$@"
