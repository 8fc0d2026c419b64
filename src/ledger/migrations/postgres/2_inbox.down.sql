DROP TABLE convoke_inbox;
