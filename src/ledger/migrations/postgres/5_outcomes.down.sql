DROP TABLE convoke_outcomes_lost;
DROP TABLE convoke_outcomes;
