-- What happened, one row for each entry of the broadcast and of the dead letters' streams.
CREATE TABLE convoke_facts (
    namespace TEXT NOT NULL,
    stream TEXT NOT NULL,
    at INTEGER NOT NULL, -- the entry's id: Unix ms by the clock of the Redis server
    seq INTEGER NOT NULL, -- the entry's id: counts the entries of one ms
    kind TEXT NOT NULL,
    time INTEGER, -- when it was published, Unix ms
    source TEXT,
    subject TEXT, -- the id of the instance, task, batch or decision; of a dead letter the event's id
    instance TEXT, -- who did it
    reason TEXT, -- why an event is a dead letter; null for facts
    data TEXT NOT NULL,
    fields TEXT NOT NULL, -- the entry's other fields
    PRIMARY KEY (stream, at, seq)
) WITHOUT ROWID;

CREATE INDEX convoke_facts_by_time ON convoke_facts (namespace, at, seq);
CREATE INDEX convoke_facts_by_kind ON convoke_facts (namespace, kind, at);
CREATE INDEX convoke_facts_by_subject ON convoke_facts (subject, at) WHERE subject IS NOT NULL;
CREATE INDEX convoke_facts_by_instance ON convoke_facts (instance, at) WHERE instance IS NOT NULL;

CREATE VIEW convoke_lifecycle AS
SELECT namespace, at, seq, kind, instance, data ->> 'incarnation' AS incarnation,
    data ->> 'term' AS term, data
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
        data ->> 'items_processed' AS items_processed,
        data ->> 'items_failed' AS items_failed,
        data ->> 'total' AS total, data ->> 'fence' AS fence, data,
        row_number() OVER (PARTITION BY namespace, subject ORDER BY at DESC, seq DESC) AS nth
    FROM convoke_facts
    WHERE reason IS NULL AND kind LIKE 'batch.%' AND subject IS NOT NULL
) AS told
WHERE nth = 1;

CREATE VIEW convoke_batch_failures AS
SELECT told.namespace, told.at, told.seq, told.batch, failure.value AS failure
FROM convoke_batches AS told
JOIN json_each(
    CASE WHEN json_type(told.data, '$.failures') = 'array' THEN told.data -> 'failures' ELSE '[]' END
) AS failure;

CREATE VIEW convoke_decisions AS
SELECT namespace, at, seq, subject AS decision, substr(kind, 8) AS status, data -> 'value' AS value,
    data ->> 'vote_count' AS vote_count, data ->> 'quorum' AS quorum,
    data ->> 'electorate' AS electorate, data
FROM convoke_facts
WHERE reason IS NULL AND kind LIKE 'quorum.%';

CREATE VIEW convoke_votes AS
SELECT told.namespace, told.at, told.seq, told.decision, vote.key AS instance, vote.value AS value
FROM convoke_decisions AS told
JOIN json_each(
    CASE WHEN json_type(told.data, '$.votes') = 'object' THEN told.data -> 'votes' ELSE '{}' END
) AS vote;

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
