-- Events to be published: inserted in a service's own transaction, deleted when published. Any program
-- may insert rows: kind is required, and the payload as MessagePack (data) or as JSON text (json).
CREATE TABLE convoke_outbox (
    id bigserial PRIMARY KEY,
    event text, -- the event's unique id; null: one made from this row's number
    kind text NOT NULL,
    subject text,
    source text,
    traceparent text,
    time bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    data bytea,
    json text,
    refused text -- why it can never be published; such a row waits for somebody to mend or delete it
);
CREATE INDEX convoke_outbox_waiting ON convoke_outbox (id) WHERE refused IS NULL;
