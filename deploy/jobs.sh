#!/bin/sh
# The jobs of docker-compose.yml: jobs.sh mlflow | publish | retrain | monitor | labels | keys | batch-score | registry
#
# No job trusts the order of start: what it needs is waited for, 60 s, then it ends with words and the restart policy
# decides. PostgreSQL is found by libpq's own variables (PGHOST, PGUSER, PGPASSWORD), so no command line shows a password.
set -eu

STATE=postgresql:///fraud
TRACKER=http://mlflow:5000
MODEL=fraud
BUNDLES=/bundles
CONFIG=${FRAUD_CONFIG:-}
EVENTS=${CONFIG%/*}/events.parquet
USAGE="mlflow | publish | retrain | monitor | labels | keys | batch-score | registry"
export MLFLOW_TRACKING_URI=$TRACKER

say() { echo "jobs.sh $*" >&2; }

wait_for() { # wait_for NAME COMMAND...
  name=$1 until=$(($(date +%s) + 60))
  shift
  until "$@" 2>/tmp/reason; do
    [ "$(date +%s)" -lt "$until" ] || { say "$name: no answer for 60 s: $(tail -n 1 /tmp/reason)"; exit 1; }
    sleep 1
  done
}

database_answers() {
  python -c 'import psycopg; psycopg.connect("dbname=fraud", connect_timeout=3).close()'
}

tracker_answers() { # from its database: /health would answer without one
  python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' \
    "$TRACKER/api/2.0/mlflow/experiments/get?experiment_id=0"
}

bundle_is_there() {
  ls "$BUNDLES/current/manifest.json" >/dev/null
}

serve_mlflow() {
  wait_for postgres database_answers
  # The image of PostgreSQL makes one database; the tracker's own is made here, when it is first needed.
  python - <<'PYTHON'
import psycopg
with psycopg.connect("dbname=fraud", autocommit=True) as connection:
    if connection.execute("SELECT FROM pg_database WHERE datname = 'mlflow'").fetchone() is None:
        connection.execute("CREATE DATABASE mlflow")
PYTHON
  exec mlflow server --host 0.0.0.0 --port 5000 --workers 1 \
    --backend-store-uri postgresql+psycopg:///mlflow --artifacts-destination /artifacts \
    --allowed-hosts 'mlflow:5000,localhost:*,127.0.0.1:*'
}

champion_is_there() {
  fraud models --json | python -c 'import json, sys; sys.exit(json.load(sys.stdin)["champion"] is None)'
}

retrain() { # the verdict, and exit 3 where the gate refuses
  fraud retrain "$CONFIG" --set "tracking.uri=$TRACKER" --set "tracking.model_name=$MODEL" \
    --set "model.name=$FRAUD_MODEL" --set "training.seed=$FRAUD_SEED" "$@"
}

first_champion() { # and the state of the users in its log, before any replica answers with it
  if [ ! -e "$CONFIG" ]; then
    say "no log at $CONFIG: simulating a bank of $FRAUD_USERS users"
    fraud simulate -o "${CONFIG%/*}" --users "$FRAUD_USERS" --days 60 --fraud-rate 0.04
  fi
  champion_is_there 2>/tmp/reason || retrain
  fraud publish "models:/$MODEL@champion" -o /tmp/first
  fraud warm /tmp/first/current "$EVENTS" --state "$STATE" --config "$CONFIG"
  rm -r /tmp/first
}

case "${1:-}" in
mlflow)
  serve_mlflow
  ;;
publish) # keeps the link that the replicas follow on the champion
  wait_for postgres database_answers
  wait_for mlflow tracker_answers
  bundle_is_there 2>/dev/null || first_champion
  exec fraud publish "models:/$MODEL@champion" -o "$BUNDLES" --every 2s
  ;;
retrain) # a challenger on the log as it is now; published if it is promoted. Takes the options of `fraud retrain`
  shift
  wait_for "the first bundle" bundle_is_there
  wait_for mlflow tracker_answers
  retrain "$@"
  ;;
monitor) # exit 4 is an alarm
  wait_for "the first bundle" bundle_is_there
  exec fraud monitor "$BUNDLES/current" "$EVENTS" --config "$CONFIG" --html /scores/monitor.html --overwrite
  ;;
labels) # what the service was told, into a file that [labels] path may name
  wait_for postgres database_answers
  exec fraud labels pull --state "$STATE" -o "${CONFIG%/*}/labels.jsonl" --config "$CONFIG"
  ;;
keys) # the options of `fraud keys add`
  shift
  wait_for postgres database_answers
  exec fraud keys add --state "$STATE" "$@"
  ;;
batch-score)
  wait_for "the first bundle" bundle_is_there
  exec fraud score "$BUNDLES/current" "$EVENTS" -o /scores/scores.parquet --config "$CONFIG" --per-event --overwrite
  ;;
registry) # the options of `fraud models`, `fraud promote`, `fraud rollback`
  shift
  wait_for mlflow tracker_answers
  exec fraud "$@"
  ;;
*)
  say "$USAGE"
  exit 2
  ;;
esac
