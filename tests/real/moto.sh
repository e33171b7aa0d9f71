#!/usr/bin/env bash
# Tries the tests of real services (docs/testing.md) on a stand-in for AWS that no other test uses:
# moto, from PyPI. Its differences from SQS are in the list of skipped cases below.
#
#   tests/real/moto.sh [DIRECTORY]      the directory is for moto, target/stack/moto by default
set -euo pipefail
cd "$(dirname "$0")/../.."

venv="$(realpath -m "${1:-target/stack/moto}")"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
if [ ! -x "$venv/bin/moto_server" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'moto[s3,sqs,server]==5.2.5'
fi
log="$venv/moto.log"
"$venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$log" 2>&1 &
moto=$!
trap 'kill "$moto"' EXIT
for _ in $(seq 100); do
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    kill -0 "$moto" || { cat "$log"; exit 1; }
    sleep 0.2
done

export SLUICE_TEST_AWS=1 AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
unset AWS_PROFILE AWS_SESSION_TOKEN SLUICE_TEST_AWS_ENDPOINT

# moto accepts the receipt handle of an earlier delivery; SQS does not. A long poll of moto does not
# return a message of a group that becomes free while it waits.
skipped=(
    --skip changing_a_message_that_is_gone_or_redelivered_is_reported
    --skip a_delete_with_the_handle_of_an_earlier_delivery_deletes_nothing
    --skip an_entry_that_fails_does_not_prevent_the_others
    --skip a_group_waits_while_one_of_its_messages_is_in_flight
)
status=0
cargo test --test it -- --test-threads 4 queue_contract::sqs:: "${skipped[@]}" || status=1
cargo test -p sluice-sim --test contract -- --test-threads 4 real_server || status=1
cargo test --test it -- --ignored --nocapture objects_of_an_account || status=1
cargo test --test it -- --ignored leftovers_are_removed || status=1

echo "requests to S3, by method, and to SQS:"
sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -o '"[A-Z]* /[^ ]* HTTP' |
    awk '{ sub(/"/, "", $1); print ($1 == "POST" ? "SQS" : "S3 " $1) }' | sort | uniq -c
exit "$status"
