#!/usr/bin/env bash
# Tags one night of the archive; what the nightly job runs. Repeating it is safe: a finished night says so and exits
# with 0, one that died goes on where it stopped.
#
#   MNERQG_MODEL     model directory
#   MNERQG_ARCHIVE   the posts of a night lie in $MNERQG_ARCHIVE/date=YYYY-MM-DD
#   MNERQG_TAGS      its tags go to $MNERQG_TAGS/date=YYYY-MM-DD
#   NIGHT            YYYY-MM-DD; without it yesterday's, in UTC
#
# Arguments are passed on to jobs/tag.py.
set -euo pipefail

night="${NIGHT:-$(date --utc --date=yesterday +%F)}"
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
