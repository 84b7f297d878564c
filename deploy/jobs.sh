#!/bin/sh
# The jobs of docker-compose.yml: jobs.sh mlflow | keys | publish | retrain | batch-score
#
# No job trusts the order of start: what it needs is waited for, 60 s, then it ends with words and the restart policy
# decides. PostgreSQL is found by libpq's own variables (PGHOST, PGUSER, PGPASSWORD), so no command line shows a password.
set -eu

STATE=postgresql:///fraud
TRACKER=http://mlflow:5000
BUNDLES=/bundles
CONFIG=${FRAUD_CONFIG:-}
EVENTS=${CONFIG%/*}/events.parquet

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

train() {
  wait_for postgres database_answers
  wait_for mlflow tracker_answers
  if [ ! -e "$CONFIG" ]; then
    say "no log at $CONFIG: simulating a bank of $FRAUD_USERS users"
    fraud simulate -o "${CONFIG%/*}" --users "$FRAUD_USERS" --days 60
  fi
  fraud train "$CONFIG" -o "$BUNDLES/.new" --overwrite \
    --set "tracking.uri=$TRACKER" --set "model.name=$FRAUD_MODEL" --set "training.seed=$1"
}

point_current_at_the_new() { # a whole version first, then one rename of the link: a reader sees the old or the new
  version=$(sha256sum "$BUNDLES/.new/manifest.json" | cut -c 1-12)
  if [ -d "$BUNDLES/$version" ]; then rm -r "$BUNDLES/.new"; else mv -T "$BUNDLES/.new" "$BUNDLES/$version"; fi
  sync -f "$BUNDLES"
  ln -sfn "$version" "$BUNDLES/.current"
  mv -T "$BUNDLES/.current" "$BUNDLES/current"
  say "published $version"
}

case "${1:-}" in
mlflow)
  serve_mlflow
  ;;
publish) # the first bundle, and the state of the users in its log; nothing where one is published
  if bundle_is_there 2>/dev/null; then say "a bundle is published: $(readlink "$BUNDLES/current")"; exit 0; fi
  train 0
  fraud warm "$BUNDLES/.new" "$EVENTS" --state "$STATE" --config "$CONFIG"
  point_current_at_the_new
  ;;
retrain) # another bundle on the log as it is now; not judged against the one before it
  wait_for "the first bundle" bundle_is_there
  train "$FRAUD_SEED"
  point_current_at_the_new
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
*)
  say "mlflow | keys | publish | retrain | batch-score"
  exit 2
  ;;
esac
