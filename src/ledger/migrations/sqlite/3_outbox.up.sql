-- Events to be published: inserted in a service's own transaction, deleted when published. Any program
-- may insert rows: kind is required, and the payload as MessagePack (data) or as JSON text (json).
CREATE TABLE convoke_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event TEXT, -- the event's unique id; null: one made from this row's number
    kind TEXT NOT NULL,
    subject TEXT,
    source TEXT,
    traceparent TEXT,
    time INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    data BLOB,
    json TEXT,
    refused TEXT -- why it can never be published; such a row waits for somebody to mend or delete it
);
CREATE INDEX convoke_outbox_waiting ON convoke_outbox (id) WHERE refused IS NULL;
