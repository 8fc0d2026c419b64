-- What happened, one row for each entry of the broadcast and of the dead letters' streams.
CREATE TABLE convoke_facts (
    namespace text NOT NULL,
    stream text NOT NULL,
    at bigint NOT NULL,
    seq bigint NOT NULL,
    kind text NOT NULL,
    time bigint,
    source text,
    subject text,
    instance text,
    reason text,
    data jsonb NOT NULL,
    fields jsonb NOT NULL,
    PRIMARY KEY (stream, at, seq)
);
COMMENT ON COLUMN convoke_facts.at IS 'the entry''s id: Unix ms by the clock of the Redis server';
COMMENT ON COLUMN convoke_facts.seq IS 'the entry''s id: counts the entries of one ms';
COMMENT ON COLUMN convoke_facts.time IS 'when it was published, Unix ms';
COMMENT ON COLUMN convoke_facts.subject IS 'the id of the instance, task, batch or decision; of a dead letter the event''s id';
COMMENT ON COLUMN convoke_facts.instance IS 'who did it';
COMMENT ON COLUMN convoke_facts.reason IS 'why an event is a dead letter; null for facts';
COMMENT ON COLUMN convoke_facts.fields IS 'the entry''s other fields';

CREATE INDEX convoke_facts_by_time ON convoke_facts (namespace, at, seq);
CREATE INDEX convoke_facts_by_kind ON convoke_facts (namespace, kind, at);
CREATE INDEX convoke_facts_by_subject ON convoke_facts (subject, at) WHERE subject IS NOT NULL;
CREATE INDEX convoke_facts_by_instance ON convoke_facts (instance, at) WHERE instance IS NOT NULL;

-- A number of a fact's data; null where it is none: one odd fact must not break a whole view.
CREATE FUNCTION convoke_number(data jsonb, name text) RETURNS numeric LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN jsonb_typeof(data -> name) = 'number' THEN (data ->> name)::numeric END $$;

CREATE VIEW convoke_lifecycle AS
SELECT namespace, at, seq, kind, instance, convoke_number(data, 'incarnation') AS incarnation,
    convoke_number(data, 'term') AS term, data
FROM convoke_facts
WHERE reason IS NULL AND (kind LIKE 'instance.%' OR kind LIKE 'leader.%'
    OR kind LIKE 'partition.%' OR kind LIKE 'circuit.%');

CREATE VIEW convoke_task_outcomes AS
SELECT namespace, at, seq, subject AS task, substr(kind, 6) AS status, instance, data ->> 'error' AS error, data
FROM convoke_facts
WHERE reason IS NULL AND kind IN ('task.completed', 'task.failed');

-- The last that was heard of each batch.
CREATE VIEW convoke_batches AS
SELECT namespace, at, seq, batch, status, instance, items_processed, items_failed, total, fence, data
FROM (
    SELECT namespace, at, seq, subject AS batch, substr(kind, 7) AS status, instance,
        convoke_number(data, 'items_processed') AS items_processed,
        convoke_number(data, 'items_failed') AS items_failed,
        convoke_number(data, 'total') AS total, convoke_number(data, 'fence') AS fence, data,
        row_number() OVER (PARTITION BY namespace, subject ORDER BY at DESC, seq DESC) AS nth
    FROM convoke_facts
    WHERE reason IS NULL AND kind LIKE 'batch.%' AND subject IS NOT NULL
) AS told
WHERE nth = 1;

CREATE VIEW convoke_batch_failures AS
SELECT told.namespace, told.at, told.seq, told.batch, failure.value AS failure
FROM convoke_batches AS told
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(told.data -> 'failures') = 'array' THEN told.data -> 'failures' ELSE '[]' END
) AS failure(value);

CREATE VIEW convoke_decisions AS
SELECT namespace, at, seq, subject AS decision, substr(kind, 8) AS status, data -> 'value' AS value,
    convoke_number(data, 'vote_count') AS vote_count, convoke_number(data, 'quorum') AS quorum,
    convoke_number(data, 'electorate') AS electorate, data
FROM convoke_facts
WHERE reason IS NULL AND kind LIKE 'quorum.%';

CREATE VIEW convoke_votes AS
SELECT told.namespace, told.at, told.seq, told.decision, vote.key AS instance, vote.value AS value
FROM convoke_decisions AS told
CROSS JOIN LATERAL jsonb_each(
    CASE WHEN jsonb_typeof(told.data -> 'votes') = 'object' THEN told.data -> 'votes' ELSE '{}' END
) AS vote(key, value);

CREATE VIEW convoke_dead_letters AS
SELECT namespace, at, seq, subject AS event, kind, reason, fields ->> 'deadmessage' AS message,
    fields ->> 'deadattempts' AS attempts, fields ->> 'deaddeliveries' AS deliveries,
    fields ->> 'deadstream' AS stream, fields ->> 'deadentry' AS entry, instance, data, fields
FROM convoke_facts
WHERE reason IS NOT NULL;

CREATE VIEW convoke_operator_actions AS
SELECT namespace, at, seq, kind, source, data
FROM convoke_facts
WHERE reason IS NULL AND kind LIKE 'operator.%';
