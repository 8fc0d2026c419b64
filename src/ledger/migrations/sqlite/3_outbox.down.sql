DROP TABLE convoke_outbox;
