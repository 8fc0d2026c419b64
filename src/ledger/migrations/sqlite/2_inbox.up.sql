-- The events whose effect is in this database: written in the effect's own transaction.
CREATE TABLE convoke_inbox (
    namespace TEXT NOT NULL,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    event TEXT NOT NULL,
    at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    result BLOB,
    PRIMARY KEY (namespace, kind, source, event)
) WITHOUT ROWID;
CREATE INDEX convoke_inbox_by_time ON convoke_inbox (at);
