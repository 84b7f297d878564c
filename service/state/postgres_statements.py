"""The statements of a tick in PostgreSQL. Each takes the rows of a table as one JSON text; bytes in it are base64."""

from __future__ import annotations

USER_ROW, EVENT_ROW, COUNTER_ROWS = range(3)  # kinds of rows that READ returns
# One statement, so all is of one moment. kind, two keys, numbers, two values, payloads, two texts.
READ = f"""
SELECT {USER_ROW}, u.user_id, NULL::text, ARRAY[u.sequence, u.n_events, u.newest_us, u.snapshot, s.first_index],
    s.carry, s.rows, ARRAY(
        SELECT r.payload FROM records AS r
        WHERE r.user_id = u.user_id AND r.snapshot = u.snapshot AND r.ordinal >= 0 ORDER BY r.ordinal
    ), NULL::text, NULL::text
FROM jsonb_array_elements_text(%s::jsonb) AS w (user_id) JOIN users AS u ON u.user_id = w.user_id
LEFT JOIN snapshots AS s ON s.user_id = u.user_id AND s.snapshot = u.snapshot
UNION ALL
SELECT {EVENT_ROW}, e.user_id, e.event_id, ARRAY[e.ts_us, e.label, e.label_known_us], e.payload_hash, r.payload,
    NULL::bytea[], e.entities, e.session_id
FROM jsonb_array_elements(%s::jsonb) AS w
JOIN events AS e ON e.user_id = w ->> 0 AND e.event_id = w ->> 1
LEFT JOIN records AS r ON r.shard = e.shard AND r.number = e.number
UNION ALL
SELECT {COUNTER_ROWS}, w ->> 0, w ->> 1, hours.numbers, NULL::bytea, NULL::bytea, NULL::bytea[], NULL::text, NULL::text
FROM jsonb_array_elements(%s::jsonb) AS w CROSS JOIN LATERAL (
    SELECT array_agg(ARRAY[c.hour, c.volume, c.frauds, c.honest]) AS numbers FROM (
        SELECT hour, volume, frauds, honest FROM counters
        WHERE field = w ->> 0 AND entity = w ->> 1 AND hour >= (w ->> 2)::bigint AND hour < (w ->> 3)::bigint
        UNION ALL
        SELECT hour, volume, frauds, honest FROM counters
        WHERE field = w ->> 0 AND entity = w ->> 1 AND hour < (w ->> 2)::bigint AND frauds > 0
    ) AS c
) AS hours
WHERE hours.numbers IS NOT NULL
""".encode()
LOCK_USERS = """
SELECT user_id, sequence FROM users WHERE user_id IN (SELECT jsonb_array_elements_text(%s::jsonb))
ORDER BY user_id FOR UPDATE
"""
NEW_USERS = """
INSERT INTO users (user_id, sequence, n_events, newest_us, snapshot)
SELECT w ->> 0, (w ->> 1)::bigint, (w ->> 2)::bigint, (w ->> 3)::bigint, (w ->> 4)::bigint
FROM jsonb_array_elements(%s::jsonb) AS w ORDER BY (w ->> 0) COLLATE "C"
ON CONFLICT (user_id) DO NOTHING RETURNING user_id
"""
DROP_USERS = "DELETE FROM users WHERE user_id IN (SELECT jsonb_array_elements_text(%s::jsonb))"
LOCK_HEAD = "SELECT head_number, head_hash FROM shards WHERE shard = %s FOR UPDATE"
KNOWN_LABELS = "SELECT label_id FROM labels WHERE label_id IN (SELECT jsonb_array_elements_text(%s::jsonb))"
LOCK_EVENTS = """
SELECT e.user_id, e.event_id, e.label, e.label_known_us
FROM events AS e JOIN jsonb_array_elements(%s::jsonb) AS w ON e.user_id = w ->> 0 AND e.event_id = w ->> 1
ORDER BY e.user_id, e.event_id FOR UPDATE OF e
"""
WRITE = """
WITH own_users AS (
    UPDATE users SET sequence = (w ->> 1)::bigint, n_events = (w ->> 2)::bigint, newest_us = (w ->> 3)::bigint,
        snapshot = (w ->> 4)::bigint
    FROM jsonb_array_elements(%s::jsonb) AS w WHERE users.user_id = w ->> 0
), own_snapshots AS (
    INSERT INTO snapshots (user_id, snapshot, first_index, carry, rows)
    SELECT w ->> 0, (w ->> 1)::bigint, (w ->> 2)::bigint, decode(w ->> 3, 'base64'), decode(w ->> 4, 'base64')
    FROM jsonb_array_elements(%s::jsonb) AS w
), own_events AS (
    INSERT INTO events (user_id, event_id, ts_us, payload_hash, shard, number, session_id, entities, label,
        label_known_us, stored_us)
    SELECT w ->> 0, w ->> 1, (w ->> 2)::bigint, decode(w ->> 3, 'base64'), (w ->> 4)::bigint, (w ->> 5)::bigint,
        w ->> 6, w ->> 7, (w ->> 8)::bigint, (w ->> 9)::bigint, (w ->> 10)::bigint
    FROM jsonb_array_elements(%s::jsonb) AS w
), own_records AS (
    INSERT INTO records (shard, number, user_id, snapshot, ordinal, payload)
    SELECT (w ->> 0)::bigint, (w ->> 1)::bigint, w ->> 2, (w ->> 3)::bigint, (w ->> 4)::bigint,
        decode(w ->> 5, 'base64')
    FROM jsonb_array_elements(%s::jsonb) AS w
), own_chain AS (
    INSERT INTO chain (shard, number, payload_sha256, hash)
    SELECT (w ->> 0)::bigint, (w ->> 1)::bigint, decode(w ->> 2, 'base64'), decode(w ->> 3, 'base64')
    FROM jsonb_array_elements(%s::jsonb) AS w
), own_counters AS (
    INSERT INTO counters (field, entity, hour, volume, frauds, honest)
    SELECT w ->> 0, w ->> 1, (w ->> 2)::bigint, (w ->> 3)::bigint, (w ->> 4)::bigint, (w ->> 5)::bigint
    FROM jsonb_array_elements(%s::jsonb) WITH ORDINALITY AS listed (w, place) ORDER BY place
    ON CONFLICT (field, entity, hour) DO UPDATE SET volume = counters.volume + excluded.volume,
        frauds = counters.frauds + excluded.frauds, honest = counters.honest + excluded.honest
)
UPDATE shards SET head_number = %s, head_hash = %s WHERE shard = %s
"""
LOWER = """
UPDATE counters SET volume = volume + %s, frauds = frauds + %s, honest = honest + %s
WHERE field = %s AND entity = %s AND hour = %s
    AND volume + %s >= 0 AND frauds + %s >= 0 AND honest + %s >= 0
"""
LABEL = """
WITH own_labels AS (
    INSERT INTO labels (label_id, user_id, event_id, session_id, label, known_us, source, stored_us)
    SELECT w ->> 0, w ->> 1, w ->> 2, w ->> 3, (w ->> 4)::bigint, (w ->> 5)::bigint, w ->> 6, (w ->> 7)::bigint
    FROM jsonb_array_elements(%s::jsonb) AS w
)
UPDATE events SET label = (w ->> 0)::bigint, label_known_us = (w ->> 1)::bigint
FROM jsonb_array_elements(%s::jsonb) AS w WHERE events.user_id = w ->> 2 AND events.event_id = w ->> 3
"""
