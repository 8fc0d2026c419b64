-- What became of each run that was committed, where the setting ledger_outcomes asks for it.
CREATE TABLE convoke_outcomes (
    namespace text NOT NULL,
    stream text NOT NULL,
    at bigint NOT NULL, -- the entry's id: Unix ms by the clock of the Redis server
    seq bigint NOT NULL, -- the entry's id: counts the entries of one ms
    attempt bigint NOT NULL,
    kind text NOT NULL,
    event text NOT NULL, -- the event's id
    subject text,
    source text,
    cause text, -- the id of the event whose run published it
    instance text NOT NULL,
    deliveries bigint NOT NULL,
    ended bigint NOT NULL, -- Unix ms by the clock of the instance
    took_us bigint NOT NULL,
    outcome text NOT NULL, -- done, failed, retried or dead
    code text,
    message text,
    PRIMARY KEY (namespace, stream, at, seq)
);
CREATE INDEX convoke_outcomes_by_time ON convoke_outcomes (namespace, ended);
CREATE INDEX convoke_outcomes_by_event ON convoke_outcomes (namespace, event);
CREATE INDEX convoke_outcomes_by_entry ON convoke_outcomes (namespace, at, seq);
CREATE INDEX convoke_outcomes_by_subject ON convoke_outcomes (namespace, subject, ended) WHERE subject IS NOT NULL;
CREATE INDEX convoke_outcomes_by_source ON convoke_outcomes (namespace, source, ended) WHERE source IS NOT NULL;
CREATE INDEX convoke_outcomes_by_cause ON convoke_outcomes (namespace, cause) WHERE cause IS NOT NULL;

-- How many were not written, since they came faster than the database took them.
CREATE TABLE convoke_outcomes_lost (
    namespace text NOT NULL,
    instance text NOT NULL,
    at bigint NOT NULL,
    lost bigint NOT NULL
);
