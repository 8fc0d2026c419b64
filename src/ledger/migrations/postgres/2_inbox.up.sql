-- The events whose effect is in this database: written in the effect's own transaction.
CREATE TABLE convoke_inbox (
    namespace text NOT NULL,
    kind text NOT NULL,
    source text NOT NULL,
    event text NOT NULL,
    at bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    result bytea,
    PRIMARY KEY (namespace, kind, source, event)
);
CREATE INDEX convoke_inbox_by_time ON convoke_inbox (at);
