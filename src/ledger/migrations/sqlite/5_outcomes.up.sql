-- What became of each run that was committed, where the setting ledger_outcomes asks for it.
CREATE TABLE convoke_outcomes (
    namespace TEXT NOT NULL,
    stream TEXT NOT NULL,
    at INTEGER NOT NULL, -- the entry's id: Unix ms by the clock of the Redis server
    seq INTEGER NOT NULL, -- the entry's id: counts the entries of one ms
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL,
    event TEXT NOT NULL, -- the event's id
    subject TEXT,
    source TEXT,
    cause TEXT, -- the id of the event whose run published it
    instance TEXT NOT NULL,
    deliveries INTEGER NOT NULL,
    ended INTEGER NOT NULL, -- Unix ms by the clock of the instance
    took_us INTEGER NOT NULL,
    outcome TEXT NOT NULL, -- done, failed, retried or dead
    code TEXT,
    message TEXT,
    PRIMARY KEY (namespace, stream, at, seq)
) WITHOUT ROWID;
CREATE INDEX convoke_outcomes_by_time ON convoke_outcomes (namespace, ended);
CREATE INDEX convoke_outcomes_by_event ON convoke_outcomes (namespace, event);
CREATE INDEX convoke_outcomes_by_entry ON convoke_outcomes (namespace, at, seq);
CREATE INDEX convoke_outcomes_by_subject ON convoke_outcomes (namespace, subject, ended) WHERE subject IS NOT NULL;
CREATE INDEX convoke_outcomes_by_source ON convoke_outcomes (namespace, source, ended) WHERE source IS NOT NULL;
CREATE INDEX convoke_outcomes_by_cause ON convoke_outcomes (namespace, cause) WHERE cause IS NOT NULL;

-- How many were not written, since they came faster than the database took them.
CREATE TABLE convoke_outcomes_lost (
    namespace TEXT NOT NULL,
    instance TEXT NOT NULL,
    at INTEGER NOT NULL,
    lost INTEGER NOT NULL
);
